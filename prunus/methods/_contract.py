"""The contract of a method: its options, what it may use of a run, and what it gives back."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self

from accelerate import PartialState
from torch import Tensor

from prunus import scores
from prunus.charts import Chart
from prunus.graph import Graph
from prunus.selection import Budget, Selection, Sparsity
from prunus.tasks import Task

HALF, MOST_ZERO = Budget(macs=0.5), Sparsity(0.8)  # the limits where none was asked for


@dataclass(frozen=True, kw_only=True)
class Options(ABC):
    """The options of a method: a frozen, keyword-only dataclass, each field of which is set by `--set name=value`.

    A method's `Config` derives from `Units` or `Weights`, or from this class if it selects in a way of its own.
    """

    removes: ClassVar[Literal["units", "weights"]]

    @abstractmethod
    def default_limit(self) -> Budget | Sparsity:
        """Return the limit that is taken where none was asked for."""

    @abstractmethod
    def check(self, graph: Graph, limit: Budget | Sparsity) -> None:
        """Raise UserError, BudgetError or FileError for what cannot be done; a run asks before anything is trained."""

    def preview(self) -> Self:
        """Return options under which nothing is trained, for `--dry-run`; UserError if the method only knows by
        training."""
        return self


@dataclass(frozen=True, kw_only=True)
class Units(Selection, Options):
    """Options of a method that scores units and removes those that `select` leaves out."""

    removes = "units"

    def default_limit(self) -> Budget:
        """Return half the multiply-accumulates."""
        return HALF

    def check(self, graph: Graph, limit: Budget) -> None:
        """Raise BudgetError if no widths meet the limit, UserError for a pattern that names nothing."""
        self.select(graph, scores.random(graph, 0), limit)


@dataclass(frozen=True, kw_only=True)
class Weights(Options):
    """Options of a method that sets single weights to zero."""

    removes = "weights"

    def default_limit(self) -> Sparsity:
        """Return 80 % zeros."""
        return MOST_ZERO


class Run(Protocol):
    """What a method may use of a run.

    seed: of everything random. progress: progress(label, total) is a context that is called with each advance.
    processes: Accelerate's state: the device, the number of processes.
    """

    seed: int
    progress: Callable
    processes: PartialState

    def folder(self, name: str) -> Path:
        """Return a folder for the checkpoints of stage `name`, made if it is not there."""

    def log(self, event: str, **values: object) -> None:
        """Append a line of plain JSON to the run's log."""

    def write(self, action: Callable[[], object]) -> None:
        """Call what writes files in one process only, while the others wait."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The choice of a method, for the unpruned model.

    keep: axis -> kept indices. weights: parameters and buffers by name, if the method trained them.
    masks: parameter -> bool tensor of its shape, True stays, for every weight whose single entries were up for
    pruning; None for methods of units. pattern: the pattern of the zeros, such as 2:4; no unit is removed then, because
    the other zeros would move out of it. left_dense: the weights that the pattern does not fit, and the reason.
    charts: charts of the method's search, for report.html.
    """

    keep: Mapping[str, Sequence[int]] = field(default_factory=dict)
    weights: Mapping[str, Tensor] | None = None
    masks: Mapping[str, Tensor] | None = None
    pattern: str | None = None
    left_dense: Mapping[str, str] = field(default_factory=dict)
    charts: Sequence[Chart] = ()


def shown_batches(task: Task, run: Run, batches: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `batches` batches of training examples in an order set by the run's seed, and show progress.

    Fewer come if the training set is smaller.
    """
    drawn = task.data.train.batches(batch_size, seed=run.seed)
    with run.progress("scoring", min(batches, math.ceil(len(task.data.train) / batch_size))) as step:
        for batch in islice(drawn, batches):
            yield batch
            step(1)
