"""Keep the units with the largest weights, relative to what is left of their axis.

Lee et al., Layer-adaptive sparsity for the magnitude-based pruning, ICLR 2021, arXiv:2010.07611.
Departs: units instead of single weights.
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
    """Best units by the LAMP score of their weights; reads no data."""
    graph = task.graph
    return Pruned(keep=config.select(graph, scores.lamp(task.model, graph), budget))
