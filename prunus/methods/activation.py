"""Keep the units with the largest activations.

As Minitron scores neurons and heads: Muralidharan et al., NeurIPS 2024, arXiv:2407.14679.
Departs: any axis, read where it is consumed; one threshold for the whole network.
"""

from dataclasses import dataclass

from prunus import scores
from prunus.graph import trace
from prunus.methods import Pruned, shown_batches
from prunus.selection import Budget, Selection


@dataclass(frozen=True, kw_only=True)
class Config(Selection):
    """batches of batch_size training examples, without augmentation, are what is scored on."""

    batches: int = 32
    batch_size: int = 64


def prune(task, budget: Budget, config: Config, run) -> Pruned:
    """Best units by the mean size of their activations."""
    graph = trace(task.model, task.example)
    batches = shown_batches(task, run, config.batches, config.batch_size)
    sizes = scores.activation(task.model, graph, batches)
    return Pruned(keep=config.select(graph, sizes, budget))
