"""Keep the units that another run kept in a network of the same architecture, with other weights or other data.

The first kind of transfer in PASS, Huang et al., arXiv:2407.17412. The other run may have used any method. Reads no
data.

weights=anew: the smaller network is initialised again and trained from scratch, which tells what widths are worth
without the weights: the control of Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, arXiv:1810.05270.

    prunus run ... --method structure --set of=runs/first
    prunus run ... --method structure --set of=runs/first --set weights=anew
"""

from dataclasses import dataclass
from typing import Literal

from prunus.errors import BudgetError, UserError
from prunus.export import load_keep
from prunus.graph import Graph
from prunus.methods import HALF, Options, Pruned, Run
from prunus.metrics import format_number
from prunus.search import reinitialise, scatter
from prunus.selection import CLOSED_FORMS, Budget, Metered, Sparsity, cost
from prunus.surgery import shrink
from prunus.tasks import Task
from prunus.train import named_tensors


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options of structure.

    Args:
        of: The folder of the other run, or of a saved model, whose kept units must meet the budget.
        weights: "base": the weights of the network; "anew": reinitialised ones, with which recovery is a training from
            scratch.
    """

    removes = "units"
    no_steps = "what another run kept is of the whole network"
    of: str = ""
    weights: Literal["base", "anew"] = "base"

    @property
    def recovery_purpose(self) -> Literal["recover", "scratch"]:
        """The purpose of the training after pruning."""
        return "scratch" if self.weights == "anew" else "recover"

    def default_limit(self) -> Budget:
        """Return half the multiply-adds."""
        return HALF

    def check_together(self, limit: Budget | Sparsity) -> None:
        """Raise UserError if no folder is given."""
        if not self.of:
            raise UserError("structure needs the folder of another run; give it as --set of=FOLDER.")

    def check_task(self, task: Task) -> None:
        """Raise UserError if weights=anew could not initialise all parameters."""
        if self.weights == "base":
            return
        stay = [
            f"{name}.{parameter}".lstrip(".")
            for name, module in task.model.named_modules()
            for parameter, _ in module.named_parameters(recurse=False)
            if not callable(getattr(module, "reset_parameters", None))
        ]
        if stay:
            more = f" and {len(stay) - 1} more" if stay[1:] else ""
            raise UserError(
                f"weights=anew cannot initialise {stay[0]}{more}: the module has no method reset_parameters. Define "
                "one, or leave weights=base."
            )

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
        for part in budget.parts:
            if part.name in CLOSED_FORMS:
                before, after = (cost.of(graph, part.name, graph.widths(each)) for each in ({}, keep))
            else:
                assert isinstance(budget, Metered)  # others name closed forms alone
                figures = budget.meter.figures(keep)
                before, after = figures["original_ms"], figures["measured_ms"]
            if after > part.amount(before):
                raise BudgetError(
                    f"{part}: what {self.of} kept comes to {format_number(after)}, {after / before:.4f} of the "
                    f"{format_number(before)} before. Give that budget, or the folder of a smaller network."
                )
        return keep


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Keep the units that the other run kept."""
    keep = config.keep(task.graph, budget)
    if config.weights == "base":
        return Pruned(keep=keep)
    small = shrink(task.model, task.graph, keep, verify="off")
    reinitialise(small, task.example, (), run.seed)
    return Pruned(keep=keep, weights=named_tensors(scatter(task.model, task.graph, keep, small)))
