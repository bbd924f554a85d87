"""Keep the units with the largest weights.

Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710; over all weights that belong to a unit,
as in DepGraph, Fang et al., CVPR 2023, arXiv:2301.12900. Reads no data.

Departs: one threshold for the whole network meets the budget, whereas Li et al. choose a share per layer by hand.
"""

from dataclasses import dataclass
from typing import Annotated

from prunus import scores
from prunus.methods import Pruned, Run, Units
from prunus.options import Range
from prunus.selection import Budget
from prunus.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """The options of magnitude.

    Args:
        p: The norm, 1 to 2.
        combine: The combination of a unit's weights in several tensors: sum, mean or max.
        normalize: The normalisation of the scores of an axis; see `scores.magnitude`.
    """

    p: Annotated[float, Range(1, 2)] = 2
    combine: scores.Combine = "sum"
    normalize: scores.Normalize = "mean"


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Keep the units with the largest norm of their weights."""
    graph = task.graph
    norms = scores.magnitude(
        task.model, graph, p=config.p, combine=config.combine, normalize=config.normalize
    )
    return Pruned(keep=config.select(graph, norms, budget))
