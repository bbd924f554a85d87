"""The precisions in which two models are compared, and how far apart their numbers are."""

from __future__ import annotations

from typing import NamedTuple

import torch

# Allowed relative errors. Lower precisions are for devices and models that cannot compute in double.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
HALF = {torch.bfloat16, torch.float16}
# Up to this error float32 decides; above it, float64 does. Measured in float32: in random networks rounding makes 2e-5
# at most, and faults make 2e-3 at least (benchmarks/mutations.py).
NO_DOUBT = 1e-5


class Attempt(NamedTuple):
    """A precision in which to compare, and how."""

    dtype: torch.dtype
    tolerance: float
    quick: bool = False  # it decides only if it passes, and may leave out what is needed only for odd numbers
    near: bool = False  # on weights near the model's own


QUICK = Attempt(torch.float32, NO_DOUBT, quick=True)
QUICK_NEAR = QUICK._replace(near=True)
ATTEMPTS = (
    QUICK,
    QUICK_NEAR,
    *(Attempt(*each, near=near) for each in TOLERANCES.items() for near in (False, True)),
)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Compute how far apart two outputs are.

    Args:
        got: The output of the small model.
        expected: The other one.

    Returns:
        The largest difference over the largest value; infinite if shapes, infinities or NaN differ.
    """
    if got.shape != expected.shape:
        return float("inf")
    if torch.equal(got, expected):
        return 0.0
    if expected.is_complex():
        got, expected = torch.view_as_real(got.resolve_conj()), torch.view_as_real(expected.resolve_conj())
    got, expected = got.double(), expected.double()
    finite = expected.isfinite()
    same_places = torch.equal(got.isfinite(), finite)
    if not same_places or not torch.equal(got[~finite].nan_to_num(), expected[~finite].nan_to_num()):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = max(expected[finite].abs().max().item(), 1e-12)
    return (got[finite] - expected[finite]).abs().max().item() / scale
