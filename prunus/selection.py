"""Scores and a budget give a keep.

Every way of ranking is one algorithm: the units of each axis are sorted by falling score and cut into blocks,
all blocks stand in one queue by their score, and are taken from its front as long as they fit the budget.

    global      scores as they are
    per_cost    scores divided by what one unit of the axis costs: the greedy knapsack, for scores in one currency
                over all axes, such as the change of the loss
    uniform     the place within the axis, divided by its size: every axis keeps the same share
    isomorphic  the share of units, over all axes of the same topology, that score no higher
                (Fang et al., Isomorphic Pruning, ECCV 2024, arXiv:2407.04616)

No cost falls when a block is added, so what fits is found by bisection, many candidates a query. What a block costs
is the budget's closed form, or any price that is handed in and never falls; milliseconds are predicted and measured by
the meter of a `Metered` budget, see latency.py.
Shapes: A axes, N blocks in the queue, C candidates.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from prunus import cost
from prunus.budget import Budget, Metered, short
from prunus.errors import BudgetError, UserError, unknown
from prunus.graph import Graph
from prunus.limits import CAP, FLOOR, Rule, least

How = Literal["global", "per_cost", "uniform", "isomorphic"]
# Widths are multiples of the first with which the budget can be met. 16: kernels work on 16 features at once, and on
# several threads batch norm is slower with 8 or 24 features than with 16 or 32; see benchmarks/round_to.py.
GRIDS = (16, 8, 4, 2, 1)
TOLERANCE = 0.005  # of the cost before: so far below the budget is near enough
FREE = 1e-9  # of the cost before: a unit below it costs nothing (peak memory, away from the peak)

Price = Callable[[Tensor], Tensor]  # widths (C, A) -> cost (C,), which must not fall when a width rises
Queue = tuple[Tensor, Tensor]  # of each block its axis (N,), and how many units it holds (N,)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How scores become a keep: the options of `select`, for the Config of a method."""

    how: How = "global"
    round_to: int | None = None
    floor: Rule = FLOOR
    cap: Rule = CAP
    freeze: tuple[str, ...] = ()

    def select(self, graph: Graph, scores: Mapping[str, Tensor], budget: Budget) -> dict[str, list[int]]:
        """The keep; see `select`."""
        options = {field.name: getattr(self, field.name) for field in fields(Selection)}
        return select(graph, scores, budget, **options)


