"""Keep the units with the largest activations.

As Minitron scores neurons and heads: Muralidharan et al., NeurIPS 2024, arXiv:2407.14679.
Departs: any axis, read where it is consumed; one threshold for the whole network.
"""

from dataclasses import dataclass

from prunus import scores
from prunus.methods import Pruned, Run, Units, shown_batches
from prunus.selection import Budget
from prunus.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """batches of batch_size training examples, without augmentation, are what is scored on."""

    batches: int = 32
    batch_size: int = 64


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Best units by the mean size of their activations."""
    graph = task.graph
    batches = shown_batches(task, run, config.batches, config.batch_size)
    sizes = scores.activation(task.model, graph, batches)
    return Pruned(keep=config.select(graph, sizes, budget))
