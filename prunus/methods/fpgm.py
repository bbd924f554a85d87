"""Keep the units that others cannot replace: those far from the geometric median of their axis.

He et al., FPGM, CVPR 2019, arXiv:1811.00250.
Departs: one threshold for the whole network, where the paper removes the same share of every layer (how=uniform),
and at once, where the paper repeats it during training.
"""

from dataclasses import dataclass

from prunus import scores
from prunus.methods import Pruned, Run, Units
from prunus.selection import Budget
from prunus.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """Nothing of its own."""


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Best units by their distance to all others; reads no data."""
    graph = task.graph
    return Pruned(keep=config.select(graph, scores.fpgm(task.model, graph), budget))
