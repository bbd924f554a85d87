"""Keep the units with the largest weights, relative to what is left of their axis.

Lee et al., Layer-adaptive sparsity for the magnitude-based pruning, ICLR 2021, arXiv:2010.07611.
Departs: units instead of single weights.
"""

from dataclasses import dataclass

from prunus import scores
from prunus.graph import trace
from prunus.methods import Pruned
from prunus.selection import Budget, Selection


@dataclass(frozen=True, kw_only=True)
class Config(Selection):
    """Nothing of its own."""


def prune(task, budget: Budget, config: Config, run) -> Pruned:
    """Best units by the LAMP score of their weights; reads no data."""
    graph = trace(task.model, task.example)
    return Pruned(keep=config.select(graph, scores.lamp(task.model, graph), budget))
