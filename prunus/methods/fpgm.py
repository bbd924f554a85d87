"""Keep the units that others cannot replace: those far from the geometric median of their axis.

He et al., FPGM, CVPR 2019, arXiv:1811.00250. Reads no data.

Departs: one threshold for the whole network, whereas the paper removes the same share of every layer (how=uniform);
the network is pruned once, whereas the paper repeats it during training.
"""

from dataclasses import dataclass

from prunus import scores
from prunus.methods import Pruned, Run, Units
from prunus.selection import Budget
from prunus.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """No options beyond those that all methods of units share."""


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Keep the units with the largest distance to all others."""
    graph = task.graph
    return Pruned(keep=config.select(graph, scores.fpgm(task.model, graph), budget))
