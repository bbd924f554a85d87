"""Keep the units that another run kept in a network of the same architecture, with other weights or other data.

The first kind of transfer in PASS, Huang et al., arXiv:2407.17412. The other run may have used any method. Reads no
data.

    prunus run ... --method structure --set of=runs/first
"""

from dataclasses import dataclass

import torch

from prunus.errors import BudgetError, UserError
from prunus.export import load_keep
from prunus.graph import Graph
from prunus.methods import HALF, Options, Pruned, Run
from prunus.metrics import format_number
from prunus.selection import Budget, Metered, Sparsity, price_of
from prunus.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options of structure.

    Args:
        of: The folder of the other run, or of a saved model, whose kept units must meet the budget.
    """

    removes = "units"
    no_steps = "what another run kept is of the whole network"
    of: str = ""

    def default_limit(self) -> Budget:
        """Return half the multiply-adds."""
        return HALF

    def check_together(self, limit: Budget | Sparsity) -> None:
        """Raise UserError if no folder is given."""
        if not self.of:
            raise UserError("structure needs the folder of another run; give it as --set of=FOLDER.")

    def check(self, graph: Graph, limit: Budget | Sparsity) -> None:
        """Raise the errors of `keep`."""
        assert isinstance(limit, Budget)  # see Method.check
        self.keep(graph, limit)

    def keep(self, graph: Graph, budget: Budget) -> dict[str, list[int]]:
        """Load the keep from the folder, and check its cost; milliseconds are measured.

        Args:
            graph: The graph of the model.
            budget: The limit.

        Returns:
            axis -> kept indices.

        Raises:
            UserError: No folder is given.
            FileError: The keep belongs to another architecture.
            BudgetError: The keep costs more than the budget.
        """
        self.check_together(budget)
        keep = load_keep(self.of, graph)
        if isinstance(budget, Metered):
            figures = budget.meter.figures(keep)
            before, after = figures["original_ms"], figures["measured_ms"]
        else:
            widths = graph.widths(keep)
            sizes = torch.tensor([[axis.size, widths[name]] for name, axis in graph.axes.items()]).double().T
            before, after = price_of(graph, budget)(sizes).tolist()
        if after > budget.limit(before):
            raise BudgetError(
                f"{budget}: what {self.of} kept comes to {format_number(after)}, {after / before:.4f} of the "
                f"{format_number(before)} before. Give that budget, or the folder of a smaller network."
            )
        return keep


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Keep the units that the other run kept."""
    return Pruned(keep=config.keep(task.graph, budget))
