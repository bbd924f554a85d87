"""Choosing units: scores and a budget give a keep.

All ways of ranking use one algorithm (curves several times): the units of each axis are sorted by falling score and cut
into blocks, all blocks enter one queue by their score, and are taken from its front as long as they fit the budget.

    global      scores as they are
    per_cost    scores divided by the cost of one unit of the axis: the greedy knapsack, for scores in one currency
                over all axes, such as the change of the loss
    curves      scores divided by that cost at the widths which are chosen, so that the sum of the scores left out is
                least (multiplier.py)
    uniform     the rank within the axis, divided by its size: every axis keeps the same share
    isomorphic  the share of units, over all axes of the same topology, with a score no higher
                (Fang et al., Isomorphic Pruning, ECCV 2024, arXiv:2407.04616)

Adding a block never lowers a cost, so the number of blocks that fit is found by bisection, with many candidates in a
query. The cost of a block is the budget's closed form, or any given price that never falls (prices.py); milliseconds
are predicted and measured by the meter of a `Metered` budget (prunus/latency/meter.py).
Scores for blocks (`graph.blocks`) let these compete with the units: a block is an axis of one unit, which costs all
that is in it. If all scores are of blocks, widths stay as they are.
With `uniform`, axes are tied (shares.py): one block of the queue is of all the axes of a tie.
Shapes: A axes, N blocks in the queue, C candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from prunus.errors import BudgetError, UserError, unknown
from prunus.graph import Graph
from prunus.metrics import format_number
from prunus.options import Checked, Count, check_value
from prunus.selection import cost
from prunus.selection.bounds import CAP, FLOOR, Bound, min_units
from prunus.selection.budget import Budget, Metered
from prunus.selection.depth import with_blocks
from prunus.selection.fill import Price, _approach, _fill, _Limits, _queue
from prunus.selection.multiplier import least_left_out
from prunus.selection.prices import joint_price, meter_for, price_of
from prunus.selection.shares import Shares

How = Literal["global", "per_cost", "curves", "uniform", "isomorphic"]
TOLERANCE = 0.005  # of the original's cost: a keep this far below the budget is near enough
FREE = 1e-9  # of the original's cost: a cheaper unit counts as free (peak memory, away from the peak)


@dataclass(frozen=True, kw_only=True)
class Bounds(Checked):
    """The options of `select` that say which units and blocks may go, as part of a method's options.

    Args:
        floor: The fewest units of an axis to keep: an int counts units, a float is a share of the axis.
        cap: The most units of an axis to remove, in the same form.
        freeze: Patterns of axes or layers that keep all units.
        only: Patterns of the axes or layers that may shrink; empty: all, but those coupled by rotary embeddings.
    """

    floor: Bound = FLOOR
    cap: Bound = CAP
    freeze: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def select(
        self,
        graph: Graph,
        scores: Mapping[str, Tensor],
        budget: Budget,
        *,
        price: Price | None = None,
        within: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, list[int]]:
        """Call `select` with these options."""
        return select(graph, scores, budget, price=price, within=within, **self.rules(graph))

    def rules(self, graph: Graph) -> dict[str, Any]:
        """Return the options of `select` for a graph; a method that keeps axes whole overrides this."""
        return {each.name: getattr(self, each.name) for each in fields(Bounds)}


@dataclass(frozen=True, kw_only=True)
class Selection(Bounds):
    """The options of `select`, as part of a method's options; see also `Bounds`.

    Args:
        how: The comparison of units: by their scores (global), by their scores per cost in the whole network (per_cost)
            or in the smaller one (curves), with the same share of every axis (uniform), or within axes of the same
            topology (isomorphic).
        prefer: The preferred widths: multiples that are fast on most hardware (speed); any number, so that the budget
            is spent to the last unit (quality); or those that are fast in this model on this machine, which a run
            measures first (measured).
        round_to: The number of which widths become multiples; None: what `prefer` says.
        widths: axis -> the numbers of units that it may keep; None: any number. Python code can set it; with
            prefer=measured the run sets it to the widths that it found fast.
        uniform: Whether all blocks get the same widths, such that the model's config can say them.
    """

    searches_widths: ClassVar[bool] = False  # whether a method searches for widths itself

    how: How = "global"
    prefer: Literal["speed", "quality", "measured"] = "speed"
    round_to: Count | None = None
    widths: dict[str, tuple[int, ...]] | None = None
    uniform: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.searches_widths and (self.prefer == "measured" or self.widths or self.uniform):
            raise UserError(
                "this method searches for widths itself, among multiples of round_to. It cannot be held to measured "
                "widths, nor to the same widths in all blocks: leave out prefer=measured, widths and uniform, or take "
                "a method that chooses by scores, such as taylor."
            )
        taken = {"quality": (None, 1), "measured": (None,)}
        if self.round_to not in taken.get(self.prefer, (self.round_to,)):
            what = {"quality": "any widths", "measured": "widths that it measures"}[self.prefer]
            raise UserError(
                f"prefer={self.prefer} takes {what}, round_to={self.round_to} does not; give one of them."
            )

    @property
    def multiple(self) -> int | None:
        """The number of which widths become multiples, for `round_to` of `select`."""
        return 1 if self.prefer == "quality" else self.round_to

    def rules(self, graph: Graph) -> dict[str, Any]:
        """Return the options of `select` for a graph."""
        if self.prefer == "measured" and self.widths is None:
            raise UserError(
                "prefer=measured needs measured widths, which a run finds by itself. In code of your own:\n"
                "    table = prunus.latency.measure_tables(model, graph)\n"
                "    keep = prunus.select(..., widths=prunus.latency.fast_widths(graph, table.price))"
            )
        return super().rules(graph) | {
            "how": self.how,
            "round_to": self.multiple,
            "widths": self._widths_of(graph),
            "uniform": self.uniform,
        }

    def _widths_of(self, graph: Graph) -> dict[str, list[int]] | None:
        """The widths that are left on a graph whose axes may be smaller than those that were measured."""
        if self.widths is None:
            return None
        sizes = {name: axis.size for name, axis in graph.axes.items()}
        return {
            name: [width for width in widths if width <= sizes[name]]
            for name, widths in self.widths.items()
            if name in sizes
        }


def select(
    graph: Graph,
    scores: Mapping[str, Tensor],
    budget: Budget,
    *,
    price: Price | None = None,
    within: Mapping[str, Sequence[int]] | None = None,
    how: How = "global",
    round_to: int | None = None,
    widths: Mapping[str, Sequence[int]] | None = None,
    floor: Bound = FLOOR,
    cap: Bound = CAP,
    freeze: Sequence[str] = (),
    only: Sequence[str] = (),
    uniform: bool = False,
) -> dict[str, list[int]]:
    """Choose the best-scored units that fit the budget.

    Args:
        graph: The graph of the model.
        scores: axis -> float tensor (size,); higher means keep. Axes that stay whole need none, and blocks without one
            stay.
        budget: The budget.
        price: price(widths (C, A)) -> costs (C,) in the budget's unit; None: the closed form, or the measurements of a
            `Metered` budget. If blocks have scores, the axes are those of `graph.deep`.
        within: axis -> the units that may be chosen; None, or an axis left out: all.
        how: The ranking of units: global, per_cost, curves, uniform or isomorphic; see the top of this file.
        round_to: The number of which widths become multiples, unless the axis stays whole, or `within` leaves less than
            one multiple. None: multiples of 16 (of 8, 4, 2 or 1 in dimensions below 32, 16, 8 or 4, or if the budget
            cannot be met otherwise), and one axis may leave that grid, so that the cost is below the budget by at most
            0.5 % of the original's, or by less than one unit. With a given price no axis leaves it, because odd widths
            take longer than the next multiple.
        widths: axis -> the numbers of units that it may keep, such as those that are fast on a machine
            (`latency.fast_widths`); they take the place of `round_to`. An axis may always stay whole, and one that is
            left out may keep any number. What one axis cannot use of the budget is spent on others.
        floor: The fewest units to keep; see `min_units`.
        cap: The most units to remove; see `min_units`.
        freeze: Patterns of axes that keep all units: kinds ("heads"), names of axes, or of layers; see `min_units`.
        only: Patterns of the axes that may shrink; see `min_units`.
        uniform: Whether axes of the same place in repeated blocks keep equally many units. Of a model that is made from
            a config (those of transformers) all widths are then such that its config says them, and what no config
            says stays whole: `save_pretrained` of the small model can be loaded by `from_pretrained`.

    Returns:
        axis -> sorted kept indices.

    Raises:
        BudgetError: The budget cannot be met; the message says what can be reached.
        UserError: An argument is wrong.
    """
    check_value("how", how, How)
    check_value("round_to", round_to, Count | None)
    check_value("uniform", uniform, bool)
    check_widths(graph, widths, round_to)
    closed = {name: limit for name, limit in budget.limits.items() if name in cost.CLOSED_FORMS}
    if price is None and isinstance(budget, Metered) and len(closed) < len(budget.limits):
        rules: dict[str, Any] = {
            "within": within,
            "how": how,
            "round_to": round_to,
            "widths": widths,
            "floor": floor,
            "cap": cap,
        }
        again = partial(select, graph, scores, freeze=freeze, only=only, uniform=uniform, **rules)
        if closed:
            again(Budget(**closed))  # refuse now what no measurement could change
        timed = next(part for part in budget.parts if part.name not in closed)
        deep, *_ = with_blocks(graph, scores)
        return meter_for(deep, budget).select(
            timed, lambda price: again(budget, price=joint_price(deep, budget, price))
        )
    graph, scores, unscored = with_blocks(graph, scores)
    measured = price is not None
    within = within or {}
    shares = Shares.of(graph, uniform)
    bounds = shares.bounded(min_units(graph, floor, cap, freeze, only))
    bounds |= {name: (graph.axes[name].size, "no score") for name in unscored}
    whole = {
        name: torch.zeros(axis.size) for name, axis in graph.axes.items() if bounds[name][0] == axis.size
    }
    scores = whole | dict(scores)
    order = {
        name: _sort_units(name, scores, axis.size, within.get(name)) for name, axis in graph.axes.items()
    }
    price_axes = price or price_of(graph, budget)

    def price_parts(parts: Tensor) -> Tensor:
        return price_axes(shares.widths(parts))

    most, sizes = shares.most(order), shares.parts
    before = price_parts(sizes[None]).item()
    limit = budget.limit(before)
    bound, reasons = shares.fewest(bounds)
    limits = shares.limits(price_parts, limit, bound, most, round_to, widths)
    if limits.costs(limits.base) > limit:
        raise _unreachable(limits, budget, shares, reasons)
    base, steps = limits.base, limits.steps
    # Between measured points a table is flat or steep by chance, so there the cost of a whole block counts.
    probe = torch.minimum(steps, sizes - 1).clamp_min(1) if measured else torch.ones(len(sizes))

    def part_costs(parts: Tensor) -> Tensor:
        """The cost of one part of each variable, as a share of the original's."""
        change = torch.where(parts > probe, -probe, probe)
        return ((price_parts(parts + change.diag()) - price_parts(parts[None])) / change / before).clamp_min(
            FREE
        )

    tops = limits.sizes.long().tolist()
    means, sums = shares.scores(order)
    if how == "curves":
        falling = [score[:top] for score, top in zip(sums, tops, strict=True)]
        parts, queue = least_left_out(limits, falling, part_costs)
    else:
        kinds = [graph.topology(first) for first, *_ in shares.names]
        ranked = [s / c for s, c in zip(sums, part_costs(sizes), strict=True)] if how == "per_cost" else means
        ranked = _rank(ranked, kinds, how)
        queue = _queue([values[:top] for values, top in zip(ranked, tops, strict=True)], limits)
        parts = _fill(limits, base, queue)
    if round_to is None and widths is None and not measured:
        anywhere = replace(limits, sizes=most)  # the one axis that leaves the grid may do so in a part of it
        parts = _approach(anywhere, parts, queue, enough=limit - TOLERANCE * before)
    chosen = shares.by_axis(shares.sayable(parts, base, steps))
    return {name: units[: chosen[name]].sort().values.tolist() for name, (_, units) in order.items()}


