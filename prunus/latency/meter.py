"""Milliseconds as a budget: predicted, and kept by measuring.

    table = latency.tables(model, graph)                     # about a minute, kept on disk
    keep, figures = latency.select_measured(model, graph, scores, Budget(latency_ms=0.6), table)

A prediction only proposes. What it proposes is shrunk and measured in turns with the original; the time that was saved,
against what was predicted to be, corrects the next proposal; and the keep that comes back is one that was measured, and
holds. Source: ours.
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
from prunus.latency.profiling import SECONDS, measured_data, program
from prunus.latency.table import Table
from prunus.progress import silent
from prunus.selection import Budget, CostMeter, Metered, Price, Unreachable, blocks, select

TRIES = 12  # proposals until a budget counts as not to be met
NEAR = 0.02  # of the original's time: so far below the limit is near enough


CAUTION = 0.99  # of the time that should be saved, so much is counted on
LEAST_GAIN = 0.02  # of the time predicted to be saved, at least so much is hoped for


@dataclass
class _Measured:
    """A network that was measured: the share of the original's time that was predicted, and the one of each round."""

    call: Call | None  # None for the original itself
    predicted: float
    rounds: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of the original's time, as measured."""
        return statistics.median(self.rounds) if self.call else 1.0


class Meter(CostMeter):
    """Keeps budgets of milliseconds for one model, see `CostMeter`.

    table: what predicts; if None, measured when first needed, with `seconds`, `cache` and `progress` as for `tables`.
    race_s: for measuring each proposal. agree: does something in one process and tells all others what came of it, for
    no two clocks say the same.
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
        self.model, self.graph, self.runtime = model, graph, program(runtime)
        self.race_s, self.progress, self.agree = race_s, progress, agree
        self._given, self._options = table, (seconds, cache, progress)
        self._known: dict[tuple[int, ...], _Measured] = {}
        self._original_ms: list[float] = []
        self._figures: dict[tuple[int, ...], dict] = {}

    @cached_property
    def table(self) -> Predictor:
        """What predicts; the same in all processes."""
        if self._given is not None:
            return self._given
        measured = partial(measured_data, self.model, self.graph, self.runtime, *self._options)
        return Predictor(self.graph, self.agree(measured))

    def price(self, widths: Tensor) -> Tensor:
        """Predicted milliseconds, see `Predictor.price`."""
        return self.table.price(widths)

    def settle(self, budget: Budget, propose: Callable[[Price], dict]) -> dict[str, list[int]]:
        """The keep that leaves most, as predicted, of those proposed that hold as measured.

        propose(price): a keep that holds by that price. Raises BudgetError if even the least is measured to take too
        long, naming it and what holds it up.
        """
        _ = self.table  # not within what one process does: it is agreed on by itself
        keep, figures = self.agree(partial(self._settled, budget, propose))
        self._figures[self._widths(keep)] = figures
        return keep

    def figures(self, keep: Keep) -> dict[str, Any]:
        """What a keep was measured to take, as plain JSON; measured now if it was not yet."""
        widths = self._widths(keep)
        if widths not in self._figures:
            _ = self.table
            self._figures[widths] = self.agree(lambda: self._told(self._measured(keep)))
        return self._figures[widths]

    def alone(self) -> "Meter":
        """A meter that knows what this one does, for one of several processes to measure with: it tells nobody."""
        _ = self.table
        own = copy(self)
        own.agree, own._figures = lambda action: action(), {}
        return own

    # ---------------------------------------------------------------------------- in one process
    def _settled(self, budget: Budget, propose: Callable[[Price], dict]) -> tuple[dict, dict]:
        caution, proposed = CAUTION, {}
        self._race([])
        with self.progress(f"measuring in {self.runtime.name} what is proposed", TRIES) as step:
            for _ in range(TRIES):
                try:
                    keep = propose(self._price(caution))
                except Unreachable as error:
                    if not self._least_holds(error.least, budget):
                        self._refuse(propose)
                    caution = 1.0  # what was measured is counted on to the last
                    continue
                is_new = self._widths(keep) not in proposed
                proposed[self._widths(keep)] = keep
                share, limit = self._measured(keep).share, self._limit(budget)
                step(1, f"{share:.3f} of the original's time, allowed {limit:.3f}")
                if share > limit:
                    caution *= 1 if is_new else CAUTION
                elif limit - share <= NEAR or not is_new:
                    if best := self._best(proposed, budget):
                        return proposed[best], self._told(self._known[best])
                    caution *= CAUTION
        raise BudgetError(
            f"{budget}: none of {len(proposed)} networks that were tried held it for sure, the fastest took "
            f"{min(self._known[widths].share for widths in proposed):.3f} of the original's time. Times differ too "
            "much from one time to the next; measure when the machine has less to do, or give a larger budget."
        )

    def _best(self, proposed: Iterable[tuple[int, ...]], budget: Budget) -> tuple[int, ...] | None:
        """The widest that holds, and does so again in a race of its own: of several, the widest that holds is often
        one that was lucky."""
        by_width = sorted(proposed, key=lambda widths: self._known[widths].predicted, reverse=True)
        for widths in by_width:
            found = self._known[widths]
            if found.share <= self._limit(budget):
                again = self._race([found])
                if max([found.share, *again]) <= self._limit(budget):
                    return widths
        return None

    def _limit(self, budget: Budget) -> float:
        """As a share of the original's time."""
        before = self.original_ms
        return budget.limit(before) / before

    @property
    def original_ms(self) -> float:
        """The original's time in all rounds so far."""
        return statistics.median(self._original_ms)

    def _price(self, caution: float) -> Price:
        """Predictions bent to pass through what was measured; of the time saved, `caution` times as much."""
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
        """Whether the least that may be kept does, or a little more in widths that suit kernels: it may be faster."""
        units = torch.tensor([least[name] for name in self.graph.axes])
        sizes = torch.tensor([axis.size for axis in self.graph.axes.values()])
        step = blocks(self.graph, 16, halve=True)
        both = (units, torch.minimum(-(units // -step) * step, sizes))
        found = [self._measured(first_units(self.graph, widths.tolist())) for widths in both]
        return min(each.share for each in found) <= self._limit(budget)

    def _refuse(self, propose: Callable[[Price], dict]) -> None:
        """Let the selection say what cannot be reached, by what was measured."""
        try:
            propose(self._price(1.0))
        except BudgetError as error:
            raise BudgetError(f"{error} These times were measured in {self.runtime.name}.") from None

    def _measured(self, keep: Keep) -> _Measured:
        """A network of these widths after a race; which units there are makes no difference."""
        widths = self._widths(keep)
        if widths not in self._known:
            predicted = self.price(torch.tensor([widths])).item() / self.table.original_ms
            call = None
            if widths != tuple(self.graph.widths().values()):
                small = surgery.shrink(self.model, self.graph, keep, verify="off").eval()
                call = self.runtime.ready(small, self.graph.example)
            self._known[widths] = _Measured(call, predicted)
            self._race([self._known[widths]])
        return self._known[widths]

    def _race(self, others: Iterable[_Measured]) -> list[float]:
        """One race of the original and others; the shares in it alone."""
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
        return self.runtime.ready(whole, self.graph.example)

    def _widths(self, keep: Keep) -> tuple[int, ...]:
        return tuple(self.graph.widths(keep).values())

    def _told(self, found: _Measured) -> dict[str, Any]:
        if not self._original_ms:  # the original itself was asked for
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
    """`select` for a budget of milliseconds: the keep that holds as measured, and the figures.

    table: of the same model, see `tables`; its runtime is measured in unless another object is given. options: as for
    `select`. figures: original_ms, predicted_ms, measured_ms (medians of so many rounds, in turns), and how good the
    table is. Raises BudgetError if even the least takes too long; UserError for another kind of budget.
    """
    if budget.name != "latency_ms":
        raise UserError(f"select_measured keeps milliseconds; for {budget} call select.")
    runtime = table.circumstances["runtime"] if runtime is None else runtime
    meter = Meter(model, graph, runtime=runtime, table=table, progress=progress)
    keep = select(graph, scores, Metered(latency_ms=budget.value, meter=meter), **options)
    return keep, meter.figures(keep)
