"""Keep the units with the largest activations.

Neurons and heads are scored as in Minitron: Muralidharan et al., NeurIPS 2024, arXiv:2407.14679.

Departs: any axis is scored, at the operators that read it; one threshold for the whole network.
"""

from dataclasses import dataclass

from prunus import scores
from prunus.methods import Pruned, Run, Units, shown_batches
from prunus.options import Count
from prunus.selection import Budget
from prunus.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """The options of activation.

    Args:
        batches: The number of batches of training examples, without augmentation, that the scores are computed on.
        batch_size: The batch size.
    """

    batches: Count = 32
    batch_size: Count = 64


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Keep the units with the largest mean absolute activation."""
    graph = task.graph
    batches = shown_batches(task, run, config.batches, config.batch_size)
    sizes = scores.activation(task.model, graph, batches)
    return Pruned(keep=config.select(graph, sizes, budget))
