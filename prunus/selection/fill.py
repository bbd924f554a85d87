"""Taking units from a queue, the best first, until a budget is full."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.graph import Graph

# Widths are multiples of the first grid with which the budget can be met. 16, because kernels process 16 features at
# once, and on several threads batch norm is slower with 8 or 24 than with 16 or 32; see benchmarks/round_to.py.
GRIDS = (16, 8, 4, 2, 1)

Price = Callable[[Tensor], Tensor]  # widths (C, A) -> costs (C,); must not fall when a width rises
Queue = tuple[Tensor, Tensor]  # for each block its axis (N,) and its number of units (N,)


@dataclass(frozen=True)
class _Limits:
    """The range of widths (A,): from `base` to `sizes`, in `steps`, for a cost of at most `limit`.

    Off the grid of `steps`, widths are multiples of `least`. Where `stops` are given, widths go from one of them to the
    next instead, from `base` to `sizes` for each axis.
    """

    price: Price
    limit: float
    base: Tensor
    sizes: Tensor
    steps: Tensor
    least: Tensor
    stops: Sequence[Tensor] | None = None

    def ends(self) -> Iterator[Tensor]:
        """For each axis the widths at which its blocks beyond the base end."""
        for i, (start, end) in enumerate(
            zip(self.base.long().tolist(), self.sizes.long().tolist(), strict=True)
        ):
            if self.stops is not None:
                yield self.stops[i][self.stops[i] > start]
            else:
                step = int(self.steps[i])
                inner = range(start + step, end, step)
                yield torch.tensor([*inner, end] if end > start else [], dtype=torch.long)

    def costs(self, widths: Tensor) -> float:
        return self.price(widths[None]).item()

    def fits(self, widths: Tensor) -> Tensor:
        """(C,) bool: which of the widths (C, A) cost at most the limit."""
        return self.price(widths) <= self.limit


def blocks(graph: Graph, grid: int, halve: bool) -> Tensor:
    """Compute the units in a block, so that widths change by multiples of `grid` positions in every tensor.

    A head of 64 features is aligned by itself. They also are multiples of what operators take.

    Args:
        graph: The graph of the model.
        grid: The multiple, in positions of a tensor.
        halve: Whether dimensions too small for two blocks get a smaller grid.

    Returns:
        (A,), the units in a block of each axis.
    """
    steps = []
    for axis in graph.axes:
        members = [m for m in graph.members(axis) if m.role in ("produces", "consumes")]
        narrowest = min((graph.shapes[m.tensor][m.dim] for m in members), default=2 * grid)
        half = 2 ** int(math.log2(max(2, narrowest) / 2))
        fine = min(grid, half) if halve else grid
        step = max((fine // math.gcd(fine, m.index.shape[1]) for m in members), default=fine)
        steps.append(math.lcm(step, graph.multiples[axis]))
    return torch.tensor(steps)


def _queue(ranked: list[Tensor], limits: _Limits) -> Queue:
    """Order the blocks beyond the base by falling score, given for each axis the scores of its units up to its size.

    The score of a block is the mean over its units. Among equal blocks, the one nearer the start of its axis comes
    first.
    """
    blocks = []
    for axis, (value, start, ends) in enumerate(
        zip(ranked, limits.base.long().tolist(), limits.ends(), strict=True)
    ):
        rest = value[start:].double()
        begins = torch.cat([torch.tensor([start]), ends])[:-1]
        units = ends - begins
        block = torch.repeat_interleave(torch.arange(len(units)), units)
        mean = torch.zeros(len(units), dtype=torch.float64).index_add_(0, block, rest) / units
        mean = mean.cummin(0).values if len(mean) else mean
        place = begins / len(value)
        blocks.append((mean, place, torch.full_like(units, axis), units))
    mean, place, axis, units = map(torch.cat, zip(*blocks, strict=True))
    mean = mean.float()  # scores that differ by rounding alone become equal
    order = place.argsort(stable=True)
    order = order[mean[order].argsort(descending=True, stable=True)]
    return axis[order], units[order]


def _fill(limits: _Limits, widths: Tensor, queue: Queue) -> Tensor:
    """Take blocks in order, and return the widths (A,); an axis whose next block does not fit stays as it is."""
    axis, units = queue
    while len(axis):
        taken = count_fitting(limits.fits, widths, (axis, units))
        widths = widths.index_add(0, axis[:taken], units[:taken].double())
        axis, units = axis[taken:], units[taken:]
        following = torch.zeros_like(widths)
        for number in axis.unique().tolist():
            following[number] = units[axis == number][0]
        stays = limits.fits(widths + following.diag())[axis]
        axis, units = axis[stays], units[stays]
    return widths


def count_fitting(fits: Callable[[Tensor], Tensor], widths: Tensor, queue: Queue, tries: int = 64) -> int:
    """Count the blocks from the front of the queue that fit together on top of some widths.

    Args:
        fits: fits(widths (C, A)) -> (C,) bool; if fewer blocks do not fit, more never do.
        widths: (A,).
        queue: The axis (N,) and the number of units (N,) of each block.
        tries: How many counts to evaluate in one call of `fits`.

    Returns:
        The number of blocks, 0 to N.
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


def _approach(limits: _Limits, widths: Tensor, queue: Queue, enough: float) -> Tensor:
    """Return widths (A,) that cost `enough`, or the most found, with one axis off the grid.

    If every block left out is expensive (a head of a vision transformer costs 8 %), one of them is taken first and the
    others are filled in around it.
    """
    if limits.costs(widths) >= enough:
        return widths
    best = _top_up(limits, widths)
    for number in (widths < limits.sizes).nonzero().flatten().tolist():
        if limits.costs(best) >= enough:
            break
        base = limits.base.clone()
        base[number] = torch.minimum(widths + limits.steps, limits.sizes)[number]
        if limits.costs(base) <= limits.limit:
            others = queue[0] != number
            trial = _top_up(limits, _fill(limits, base, (queue[0][others], queue[1][others])))
            best = max(best, trial, key=limits.costs)
    return best


def _top_up(limits: _Limits, widths: Tensor) -> Tensor:
    """Add to the widths (A,) as many units as fit, of the axis whose units cost least."""
    block = torch.minimum(limits.sizes - widths, limits.steps)
    each = (limits.price(widths + block.diag()) - limits.costs(widths)) / block
    axis = each.nan_to_num(math.inf).argmin()  # 0 / 0 if an axis is whole
    least = int(limits.least[axis])
    trial = widths.repeat(int(block[axis]) // least + 1, 1)
    trial[:, axis] += torch.arange(0, len(trial) * least, least)
    return trial[int(limits.fits(trial).sum()) - 1]
