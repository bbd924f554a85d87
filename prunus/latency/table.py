"""A rising table of measured points, with straight lines between them."""

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from prunus.latency.operators import Operator, Sizes

# Sizes measured, by how closely: the multiples that kernels work in, from a sixteenth of the whole upwards.
GRIDS = {
    "fine": (
        1,
        2,
        4,
        8,
        16,
        24,
        32,
        48,
        64,
        96,
        *(2**n * 32 for n in range(2, 12)),
        *(3 * 2**n for n in range(6, 15)),
    ),
    "middle": tuple(2**n for n in range(17)),
    "coarse": tuple(4**n for n in range(9)),
}
SHARES = (1, 3 / 4, 1 / 2, 1 / 4, 1 / 16)  # where an operator depends on too many sizes, all shrink together


def points(operator: Operator, level: str) -> list[Sizes]:
    """The sizes to measure an operator at, the largest first."""
    if operator.together:
        return [tuple(max(1, round(share * size)) for size in operator.full) for share in SHARES]
    found: list[Sizes] = [()]
    for most in operator.full:
        inner = {size for size in GRIDS[level] if most / 16 <= size < most}
        grid = sorted({1, *inner, most}, reverse=True)
        found = [(*sizes, size) for sizes in found for size in grid]
    return found


class Table:
    """Milliseconds on a grid, rising along it, with straight lines between."""

    def __init__(self, times: Mapping[tuple[float, ...], float]):
        """times: place -> milliseconds, for all places of a grid."""
        self.grid = [
            torch.tensor(sorted(set(line)), dtype=torch.float64) for line in zip(*times, strict=True)
        ]
        values = torch.tensor([times[place] for place in sorted(times)], dtype=torch.float64)
        self.values = rising(values.view([len(line) for line in self.grid]))

    def __call__(self, coordinates: Sequence[Tensor]) -> Tensor:
        """Milliseconds (...) at coordinates (...), one tensor for each S; differentiable in them."""
        corners = [(torch.zeros((), dtype=torch.long), torch.ones((), dtype=torch.float64))]
        for line, x in zip(self.grid, coordinates, strict=True):
            x = x.clamp(line[0], line[-1])
            upper = torch.searchsorted(line, x.detach().contiguous()).clamp(1, len(line) - 1)
            share = (x - line[upper - 1]) / (line[upper] - line[upper - 1])
            corners = [
                (place * len(line) + index, weight * part)
                for place, weight in corners
                for index, part in ((upper - 1, 1 - share), (upper, share))
            ]
        flat = self.values.flatten()
        return reduce(torch.add, (weight * flat[place] for place, weight in corners))


def rising(values: Tensor) -> Tensor:
    """The mean of the least rising table above `values` and the greatest below; `values` where they rise."""
    above, below = values, values
    for dim in range(values.dim()):
        above = above.cummax(dim).values
        below = below.flip(dim).cummin(dim).values.flip(dim)
    return (above + below) / 2
