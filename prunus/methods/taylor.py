"""Keep the units whose removal changes the loss most, to first order, for what they cost.

Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv:1906.10771.
Departs: scored at once on a trained network, where the paper prunes a little, trains on, and scores again; and scores
are divided by the cost of a unit (how=global leaves that out).
"""

from dataclasses import dataclass

from prunus import scores
from prunus.methods import Pruned, Run, Units, shown_batches
from prunus.selection import Budget, How
from prunus.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """batches of batch_size training examples, without augmentation, are what is scored on."""

    how: How = "per_cost"
    batches: int = 32
    batch_size: int = 64


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Best units by the squared first-order change of the training loss."""
    graph = task.graph
    batches = shown_batches(task, run, config.batches, config.batch_size)
    changes = scores.taylor(task.model, graph, task.loss, batches)
    return Pruned(keep=config.select(graph, changes, budget))
