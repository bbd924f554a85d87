"""Keep the units with the largest weights.

Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710; over all weights that go with a unit
as in DepGraph, Fang et al., CVPR 2023, arXiv:2301.12900.
Departs: one threshold for the whole network meets the budget, where Li et al. choose a share per layer by hand.
"""

from dataclasses import dataclass

from prunus import scores
from prunus.methods import Pruned, Run, Units
from prunus.selection import Budget
from prunus.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """p: 1 or 2, the norm; combine, normalize: see `scores.magnitude`."""

    p: float = 2
    combine: scores.Combine = "sum"
    normalize: scores.Normalize = "mean"


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Best units by the norm of their weights; reads no data."""
    graph = task.graph
    norms = scores.magnitude(
        task.model, graph, p=config.p, combine=config.combine, normalize=config.normalize
    )
    return Pruned(keep=config.select(graph, norms, budget))
