"""Keep the units whose removal changes the loss most, to first order, relative to their cost.

Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv:1906.10771.

Departs: the trained network is scored once unless `--steps` is given, whereas the paper alternates between pruning a
little, training and scoring; and scores are divided by the cost of a unit (how=global does not divide).
"""

from dataclasses import dataclass

from prunus import scores
from prunus.graph import Graph
from prunus.methods import Pruned, Run, Units, check_loss, shown_batches
from prunus.options import Count
from prunus.selection import Budget, How, Sparsity
from prunus.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """The options of taylor.

    Args:
        batches: The number of batches of training examples, without augmentation, that the scores are computed on.
        batch_size: The batch size.
        depth: Whether blocks that can be skipped compete with units.
    """

    how: How = "per_cost"
    batches: Count = 32
    batch_size: Count = 64
    depth: bool = False

    def why_no_steps(self) -> str:
        """Return why blocks cannot be chosen in steps."""
        return "blocks are chosen in the whole network (depth=True)" if self.depth else ""

    def check(self, graph: Graph, limit: Budget | Sparsity) -> None:
        """Raise BudgetError if no widths, and no blocks that compete, meet the limit."""
        assert isinstance(limit, Budget)  # see Method.check
        self.select(graph, scores.random(graph.deep if self.depth else graph, 0), limit)

    def check_task(self, task: Task) -> None:
        """Raise UserError if the task has no loss in evaluation mode."""
        check_loss(task, "taylor", "another method, such as magnitude or activation")


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Keep the units with the largest squared first-order change of the training loss."""
    graph = task.graph
    batches = shown_batches(task, run, config.batches, config.batch_size)
    changes = scores.taylor(task.model, graph, task.loss, batches, depth=config.depth)
    return Pruned(keep=config.select(graph, changes, budget))
