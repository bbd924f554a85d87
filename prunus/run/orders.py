"""The pieces of work of a comparison: the base of a seed, or one arm; carried out here or in a process of its own."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from prunus.data import Data
from prunus.progress import silent
from prunus.run.folder import check_folder
from prunus.run.pipeline import NOTHING_PRUNED, WHOLE, collect_settings, prune, train_base
from prunus.run.records import file_of
from prunus.run.settings import READ_BY, Settings
from prunus.selection import Budget, Sparsity
from prunus.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is pruned: the arguments of `prune` that all runs of a comparison share.

    Args:
        model: The model, or its SPEC.
        example: One input, or None.
        task: A task of the user's own as an object, or None.
        data: The data, or their SPEC.
    """

    model: nn.Module | str | None = None
    example: Any = None
    task: Task | None = None
    data: Data | str | None = None

    @property
    def is_named(self) -> bool:
        """Whether another process can make it from names."""
        named = (isinstance(each, str | None) for each in (self.model, self.data))
        return all(named) and self.example is None and self.task is None


@dataclass(frozen=True, kw_only=True)
class Order:
    """A piece of work.

    Args:
        name: Its name, unique in a comparison.
        out: The folder of its run.
        settings: The settings of its run.
        limit: The limit; None: this is a base.
        base: The folder of the base that it begins with; None: this is a base.
        needs: The names of the orders that have to be done before.
    """

    name: str
    out: Path
    settings: Settings
    limit: Budget | Sparsity | None = None
    base: Path | None = None
    needs: tuple[str, ...] = ()

    @property
    def stages(self) -> list[str]:
        """The stages of its run that it is about."""
        return [stage for stage in READ_BY if (stage == "base") == (self.base is None)]

    def count_finished(self) -> int:
        """Count those of its stages that are finished."""
        return sum(file_of(self.out, stage).exists() for stage in self.stages)

    def is_done(self) -> bool:
        """Return whether nothing is left to do."""
        return (
            file_of(self.out, "base").exists() if self.base is None else (self.out / "report.html").exists()
        )


def check_order(order: Order, subject: Subject, task: Task | None) -> None:
    """Raise UserError if the folder of an order holds something that was made otherwise.

    Args:
        order: The order.
        subject: What is pruned.
        task: The task, if it is the user's own.
    """
    settings, limit = order.settings, order.limit
    if limit is None:
        settings, limit = replace(settings, **NOTHING_PRUNED), WHOLE
    stored = collect_settings(subject.model, task, subject.data, limit, settings)
    check_folder(order.out, stored, resume=True)


def carry_out(order: Order, subject: Subject, progress: Callable[..., Any] = silent) -> None:
    """Do a piece of work, or continue it; the errors are those of `prune`.

    Args:
        order: The work.
        subject: What is pruned.
        progress: How to show the progress.
    """
    what: dict[str, Any] = {
        "task": subject.task,
        "data": subject.data,
        "progress": progress,
        "out": order.out,
    }
    what |= {"settings": order.settings, "resume": True}
    if order.base is None:
        train_base(subject.model, subject.example, **what)
    else:
        prune(subject.model, subject.example, budget=order.limit, base=order.base, **what)


def to_line(order: Order, subject: Subject) -> bytes:
    """Write an order on something that has names as a line of JSON."""
    limit = order.limit and order.limit.limits
    base = order.base and str(order.base)
    values = {"name": order.name, "out": str(order.out), "base": base, "limit": limit}
    values |= {"settings": asdict(order.settings), "model": subject.model, "data": subject.data}
    return json.dumps(values).encode() + b"\n"


def from_line(line: bytes) -> tuple[Order, Subject]:
    """Read what `to_line` wrote."""
    values = json.loads(line)
    settings = Settings(**{name: _tuple(value) for name, value in values["settings"].items()})
    limit = None
    if limits := values["limit"]:
        limit = Sparsity(limits["sparsity"]) if "sparsity" in limits else Budget(**limits)
    base = values["base"] and Path(values["base"])
    order = Order(name=values["name"], out=Path(values["out"]), settings=settings, limit=limit, base=base)
    return order, Subject(model=values["model"], data=values["data"])


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Queue:
    """The orders of a comparison that wait, and those that failed with their reasons.

    Args:
        orders: The orders, each after those that it needs.
    """

    def __init__(self, orders: list[Order]):
        self.names = [order.name for order in orders]
        self.waiting = [order for order in orders if not order.is_done()]
        self.total = len(self.waiting)
        self.open = {order.name for order in self.waiting}
        self.failed: dict[str, str] = {}

    def take(self) -> Order | None:
        """Take the next order of which nothing that it needs is open; None if there is none at the moment.

        An order that needs one that failed fails with it.
        """
        for order in list(self.waiting):
            if lost := [name for name in order.needs if name in self.failed]:
                self.waiting.remove(order)
                self.end(order, f"{lost[0]}, which it needs, failed: {self.failed[lost[0]]}")
            elif not self.open.intersection(order.needs):
                self.waiting.remove(order)
                return order
        return None

    def end(self, order: Order, reason: str | None) -> None:
        """Note that an order has ended; reason: why it failed, or None."""
        self.open.discard(order.name)
        if reason is not None:
            self.failed[order.name] = reason

    @property
    def done(self) -> int:
        """How many orders have ended."""
        return self.total - len(self.open)

    def drain(self) -> Iterator[Order]:
        """Iterate over the orders one at a time; each has to be ended before the next is taken."""
        while (order := self.take()) is not None:
            yield order
