"""A budget of milliseconds, met by measuring.

    table = latency.measure_tables(model, graph)             # about a minute, stored on disk
    keep, figures = latency.select_measured(model, graph, scores, Budget(latency_ms=0.6), table)

A prediction only proposes. Each proposal is shrunk and measured in turns with the original; the ratio of the time saved
to the time predicted to be saved corrects the next proposal; the keep that is returned was measured and is within the
budget. If blocks have scores (`Graph.deep`), they are skipped in what is measured. Source: ours.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus import surgery
from prunus.errors import BudgetError, UserError
from prunus.export import Call
from prunus.graph import Graph, Keep
from prunus.latency.milliseconds import RACE_S
from prunus.latency.operator_timing import Runtime
from prunus.latency.predictor import Predictor, first_units, shares
from prunus.latency.profiling import SECONDS, find_runtime, measure_data
from prunus.latency.table import Table
from prunus.progress import silent
from prunus.selection import Budget, CostMeter, Metered, Price, Unreachable, blocks, is_deep, select

TRIES = 12  # proposals before a budget is refused
NEAR = 0.02  # of the original's time; a network this far below the limit is good enough
CAUTION = 0.99  # factor on the time that a proposal is expected to save
LEAST_GAIN = 0.02  # least time saved per time predicted to be saved, so that the extrapolation rises


@dataclass
class _Network:
    """A measured network. predicted: its predicted share of the original's time; rounds: the measured ones."""

    call: Call | None  # None for the original itself
    predicted: float
    rounds: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The measured share of the original's time: the median over rounds."""
        return statistics.median(self.rounds) if self.call else 1.0


