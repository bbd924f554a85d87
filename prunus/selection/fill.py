"""Taking units from a queue, the best first, until a budget is full."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.graph import Graph

Price = Callable[[Tensor], Tensor]  # widths (C, A) -> cost (C,), which must not fall when a width rises
Queue = tuple[Tensor, Tensor]  # of each block its axis (N,), and how many units it holds (N,)


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
