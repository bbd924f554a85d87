"""Keep the units with the largest scales in their norms.

Liu et al., Network Slimming, ICCV 2017, arXiv:1708.06519.
Departs: the network is taken as it is; the paper first trains it with an L1 penalty on the scales.
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
    """Best units by the scale of their norms; reads no data."""
    graph = task.graph
    return Pruned(keep=config.select(graph, scores.bn_scale(task.model, graph), budget))
