"""Keep the units with the largest scales in their norms.

Liu et al., Network Slimming, ICCV 2017, arXiv:1708.06519. Reads no data.

Departs: the network is scored as it is, whereas the paper first trains it with an L1 penalty on the scales.
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
    """Keep the units with the largest scale in their norms."""
    graph = task.graph
    return Pruned(keep=config.select(graph, scores.bn_scale(task.model, graph), budget))