def check_widths(graph: Graph, widths: Mapping[str, Sequence[int]] | None, round_to: int | None) -> None:
    """Raise UserError for widths that an axis cannot have, or that are given together with `round_to`."""
    if widths is None:
        return
    if round_to is not None:
        raise UserError(f"widths and round_to={round_to} say two things about the same; give one.")
    for name, numbers in widths.items():
        if name not in graph.axes:
            raise unknown("axis", name, graph.axes)
        size = graph.axes[name].size
        wrong = [n for n in numbers if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= size]
        if wrong:
            raise UserError(
                f"widths of axis {name}: expected whole numbers from 1 to {size}, got {wrong[0]!r}."
            )


class Unreachable(BudgetError):
    """A budget below the cost of the fewest units that may be kept.

    `min_units` holds those units by axis.
    """

    min_units: Mapping[str, int]


def _sort_units(
    name: str, scores: Mapping[str, Tensor], size: int, there: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """Sort the units `there` by falling score, equal scores by rising unit; returns scores and units."""
    if name not in scores:
        raise UserError(f"no scores for axis {name}; there are some for {', '.join(scores) or 'none'}.")
    if scores[name].is_meta:
        raise UserError(
            f"scores of axis {name} hold no numbers, because they are on the meta device. Score a model that has its "
            "weights; its graph, and that of an empty one, are the same."
        )
    score = scores[name].detach().double().cpu()
    if score.shape != (size,):
        raise UserError(f"scores of axis {name}: expected shape ({size},), got {tuple(score.shape)}.")
    if not score.isfinite().all():
        bad = int((~score.isfinite()).sum())
        raise UserError(f"scores of axis {name}: {bad} of {size} are NaN or infinite.")
    units = torch.arange(size) if there is None else torch.tensor(sorted(there))
    falling, order = score[units].sort(descending=True, stable=True)
    return falling, units[order]


def _rank(values: list[Tensor], kinds: Sequence[Any], how: str) -> list[Tensor]:
    """Return for each variable the numbers, falling, by which its parts are compared."""
    if how == "uniform":
        return [1 - torch.arange(len(value), dtype=torch.float64) / len(value) for value in values]
    if how != "isomorphic":
        return values
    pools = {kind: [v for v, k in zip(values, kinds, strict=True) if k == kind] for kind in kinds}
    rising = {kind: torch.cat(pool).sort().values for kind, pool in pools.items()}
    return [
        torch.searchsorted(rising[kind], value, right=True) / len(rising[kind])
        for kind, value in zip(kinds, values, strict=True)
    ]


def _unreachable(
    limits: _Limits, budget: Budget, shares: Shares, reasons: Sequence[tuple[str, str]]
) -> Unreachable:
    """Make the error that says what can be reached, and which axes prevent more."""
    depth = [shares.graph.axes[first].kind == "depth" for first, *_ in shares.names]
    lowest = 1 - torch.tensor(depth).double()
    before, reach, single = map(limits.costs, (shares.parts, limits.base, lowest))
    saved = reach - limits.price(limits.base - (limits.base - lowest).diag())
    held = []
    for i in saved.argsort(descending=True)[:5].tolist():
        name, why = reasons[i]
        each = shares.units[name]
        blocks = f", in blocks of {limits.steps[i] * each}" if limits.steps[i] * each > 1 else ""
        blocks += ", of the widths allowed" if limits.stops is not None else ""
        tied = f" (and {len(shares.names[i]) - 1} tied to it)" if len(shares.names[i]) > 1 else ""
        if saved[i] > 0:
            left, of = int(limits.base[i]) * each, int(shares.parts[i]) * each
            held.append(f"{name}{tied} keeps {left} of {of} ({why}{blocks})")
    amount = f"{budget.name} come to {format_number(reach)} at the least, {reach / before:.4f} of the "
    amount += f"{format_number(before)} before"
    least = f"{single / before:.4f}"
    if len(budget.limits) > 1:
        amount = f"the limit that is exceeded most is used up {format_number(reach)} times at the least, and "
        amount += f"{format_number(before)} times by the whole model"
        least = f"{format_number(single)} times"
    error = Unreachable(
        f"{budget} cannot be met: {amount}. Held up most by: "
        f"{'; '.join(held) or 'nothing, every axis is at one unit'}. "
        f"With one unit an axis{' and no block' if any(depth) else ''} it would be {least}. "
        "Give a larger budget, or lower floors, raise caps, freeze less."
    )
    error.min_units = shares.by_axis(limits.base)
    return error
