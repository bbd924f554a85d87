"""Keep the units with the largest weights, relative to what is left of their axis.

Lee et al., Layer-adaptive sparsity for the magnitude-based pruning, ICLR 2021, arXiv:2010.07611. Reads no data.

Departs: units instead of single weights.
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
    """Keep the units with the largest LAMP score of their weights."""
    graph = task.graph
    return Pruned(keep=config.select(graph, scores.lamp(task.model, graph), budget))
