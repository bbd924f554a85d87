"""The contract of a method: its options, its use of a run, and its result."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

from accelerate import PartialState
from torch import Tensor

from prunus import scores
from prunus.charts import Chart
from prunus.errors import UserError
from prunus.graph import Graph
from prunus.options import Checked
from prunus.selection import Budget, Selection, Sparsity
from prunus.tasks import Task

HALF, MOST_ZERO = Budget(macs=0.5), Sparsity(0.8)  # the default limits


@dataclass(frozen=True, kw_only=True)
class Options(Checked, ABC):
    """The options of a method: a frozen, keyword-only dataclass whose fields are set by `--set name=value`.

    Types say which values a field takes (prunus/options.py), such as `Count` for whole numbers from 1.

    A method's `Config` derives from `Units` or `Weights`, or from this class if it selects in its own way. Its
    docstring explains the options; `prunus methods NAME` shows it. `removes` is "units" or "weights".
    `no_steps` says why the method cannot prune in steps (`--steps`); it is empty where it can.
    """

    removes: ClassVar[Literal["units", "weights"]]
    no_steps: ClassVar[str] = ""

    @abstractmethod
    def default_limit(self) -> Budget | Sparsity:
        """Return the limit that applies if none is given."""

    def check_together(self, limit: Budget | Sparsity) -> None:
        """Raise UserError if options conflict or have no effect, with each other or with the limit.

        A run calls this before it reads or writes anything.
        """

    @abstractmethod
    def check(self, graph: Graph, limit: Budget | Sparsity) -> None:
        """Raise UserError, BudgetError or FileError if the method cannot prune this network.

        A run calls this before anything is trained, and after `check_together`.
        """

    def check_task(self, task: Task) -> None:
        """Raise UserError if the method cannot work on the task's data; called before anything is trained."""

    def why_no_steps(self) -> str:
        """Return why the method cannot prune in steps with these options, or nothing if it can."""
        return self.no_steps

    def fixed_in_search(self) -> Sequence[str] | None:
        """Return the fields of the recipe that a user cannot ask of the method's own training (`Task.search_recipe`).

        The method sets them itself, or has no use for them with these options; None: it trains nothing with these.
        """
        return None

    @property
    def recovery_purpose(self) -> Literal["recover", "scratch"]:
        """The purpose of the training after pruning: "scratch" if the method leaves weights that were never trained."""
        return "recover"

    def share_training(self, task: Task, epochs: float) -> tuple[Self, float]:
        """Divide a training between the method's search and the recovery after it.

        Args:
            task: The task.
            epochs: The epochs of both together.

        Returns:
            The options, with which the search trains for its part, and the epochs that are left for recovery: all of
            them for methods that train nothing.

        Raises:
            UserError: The search would train for longer than that.
        """
        return self, epochs

    def preview(self) -> Self:
        """Return options that train nothing, for `--dry-run`; UserError if the method decides only by training."""
        return self


@dataclass(frozen=True, kw_only=True)
class Units(Selection, Options):
    """The options of a method that scores units and keeps those that `select` chooses; see `Selection`."""

    removes = "units"

    def default_limit(self) -> Budget:
        """Return half the multiply-adds."""
        return HALF

    def check(self, graph: Graph, limit: Budget | Sparsity) -> None:
        """Raise BudgetError if no widths meet the limit, UserError if a pattern matches nothing."""
        assert isinstance(limit, Budget)  # see Method.check
        self.select(graph, scores.random(graph, 0), limit)


@dataclass(frozen=True, kw_only=True)
class Weights(Options):
    """The options of a method that sets single weights to zero."""

    removes = "weights"

    def default_limit(self) -> Sparsity:
        """Return 80 % zeros."""
        return MOST_ZERO


class Run(Protocol):
    """The part of a run that a method may use; `prunus.run.RunFolder` has all of it.

    Args:
        seed: The seed of everything random.
        progress: progress(label, total) is a context manager that yields step(done=1, note="").
        processes: Accelerate's state: the device, the number of processes.
    """

    seed: int
    progress: Callable[..., Any]
    processes: PartialState

    def folder(self, name: str) -> Path:
        """Return the folder for the checkpoints of stage `name`, made if it is not there."""
        ...

    def log(self, event: str, **values: object) -> None:
        """Append a line of plain JSON to the run's log."""

    def write(self, action: Callable[[], object]) -> None:
        """Call `action`, which writes files, in one process only, while the others wait."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The result of a method, in terms of the unpruned model.

    Args:
        keep: axis -> kept indices.
        weights: Parameters and buffers by name, if the method trained them; None: those of the model.
        masks: parameter -> bool tensor of its shape, True stays, for all weights whose single entries could be pruned;
            None for methods that remove units.
        pattern: The pattern of the zeros, such as "2:4". No unit is removed then, because the remaining zeros would
            leave their places.
        left_dense: parameter -> the reason why the pattern does not fit it.
        charts: Charts of the method's search, for report.html.
    """

    keep: Mapping[str, Sequence[int]] = field(default_factory=dict)
    weights: Mapping[str, Tensor] | None = None
    masks: Mapping[str, Tensor] | None = None
    pattern: str | None = None
    left_dense: Mapping[str, str] = field(default_factory=dict)
    charts: Sequence[Chart] = ()


def check_loss(task: Task, what: str, instead: str) -> None:
    """Raise UserError if the loss cannot be computed in evaluation mode, in which units and weights are scored.

    Args:
        task: The task.
        what: The method, or the option of it, that needs the loss.
        instead: What to take instead.
    """
    if not task.evaluates_loss:
        raise UserError(
            f"{what} needs the loss in evaluation mode, but the model returns its loss in training mode only. Give "
            f"loss=fn(output, target) of what it returns in evaluation, or take {instead}."
        )


def epochs_left(what: str, searched: float, epochs: float) -> float:
    """Return the epochs that a search leaves for recovery.

    Args:
        what: The options that set the length of the search, in words.
        searched: The epochs of the search.
        epochs: The epochs of search and recovery together.

    Returns:
        The difference.

    Raises:
        UserError: It is negative.
    """
    if searched > epochs:
        raise UserError(
            f"{what} trains for {searched:.3g} epochs in its search, but search and recovery have {epochs:g} together; "
            "give the search fewer, or a larger total_epochs."
        )
    return epochs - searched


def half_of(epochs: float) -> int:
    """Return the epochs of a search that may train for half of `epochs`, at least 1."""
    return max(1, round(epochs / 2))


def shown_batches(task: Task, run: Run, batches: int, batch_size: int) -> Iterator[tuple[Any, Any]]:
    """Iterate over batches of training examples in random order, and show the progress.

    Args:
        task: The task.
        run: The run, which gives the seed of the order.
        batches: The number of batches; fewer if the training set is smaller.
        batch_size: The batch size; a loader of the user's own has another.

    Yields:
        Inputs (B, ...) and targets (B, ...).
    """
    order = task.data.train.batches(batch_size, seed=run.seed)
    with run.progress("scoring", min(batches, task.data.train.steps(batch_size))) as step:
        for batch in islice(order, batches):
            yield batch
            step(1)