def select(
    graph: Graph,
    scores: Mapping[str, Tensor],
    budget: Budget,
    *,
    price: Price | None = None,
    within: Mapping[str, Sequence[int]] | None = None,
    how: How = "global",
    round_to: int | None = None,
    floor: Rule = FLOOR,
    cap: Rule = CAP,
    freeze: Sequence[str] = (),
) -> dict[str, list[int]]:
    """The best-scored units that fit the budget: axis -> sorted kept indices.

    scores: axis -> (size,), higher means keep. price: what widths cost, in the budget's unit; None: the closed form, or
    what the meter of a `Metered` budget measures. within: the units of an axis that are still there, if some are gone
    already: no others are chosen. how: see above. floor, cap, freeze: see `limits.least`.
    round_to: widths are multiples of it, or the whole axis; no further block would fit. None: multiples of 16 (of 8,
    4, 2 or 1 in dimensions below 32, 16, 8 or 4, or where the budget cannot be met otherwise), and one axis at most
    leaves that grid, so that the result lies below the budget by at most 0.5 % of the cost before, or by less than
    a unit costs; none does under a price handed in, for odd widths take longer than the next multiple.
    Raises BudgetError, saying what can be reached; UserError for anything wrong with what was given.
    """
    _check(how, round_to)
    if price is None and isinstance(budget, Metered):
        options = {
            "how": how,
            "round_to": round_to,
            "floor": floor,
            "cap": cap,
            "freeze": freeze,
            "within": within,
        }
        return budget.meter.settle(
            budget, lambda price: select(graph, scores, budget, price=price, **options)
        )
    measured = price is not None
    price = price or price_of(graph, budget)
    within = within or {}
    order = {name: _sorted(name, scores, axis.size, within.get(name)) for name, axis in graph.axes.items()}
    most = torch.tensor([len(units) for _, units in order.values()], dtype=torch.float64)
    sizes = torch.tensor([axis.size for axis in graph.axes.values()], dtype=torch.float64)
    before = price(sizes[None]).item()
    limit = budget.limit(before)
    bounds = least(graph, floor, cap, freeze)
    bound = torch.tensor([units for units, _ in bounds.values()])
    for grid in (round_to,) if round_to else GRIDS:
        steps = blocks(graph, grid, halve=round_to is None)
        base = torch.minimum(-(bound // -steps) * steps, most)  # rounded up to whole blocks
        room = _Room(price, limit, base, most, steps)
        if room.costs(base) <= limit:
            break
    else:
        raise _unreachable(room, budget, bounds)
    # Between measured points a table is flat or steep by chance: there, what a whole block costs is asked.
    probe = torch.minimum(steps, sizes - 1).clamp_min(1) if measured else torch.ones(len(sizes))
    unit_cost = ((before - price(sizes - probe.diag())) / probe / before).clamp_min(FREE)
    queue = _queue(_ranked(graph, order, how, unit_cost), base, steps)
    widths = _fill(room, base, queue)
    if round_to is None and not measured:
        widths = _nearer(room, widths, queue, enough=limit - TOLERANCE * before)
    return {
        name: units[: int(width)].sort().values.tolist()
        for (name, (_, units)), width in zip(order.items(), widths.tolist(), strict=True)
    }


@dataclass(frozen=True)
class _Room:
    """How far widths (A,) may go: from `base` to `sizes`, in `steps`, for a price of at most `limit`."""

    price: Price
    limit: float
    base: Tensor
    sizes: Tensor
    steps: Tensor

    def costs(self, widths: Tensor) -> float:
        return self.price(widths[None]).item()

    def fits(self, widths: Tensor) -> Tensor:
        """(C,): which of the widths (C, A) do."""
        return self.price(widths) <= self.limit


class Unreachable(BudgetError):
    """The least that may be kept costs too much. least: axis -> how many units that is."""

    least: Mapping[str, int]


def price_of(graph: Graph, budget: Budget) -> Price:
    """What widths (C, A) cost in the budget's unit: (C,), as predicted where it has to be measured; differentiable.

    Raises UserError, saying what to do, for milliseconds that nobody measures.
    """
    if isinstance(budget, Metered):
        return budget.meter.price
    if budget.name not in cost.CLOSED_FORMS:
        raise UserError(
            f"{budget}: milliseconds have no closed form, they are measured. Measure first, then select:\n"
            "    table = prunus.latency.tables(model, graph)\n"
            "    keep, figures = prunus.latency.select_measured(model, graph, scores, budget, table)"
        )
    return partial(cost.of, graph, budget.name)


def _check(how: str, round_to: int | None) -> None:
    if how not in get_args(How):
        raise unknown("way of ranking", how, get_args(How))
    if round_to is not None and (not isinstance(round_to, int) or round_to < 1):
        raise UserError(f"round_to {round_to!r}: expected a whole number from 1, or None.")


def blocks(graph: Graph, grid: int, halve: bool) -> Tensor:
    """(A,): units in a block, so that widths change by multiples of `grid` positions in every tensor.

    A head of 64 features is aligned by itself. halve: a smaller grid for dimensions that would not hold two blocks.
    """
    steps = []
    for axis in graph.axes:
        members = [m for m in graph.members(axis) if m.role in ("produces", "consumes")]
        narrowest = min((graph.shapes[m.tensor][m.dim] for m in members), default=2 * grid)
        half = 2 ** int(math.log2(max(2, narrowest) / 2))
        fine = min(grid, half) if halve else grid
        steps.append(max((fine // math.gcd(fine, m.index.shape[1]) for m in members), default=fine))
    return torch.tensor(steps)


def _sorted(
    name: str, scores: Mapping[str, Tensor], size: int, there: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """Falling scores and their units, of those that are there; equal scores by rising unit."""
    if name not in scores:
        raise UserError(f"no scores for axis {name}; there are some for {', '.join(scores) or 'none'}.")
    score = scores[name].detach().double().cpu()
    if score.shape != (size,):
        raise UserError(f"scores of axis {name}: expected shape ({size},), got {tuple(score.shape)}.")
    if not score.isfinite().all():
        bad = int((~score.isfinite()).sum())
        raise UserError(f"scores of axis {name}: {bad} of {size} are NaN or infinite.")
    units = torch.arange(size) if there is None else torch.tensor(sorted(there))
    falling, order = score[units].sort(descending=True, stable=True)
    return falling, units[order]


def _ranked(
    graph: Graph, order: Mapping[str, tuple[Tensor, Tensor]], how: str, unit_cost: Tensor
) -> list[Tensor]:
    """Per axis (size,), falling: what its units are compared by."""
    values = [score for score, _ in order.values()]
    if how == "global":
        return values
    if how == "per_cost":
        return [value / each for value, each in zip(values, unit_cost, strict=True)]
    if how == "uniform":
        return [1 - torch.arange(len(value), dtype=torch.float64) / len(value) for value in values]
    kinds = [graph.topology(name) for name in order]
    pools = {kind: [v for v, k in zip(values, kinds, strict=True) if k == kind] for kind in kinds}
    rising = {kind: torch.cat(pool).sort().values for kind, pool in pools.items()}
    return [
        torch.searchsorted(rising[kind], value, right=True) / len(rising[kind])
        for kind, value in zip(kinds, values, strict=True)
    ]


def _queue(ranked: list[Tensor], base: Tensor, steps: Tensor) -> Queue:
    """Blocks beyond the base, best first.

    A block scores the mean of its units. Of equal blocks, the one further ahead in its axis comes first.
    """
    blocks = []
    for axis, (value, start, step) in enumerate(zip(ranked, base.long(), steps, strict=True)):
        rest = value[start:].double()
        block = torch.arange(len(rest)) // step
        units = block.bincount()
        mean = torch.zeros(len(units), dtype=torch.float64).index_add_(0, block, rest) / units
        mean = mean.cummin(0).values if len(mean) else mean
        place = (start + step * torch.arange(len(units))) / len(value)
        blocks.append((mean, place, torch.full_like(units, axis), units))
    mean, place, axis, units = map(torch.cat, zip(*blocks, strict=True))
    mean = mean.float()  # what is equal but for rounding is equal
    order = place.argsort(stable=True)
    order = order[mean[order].argsort(descending=True, stable=True)]
    return axis[order], units[order]


def _fill(room: _Room, widths: Tensor, queue: Queue) -> Tensor:
    """Widths (A,) after taking blocks in order; an axis whose next block does not fit stays as it is."""
    axis, units = queue
    while len(axis):
        taken = longest(room.fits, widths, (axis, units))
        widths = widths.index_add(0, axis[:taken], units[:taken].double())
        axis, units = axis[taken:], units[taken:]
        following = torch.zeros_like(widths)
        for number in axis.unique().tolist():
            following[number] = units[axis == number][0]
        stays = room.fits(widths + following.diag())[axis]
        axis, units = axis[stays], units[stays]
    return widths


def longest(fits: Callable[[Tensor], Tensor], widths: Tensor, queue: Queue, tries: int = 64) -> int:
    """How many blocks from the front of the queue fit together on top of `widths` (A,).

    fits: of widths (C, A) which do, (C,) bool; those of more blocks never do where those of fewer do not.
    """
    axis, units = queue
    fit, most = 0, len(axis)
    while fit < most:
        counts = torch.linspace(fit + 1, most, min(tries, most - fit), dtype=torch.float64).round().long()
        first = torch.searchsorted(counts, torch.arange(1, most + 1))  # the first try that holds each block
        added = torch.zeros(len(counts), len(widths), dtype=torch.float64)
        added.index_put_((first, axis[:most]), units[:most].double(), accumulate=True)
        good = int(fits(widths + added.cumsum(0)).sum())
        most = int(counts[good]) - 1 if good < len(counts) else most
        fit = int(counts[good - 1]) if good else fit
    return fit


def _nearer(room: _Room, widths: Tensor, queue: Queue, enough: float) -> Tensor:
    """Widths (A,) that cost `enough`, or the most found, with one axis off the grid.

    Where all that is left out is dear (a head of a vision transformer costs 8 %), one block of it goes in first and
    the others are filled around it.
    """
    if room.costs(widths) >= enough:
        return widths
    best = _topped_up(room, widths)
    for number in (widths < room.sizes).nonzero().flatten().tolist():
        if room.costs(best) >= enough:
            break
        base = room.base.clone()
        base[number] = torch.minimum(widths + room.steps, room.sizes)[number]
        if room.costs(base) <= room.limit:
            others = queue[0] != number
            trial = _topped_up(room, _fill(room, base, (queue[0][others], queue[1][others])))
            best = max(best, trial, key=room.costs)
    return best


def _topped_up(room: _Room, widths: Tensor) -> Tensor:
    """Widths (A,) with as many units of one axis as fit, of the one whose units cost least."""
    block = torch.minimum(room.sizes - widths, room.steps)
    each = (room.price(widths + block.diag()) - room.costs(widths)) / block
    axis = each.nan_to_num(math.inf).argmin()  # 0 / 0 where an axis is whole
    trial = widths.repeat(int(block[axis]) + 1, 1)
    trial[:, axis] += torch.arange(len(trial))
    return trial[int(room.fits(trial).sum()) - 1]


def _unreachable(room: _Room, budget: Budget, bounds: Mapping[str, tuple[int, str]]) -> Unreachable:
    """Says what can be reached, and which axes hold it up most."""
    before, reach, single = map(room.costs, (room.sizes, room.base, torch.ones_like(room.base)))
    saved = reach - room.price(room.base - (room.base - 1).diag())
    held = []
    for i in saved.argsort(descending=True)[:5].tolist():
        name, (_, why) = list(bounds.items())[i]
        blocks = f", in blocks of {room.steps[i]}" if room.steps[i] > 1 else ""
        if saved[i] > 0:
            held.append(f"{name} keeps {int(room.base[i])} of {int(room.sizes[i])} ({why}{blocks})")
    error = Unreachable(
        f"{budget} cannot be met: {budget.name} come to {short(reach)} at the least, {reach / before:.4f} of the "
        f"{short(before)} before. Held up most by: {'; '.join(held) or 'nothing, every axis is at one unit'}. "
        f"With one unit an axis it would be {single / before:.4f}. Give a larger budget, or lower floors, raise "
        "caps, freeze less."
    )
    error.least = dict(zip(bounds, room.base.int().tolist(), strict=True))
    return error


@dataclass(frozen=True)
class Plan:
    """What a keep would change. axes: name -> (units before, after); costs: name -> (before, after)."""

    axes: dict[str, tuple[int, int]]
    costs: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        rows = [("axis", "before", "after", "kept")]
        rows += [(name, str(old), str(new), f"{new / old:.1%}") for name, (old, new) in self.axes.items()]
        rows += [
            (name, short(old), short(new), f"{new / old:.1%}") for name, (old, new) in self.costs.items()
        ]
        wide = max(len(name) for name, *_ in rows)
        return "\n".join(f"{name:<{wide}} {old:>10} {new:>10} {share:>8}" for name, old, new, share in rows)


def plan(graph: Graph, keep: Mapping[str, Sequence[int]]) -> Plan:
    """The table of widths and costs before and after; changes nothing. Raises UserError if `keep` does not fit."""
    sizes, widths = graph.widths(), graph.widths(keep)
    costs = {
        name: (cost.of(graph, name, sizes), cost.of(graph, name, widths))
        for name in ("macs", "params", "memory_mb")
    }
    return Plan({name: (sizes[name], widths[name]) for name in sizes}, costs)
