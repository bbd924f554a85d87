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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from prunus.errors import BudgetError, UserError, unknown
from prunus.graph import Graph
from prunus.selection import cost
from prunus.selection.bounds import CAP, FLOOR, Rule, least
from prunus.selection.budget import Budget, Metered, short
from prunus.selection.fill import Price, _fill, _nearer, _queue, _Room, blocks

How = Literal["global", "per_cost", "uniform", "isomorphic"]
# Widths are multiples of the first with which the budget can be met. 16: kernels work on 16 features at once, and on
# several threads batch norm is slower with 8 or 24 features than with 16 or 32; see benchmarks/round_to.py.
GRIDS = (16, 8, 4, 2, 1)
TOLERANCE = 0.005  # of the cost before: so far below the budget is near enough
FREE = 1e-9  # of the cost before: a unit below it costs nothing (peak memory, away from the peak)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How scores become a keep: the options of `select`, as a method's options hold them."""

    how: How = "global"
    round_to: int | None = None
    floor: Rule = FLOOR
    cap: Rule = CAP
    freeze: tuple[str, ...] = ()

    def select(
        self,
        graph: Graph,
        scores: Mapping[str, Tensor],
        budget: Budget,
        *,
        price: Price | None = None,
        within: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, list[int]]:
        """Return the keep of some scores under these options; see `select`."""
        return select(graph, scores, budget, price=price, within=within, **self.rules(graph))

    def rules(self, graph: Graph) -> dict[str, Any]:
        """Return the options of `select` on a graph; a method that leaves axes alone overrides this."""
        return {field.name: getattr(self, field.name) for field in fields(Selection)}


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
        return budget.meter.select(
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