class Meter(CostMeter):
    """Meets budgets of milliseconds for one model; implements `selection.CostMeter`.

    Args:
        model: The model.
        graph: Its graph.
        runtime: "torch", on the model's device, or "onnxruntime", on the processor.
        table: The predictor; None: measured at first use, with `seconds`, `cache` and `progress` as for
            `measure_tables`.
        seconds: How long to measure tables.
        race_s: How many seconds to measure each proposal.
        cache: The folder for times; None: the user's cache folder.
        progress: How to show the progress.
        agree: Runs an action in one process and returns its result in all, because no two clocks agree.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        *,
        runtime: str | Runtime = "torch",
        table: Predictor | None = None,
        seconds: float = SECONDS,
        race_s: float = RACE_S,
        cache: str | Path | None = None,
        progress: Callable = silent,
        agree: Callable[[Callable[[], Any]], Any] = lambda action: action(),
    ):
        self.model, self.graph, self.runtime = model, graph, find_runtime(runtime)
        self.race_s, self.progress, self.agree = race_s, progress, agree
        self._given, self._options = table, (seconds, cache, progress)
        self._known: dict[tuple[int, ...], _Network] = {}
        self._original_ms: list[float] = []
        self._figures: dict[tuple[int, ...], dict] = {}

    @cached_property
    def table(self) -> Predictor:
        """The predictor, the same in all processes."""
        if self._given is not None:
            return self._given
        measure = partial(measure_data, self.model, self.graph, self.runtime, *self._options)
        return Predictor(self.graph, self.agree(measure))

    def price(self, widths: Tensor) -> Tensor:
        """Predict milliseconds; see `Predictor.price`."""
        return self.table.price(widths)

    def select(self, budget: Budget, propose: Callable[[Price], dict]) -> dict[str, list[int]]:
        """Find a keep that is within the budget as measured, the widest of those proposed.

        Args:
            budget: A budget of milliseconds.
            propose: Returns a keep that is within the budget by the price that it is given.

        Returns:
            The keep: indices by axis.

        Raises:
            BudgetError: Even the smallest network was measured to take too long; the message says what limits it.
        """
        _ = self.table  # before `agree`, because it agrees on the table itself
        keep, figures = self.agree(partial(self._select, budget, propose))
        self._figures[self._widths(keep)] = figures
        return keep

    def figures(self, keep: Keep) -> dict[str, Any]:
        """The measured and predicted times of a keep, as plain JSON; measured now if they are not known."""
        others = keep.keys() - self.graph.axes.keys()
        if not is_deep(self.graph) and any(name in self.graph.blocks for name in others):
            return self.deep().figures(keep)
        widths = self._widths(keep)
        if widths not in self._figures:
            _ = self.table
            self._figures[widths] = self.agree(lambda: self._describe(self._measure(keep)))
        return self._figures[widths]

    def deep(self) -> "Meter":
        """Return the meter of the same model whose widths include its blocks, as those of `Graph.deep`.

        Raises:
            UserError: The table that was given knows widths alone.
        """
        return self._deep

    @cached_property
    def _deep(self) -> "Meter":
        if is_deep(self.graph):
            return self
        if self._given is not None and not self._given.is_deep:
            raise UserError(
                "the table knows the milliseconds of widths alone, but blocks have scores, too; measure one with "
                "table = prunus.latency.measure_tables(model, graph.deep)."
            )
        seconds, cache, progress = self._options
        return Meter(
            self.model,
            self.graph.deep,
            runtime=self.runtime,
            table=self._given,
            seconds=seconds,
            race_s=self.race_s,
            cache=cache,
            progress=progress,
            agree=self.agree,
        )

    def local_copy(self) -> "Meter":
        """Copy the meter with its measurements, for use in a single process; the copy does not broadcast."""
        _ = self.table
        own = copy(self)
        own.agree, own._figures = lambda action: action(), {}
        vars(own).pop("_deep", None)  # which broadcasts
        return own

    # ---------------------------------------------------------------------------- in one process
    def _select(self, budget: Budget, propose: Callable[[Price], dict]) -> tuple[dict, dict]:
        caution, proposed = CAUTION, {}
        self._race([])
        with self.progress(f"measuring proposals in {self.runtime.name}", TRIES) as step:
            for _ in range(TRIES):
                try:
                    keep = propose(self._price(caution))
                except Unreachable as error:
                    if not self._least_holds(error.min_units, budget):
                        self._refuse(propose)
                    caution = 1.0  # the measured times leave no margin for caution
                    continue
                is_new = self._widths(keep) not in proposed
                proposed[self._widths(keep)] = keep
                share, limit = self._measure(keep).share, self._limit(budget)
                step(1, f"{share:.3f} of the original's time, allowed {limit:.3f}")
                if share > limit:
                    caution *= 1 if is_new else CAUTION
                elif limit - share <= NEAR or not is_new:
                    if best := self._best(proposed, budget):
                        return proposed[best], self._describe(self._known[best])
                    caution *= CAUTION
        raise BudgetError(
            f"{budget}: none of {len(proposed)} networks that were measured is reliably within it, the fastest took "
            f"{min(self._known[widths].share for widths in proposed):.3f} of the original's time. Times vary too much "
            "between measurements; measure when the machine is less busy, or give a larger budget."
        )

    def _best(self, proposed: Iterable[tuple[int, ...]], budget: Budget) -> tuple[int, ...] | None:
        """The widest network that is within the budget twice: it is measured again, because the widest of several
        may be within the budget only by chance."""
        by_width = sorted(proposed, key=lambda widths: self._known[widths].predicted, reverse=True)
        for widths in by_width:
            found = self._known[widths]
            if found.share <= self._limit(budget):
                again = self._race([found])
                if max([found.share, *again]) <= self._limit(budget):
                    return widths
        return None

    def _limit(self, budget: Budget) -> float:
        """The budget as a share of the original's time."""
        before = self.original_ms
        return budget.limit(before) / before

    @property
    def original_ms(self) -> float:
        """The original's time in milliseconds: the median over all rounds so far."""
        return statistics.median(self._original_ms)

    def _price(self, caution: float) -> Price:
        """Predictions corrected to pass through the measured points; `caution` scales the time saved."""
        saved = {each.predicted: each.share for each in self._known.values() if each.predicted < 1 - 1e-6}
        points = {(0.0,): 0.0} | {(1 - predicted,): 1 - share for predicted, share in saved.items()}
        last = max(points)
        gain = points[last] / last[0] if saved else 1.0
        points[(1.0,)] = points[last] + max(gain, LEAST_GAIN) * (1 - last[0])
        bent, before = Table(points), self.original_ms

        def price(widths: Tensor) -> Tensor:
            return before * (1 - caution * bent([1 - self.price(widths) / self.table.original_ms]))

        return price

    def _least_holds(self, least: Mapping[str, int], budget: Budget) -> bool:
        """Whether the smallest network is within the budget, or else one a little wider, whose widths suit kernels."""
        units = torch.tensor([least[name] for name in self.graph.axes])
        if is_deep(self.graph) and self.graph.blocks.leaves_none(first_units(self.graph, units.tolist())):
            units[list(self.graph.axes).index(next(iter(self.graph.blocks)))] = 1  # one has to stay
        sizes = torch.tensor([axis.size for axis in self.graph.axes.values()])
        step = blocks(self.graph, 16, halve=True)
        both = (units, torch.minimum(-(units // -step) * step, sizes))
        found = [self._measure(first_units(self.graph, widths.tolist())) for widths in both]
        return min(each.share for each in found) <= self._limit(budget)

    def _refuse(self, propose: Callable[[Price], dict]) -> None:
        """Raise the selection's own error for the measured times."""
        try:
            propose(self._price(1.0))
        except BudgetError as error:
            raise BudgetError(f"{error} These times were measured in {self.runtime.name}.") from None

    def _measure(self, keep: Keep) -> _Network:
        """Measure a network of these widths, once; its time does not depend on which units stay."""
        widths = self._widths(keep)
        if widths not in self._known:
            predicted = self.price(torch.tensor([widths])).item() / self.table.original_ms
            call = None
            if widths != tuple(self.graph.widths().values()):
                small = surgery.shrink(self.model, self.graph, keep, verify="off").eval()
                call = self.runtime.prepare(small, self.graph.example)
            self._known[widths] = _Network(call, predicted)
            self._race([self._known[widths]])
        return self._known[widths]

    def _race(self, others: Iterable[_Network]) -> list[float]:
        """Time the original and others in turns; returns the others' shares of the original's time in this race."""
        others = [each for each in others if each.call]
        calls = [self._original, *(each.call for each in others if each.call)]
        rounds = self.runtime.race(calls, self.race_s, lambda done: None)
        self._original_ms += rounds[0]
        for each, times in zip(others, rounds[1:], strict=True):
            each.rounds += [a / b for a, b in zip(times, rounds[0], strict=True)]
        return shares(rounds)

    @cached_property
    def _original(self) -> Call:
        whole = surgery.shrink(self.model, self.graph, {}, verify="off").eval()
        return self.runtime.prepare(whole, self.graph.example)

    def _widths(self, keep: Keep) -> tuple[int, ...]:
        return tuple(self.graph.widths(keep).values())

    def _describe(self, found: _Network) -> dict[str, Any]:
        if not self._original_ms:  # `found` is the original itself
            self._race([])
        before, table = self.original_ms, self.table
        return {
            "runtime": self.runtime.name,
            "device": table.circumstances["device"],
            "threads": table.circumstances["threads"],
            "original_ms": before,
            "predicted_ms": before * found.predicted,
            "measured_ms": before * found.share,
            "rounds": len(found.rounds),
            "tried": len(self._known),
            **asdict(table.fit),
            "table_s": table.seconds,
            "table_points": table.measured,
            "left_out": table.left_out,
        }


def select_measured(
    model: nn.Module,
    graph: Graph,
    scores: Mapping[str, Tensor],
    budget: Budget,
    table: Predictor,
    *,
    runtime: str | Runtime | None = None,
    progress: Callable = silent,
    **options: Any,
) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Select units for a budget of milliseconds. Source: ours.

    Args:
        model: The model.
        graph: Its graph.
        scores: One number per unit by axis; higher means keep.
        budget: Milliseconds, or a share of the original's; limits of other costs may stand beside them.
        table: The predictor of the same model, from `measure_tables`; that of `graph.deep` if blocks have scores.
        runtime: The runtime to measure in; None: the table's.
        progress: How to show the progress.
        options: The options of `select`.

    Returns:
        The keep, and its figures: original_ms, predicted_ms, measured_ms (medians over `rounds`, in turns), and the
        table's quality.

    Raises:
        BudgetError: Even the smallest network takes too long.
        UserError: The budget has no limit of milliseconds, or blocks have scores and the table knows widths alone.
    """
    if "latency_ms" not in budget.limits:
        raise UserError(f"select_measured needs a budget of latency_ms; for {budget} call select.")
    runtime = table.circumstances["runtime"] if runtime is None else runtime
    meter = Meter(model, graph, runtime=runtime, table=table, progress=progress)
    keep = select(graph, scores, Metered(**budget.limits, meter=meter), **options)
    return keep, meter.figures(keep)
