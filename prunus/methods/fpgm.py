"""Keep the units that others cannot replace: those far from the geometric median of their axis.

He et al., FPGM, CVPR 2019, arXiv:1811.00250.
Departs: one threshold for the whole network, where the paper removes the same share of every layer (how=uniform),
and at once, where the paper repeats it during training.
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
    """Best units by their distance to all others; reads no data."""
    graph = trace(task.model, task.example)
    return Pruned(keep=config.select(graph, scores.fpgm(task.model, graph), budget))
