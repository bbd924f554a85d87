"""Keep the units that another run kept, of a network of the same architecture with other weights or on other data.

The first kind of transfer in PASS (Huang et al., arXiv:2407.17412); it takes the result of any method. Reads no data.

    prunus run ... --method structure --set of=runs/first
"""

from dataclasses import dataclass

import torch

from prunus.errors import BudgetError, UserError
from prunus.export import load_keep
from prunus.graph import Graph
from prunus.methods import HALF, Options, Pruned, Run
from prunus.selection import Budget, Metered, price_of, short
from prunus.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """of: the folder of the run, or of a model that was saved, whose units are kept; it has to meet the budget."""

    removes = "units"
    of: str = ""

    def default_limit(self) -> Budget:
        """Return half the multiply-accumulates."""
        return HALF

    def check(self, graph: Graph, limit: Budget) -> None:
        """Raise what `keep` does."""
        self.keep(graph, limit)

    def keep(self, graph: Graph, budget: Budget) -> dict[str, list[int]]:
        """Return the keep in the folder.

        Milliseconds are measured. Raises FileError if it is of another architecture, BudgetError if it costs more than
        the budget.
        """
        if not self.of:
            raise UserError("structure takes the units from another run: --set of=FOLDER says from which.")
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
                f"{budget}: what {self.of} kept comes to {short(after)}, {after / before:.4f} of the {short(before)} "
                "before. Give that budget, or take a smaller network's."
            )
        return keep


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """The units that the other run kept."""
    return Pruned(keep=config.keep(task.graph, budget))
