"""Units of an axis taken away one after the other, each time the one whose loss is made good best by the others.

A product reads inputs with the moments C (K, K) through a weight W (K, O). Without the columns S of some units the best
weight of the others leaves tr(W_S^T ((C^-1)_SS)^-1 W_S) of its output unexplained. With the inverse P = C^-1 and with W
fitted again after each step, the loss of one more unit is tr(W_d^T (P_dd)^-1 W_d), so no candidate needs a refit:

    a unit goes     W -= P_d (P_dd)^-1 W_d,  P -= P_d (P_dd)^-1 P_d^T

The second is a step of a Cholesky factorisation of P with pivots that the losses choose: P = P_0 - Z Z^T, where Z grows
by the columns of the unit. Everything is in float64. Backward, because a cut asks what the many units that stay explain
of those that go; forward selection judges its first units alone. K^3 multiply-adds, and 2 K^2 numbers.
Source: ours; the objective is that of El Halabi et al. (2022), the step that of Optimal Brain Surgeon (1993).
Shapes: U units of the axis that the product reads, each t columns; O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Reader:
    """A product, or one group of it, and the units that it has lost so far.

    Args:
        moments: C (K, K), float64, positive definite.
        weight: W (K, O), float64.
        units: The units that it reads (U,).
        columns: The columns of each (U, t).
        scale: The number with which its losses are multiplied.
    """

    def __init__(self, moments: Tensor, weight: Tensor, units: Tensor, columns: Tensor, scale: float):
        self.units, self.scale = units, scale
        self._columns, self._weight = columns, weight.contiguous().clone()
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
        self._removed = torch.zeros(len(moments), columns.numel(), dtype=moments.dtype, device=moments.device)
        self._count = 0  # columns of Z
        self._blocks = self._inverse[columns[:, :, None], columns[:, None, :]]  # P_dd (U, t, t)
        self._alive = torch.ones(len(units), dtype=torch.bool, device=units.device)

    def losses(self) -> Tensor:
        """Compute what more of the output is lost with each of the units: (U,); 0 for one that is gone."""
        alive = self._alive.nonzero().flatten()
        found = self._weight.new_zeros(len(self.units))
        lower = torch.linalg.cholesky(self._blocks[alive])
        read = torch.linalg.solve_triangular(lower, self._weight[self._columns[alive]], upper=False)
        found[alive] = self.scale * read.square().sum((1, 2))
        return found

    def remove(self, unit: int) -> None:
        """Take a unit away, and fit the weight of the others."""
        place = int((self.units == unit).nonzero())
        columns, z = self._columns[place], self._removed[:, : self._count]
        lower = torch.linalg.cholesky(self._blocks[place])
        new = self._inverse[:, columns] - z @ z[columns].T  # P_d (K, t)
        new = torch.linalg.solve_triangular(lower.T, new, upper=True, left=False)
        read = torch.linalg.solve_triangular(lower, self._weight[columns], upper=False)
        self._weight -= new @ read
        self._removed[:, self._count : self._count + len(columns)] = new
        self._count += len(columns)
        self._alive[place] = False
        each = new[self._columns]  # (U, t, t)
        self._blocks -= each @ each.mT


def eliminate(readers: Sequence[Reader], size: int) -> tuple[list[int], Tensor]:
    """Take all units of an axis away, one after the other.

    Args:
        readers: The products that read the axis.
        size: The number of its units.

    Returns:
        The units, the last to go first; and the losses (size + 1,) with the first 0, 1, ... of them kept.
    """
    each = [reader.losses() for reader in readers]
    gone, losses = [], [0.0]
    alive = torch.ones(size, dtype=torch.bool, device=each[0].device)
    for _ in range(size):
        total = each[0].new_zeros(size)
        for reader, loss in zip(readers, each, strict=True):
            total.index_add_(0, reader.units, loss)
        unit = int(total.where(alive, torch.inf).argmin())
        losses.append(losses[-1] + float(total[unit].clamp_min(0)))
        gone.append(unit)
        alive[unit] = False
        for number, reader in enumerate(readers):
            if (reader.units == unit).any():
                reader.remove(unit)
                each[number] = reader.losses()
    return gone[::-1], torch.tensor(losses[::-1], dtype=torch.float64)
