"""A rising table of measured points, with linear interpolation."""

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from prunus.latency.operators import Operator, Sizes

# The sizes to measure by the grid's resolution: multiples that kernels prefer, from a sixteenth of the full size.
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
SHARES = (1, 3 / 4, 1 / 2, 1 / 4, 1 / 16)  # of all sizes at once, if an operator has too many for a grid


def points(operator: Operator, level: str) -> list[Sizes]:
    """List the sizes at which to measure an operator, the largest first."""
    if operator.together:
        return [tuple(max(1, round(share * size)) for size in operator.full) for share in SHARES]
    found: list[Sizes] = [()]
    for most in operator.full:
        inner = {size for size in GRIDS[level] if most / 16 <= size < most}
        grid = sorted({1, *inner, most}, reverse=True)
        found = [(*sizes, size) for sizes in found for size in grid]
    return found


class Table:
    """Milliseconds on a grid, rising along every dimension, linear between the grid's points."""

    def __init__(self, times: Mapping[tuple[float, ...], float]):
        """times: milliseconds by position, for all positions of a grid."""
        self.grid = [
            torch.tensor(sorted(set(line)), dtype=torch.float64) for line in zip(*times, strict=True)
        ]
        values = torch.tensor([times[place] for place in sorted(times)], dtype=torch.float64)
        self.values = make_rising(values.view([len(line) for line in self.grid]))

    def __call__(self, coordinates: Sequence[Tensor]) -> Tensor:
        """Milliseconds (...) at coordinates (...), one tensor per dimension of the grid; differentiable in them.

        Without dimensions a scalar.
        """
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


def make_rising(values: Tensor) -> Tensor:
    """Average the lowest rising table above `values` and the highest below them; rising values stay as they are."""
    above, below = values, values
    for dim in range(values.dim()):
        above = above.cummax(dim).values
        below = below.flip(dim).cummin(dim).values.flip(dim)
    return (above + below) / 2
