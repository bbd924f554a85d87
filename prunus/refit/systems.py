"""The normal equations of a product: gathered, and solved.

For each of G groups W minimises sum |Y - u W^T - b|^2 + r |W - W0|^2, where W0 is the weight as it was cut and r a
small share of the mean diagonal of u^T u. So W^T = (A + r I)^-1 (B + r W0^T) with A = u^T u and B = u^T Y, both
centred where a bias or a norm takes care of the mean. Sums are kept in float64.
Source: ours; least squares for pruned layers are those of ThiNet (Luo et al., 2017) and He et al. (2017).
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.errors import PruningError, UserError

RIDGE = 1e-3  # the share of the mean diagonal


class System:
    """The normal equations of one product.

    Args:
        centred: Whether means are taken off.
    """

    def __init__(self, centred: bool):
        self.centred, self.count = centred, 0
        self._sums: tuple[Tensor, ...] = ()

    def add(self, u: Tensor, y: Tensor) -> None:
        """Add unfolded inputs u (G, n, K) and the outputs wanted for them y (G, n, O)."""
        self.count += u.shape[1]
        new = (u.mT @ u, u.mT @ y, u.sum(1), y.sum(1), y.square().sum(1))
        new = tuple(each.double() for each in new)
        self._sums = tuple(a.add_(b) for a, b in zip(self._sums, new, strict=True)) if self._sums else new

    def _moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """A (G, K, K), B (G, K, O), the means of u (G, K) and y (G, O), and sum |y|^2 (G, O)."""
        a, b, u, y, square = self._sums
        mean_u, mean_y = u / self.count, y / self.count
        if self.centred:
            a = a - self.count * mean_u.unsqueeze(2) * mean_u.unsqueeze(1)
            b = b - self.count * mean_u.unsqueeze(2) * mean_y.unsqueeze(1)
            square = square - self.count * mean_y.square()
        return a, b, mean_u, mean_y, square

    def solve(self, before: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
        """The weight (G, O, K), and the bias (G, O) that goes with it if means are taken off.

        Args:
            before: The weight as it was cut (G, O, K), float64.
            ridge: The share of the mean diagonal by which the weight is held to it.

        Returns:
            Both in float64.

        Raises:
            PruningError: An input or an output wanted is not finite.
        """
        a, b, mean_u, mean_y, _ = self._moments()
        check_finite(a, b)
        weight = solve(a, b, before, ridge)
        return weight, mean_y - (weight @ mean_u.unsqueeze(2)).squeeze(2)

    def unexplained(self, weight: Tensor) -> float:
        """The share (0 and up) of the wanted outputs that a weight (G, O, K) leaves unexplained."""
        a, b, _, _, square = self._moments()
        left = square.sum() - 2 * (weight.mT * b).sum() + (weight @ a * weight).sum()
        return float(left.clamp_min(0) / square.sum().clamp_min(1e-300))


def solve(a: Tensor, b: Tensor, before: Tensor, ridge: float) -> Tensor:
    """Solve regularised normal equations.

    Args:
        a: The moments of the inputs (G, K, K), float64.
        b: Those of inputs and wanted outputs (G, K, O).
        before: The weight (G, O, K) to which the solution is held.
        ridge: How much, as a share of the mean diagonal of `a`.

    Returns:
        The weight (G, O, K).
    """
    held = ridge * a.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    held = held.clamp_min(torch.finfo(torch.float64).tiny ** 0.5)  # for inputs that are zero
    regular = a + held.unsqueeze(2) * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    wanted = b + held.unsqueeze(2) * before.mT
    lower, failed = torch.linalg.cholesky_ex(regular)
    if failed.any():  # singular to rounding: the smallest solution
        return (torch.linalg.pinv(regular, hermitian=True) @ wanted).mT
    return torch.cholesky_solve(wanted, lower).mT


def check_ridge(ridge: float) -> None:
    """Raise UserError unless the share by which weights are held to the old ones is a number from 0."""
    if not 0 <= ridge < float("inf"):
        raise UserError(f"ridge should be a number from 0, but is {ridge!r}; {RIDGE:g} is usual.")


def check_finite(*moments: Tensor) -> None:
    """Raise PruningError unless all moments are finite."""
    if not all(bool(each.isfinite().all()) for each in moments):
        raise PruningError(
            "the calibration data give numbers that are not finite in the original or in the small model; check the "
            "data, or use float32 weights."
        )
