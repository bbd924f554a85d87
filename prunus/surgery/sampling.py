"""Random weights that let a signal through: what a proof runs networks on.

The weights of a small model are compared bit by bit, so the networks that are run may hold any. The user's own may hide
a wrong index: norms as they begin, biases of zero, residual branches scaled by zero, a signal that fades from layer to
layer. So weights are normal numbers over the root of how many are summed, scales lie about 1, and shifts about 0: each
layer adds as much as it gets. All are taken from one short list of draws, laid along each tensor again and again from a
start of its own; its length is prime, so no two rows meet the same part of it. That writes each tensor once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod, sqrt

import torch

from prunus.graph import CONSUMES, PRODUCES, SHIFTS, Graph, is_inexact

LENGTH = 65_537  # of the list; prime
GAIN = 1.1  # of weights: rectifiers take from a signal, residual sums and scales add to it
SPREAD = 0.3  # of scales, about 1
SHIFT = 0.3  # of shifts, about 0
NEAR = 0.1  # of numbers near the user's own: the spread of the logarithms of their multipliers
OFFSET = 0.01  # and what is added to them at most, about; upwards, because some are divided by


class Sampler:
    """Makes tensors for a model at full size.

    Args:
        graph: The graph of the model.
        tensors: name -> its tensor.
        sizes: name -> the shape of the part that stays, which the scale of weights goes by.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, Sequence[int]]):
        self.graph, self.tensors = graph, tensors
        self._spreads = {name: self._spread(name, sizes[name]) for name in tensors}

    def _spread(self, name: str, size: Sequence[int]) -> tuple[float, float] | None:
        """The mean and deviation of the numbers in a tensor; None if they are to be near the user's own."""
        if name in self.graph.statistics:
            return (0.0, SHIFT) if self.graph.statistics[name] == SHIFTS else (1.0, SPREAD)
        if name not in self.graph.parameters or not size:
            return None
        roles = [self.graph.role(name, dim) for dim in range(len(size))]
        if len(size) > 1 and (PRODUCES in roles or CONSUMES in roles):
            summed = prod(n for n, role in zip(size, roles, strict=True) if role != PRODUCES)
            return 0.0, GAIN / sqrt(max(1, summed))
        return (0.0, SHIFT) if SHIFTS in roles else (1.0, SPREAD)

    def draws(self, dtype: torch.dtype, seed: int, near: bool = False) -> Callable[[str], torch.Tensor]:
        """Return the function that makes a tensor by its name, the same each time.

        Args:
            dtype: Their type.
            seed: They differ between seeds.
            near: Whether all are to be near the user's own, for models that fail on others.

        Returns:
            draw(name) -> tensor; complex ones are of the complex type of that precision, those of integers are the
            model's own, detached.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(LENGTH, (len(self.tensors),), generator=generator).tolist()
        starts = dict(zip(self.tensors, drawn, strict=True))

        def draw(name: str) -> torch.Tensor:
            tensor, spread = self.tensors[name].detach(), None if near else self._spreads[name]
            if not is_inexact(tensor) or not tensor.numel():
                return tensor
            start = starts[name]
            numbers = _numbers(type_like(tensor, dtype), tensor.device)[
                start : start + min(LENGTH, tensor.numel())
            ]
            if spread is None:
                return _beside(tensor, numbers)
            return _tiled(tensor, numbers * spread[1] + spread[0])

        return draw


def type_like(tensor: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    """The type of a precision for the numbers of a tensor, which may be complex.

    Args:
        tensor: Any tensor of floating-point or complex numbers.
        dtype: A floating-point type.

    Returns:
        `dtype`, or the complex type whose parts have it.
    """
    return dtype.to_complex() if tensor.is_complex() else dtype


@cache
def _numbers(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Normal draws within 3 deviations; twice as many as are used from any start."""
    generator = torch.Generator().manual_seed(0)
    count = 2 * LENGTH
    numbers = torch.randn((count, 2) if dtype.is_complex else count, generator=generator).clamp_(-3, 3)
    return (torch.view_as_complex(numbers) if dtype.is_complex else numbers).to(device, dtype)


def _rows(flat: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All of a flat tensor but its end, in rows of this length; and the end."""
    whole = flat.numel() // length
    return flat[: whole * length].view(whole, length), flat[whole * length :]


def _tiled(tensor: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, filled with numbers again and again; the numbers themselves if they fill it."""
    if len(numbers) == tensor.numel():
        return numbers.view(tensor.shape)
    made = torch.empty(tensor.shape, dtype=numbers.dtype, device=tensor.device)
    rows, end = _rows(made.view(-1), len(numbers))
    rows.copy_(numbers)
    end.copy_(numbers[: len(end)])
    return made


def _beside(tensor: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """A tensor whose numbers are multiplied by some near 1, and get a small offset."""
    made = torch.empty(tensor.shape, dtype=numbers.dtype, device=tensor.device)
    factors, offsets = (numbers * NEAR).exp_(), (numbers.abs() * OFFSET).to(numbers.dtype)
    parts = zip(
        _rows(tensor.contiguous().view(-1), len(numbers)), _rows(made.view(-1), len(numbers)), strict=True
    )
    for old, new in parts:
        torch.addcmul(offsets[: new.shape[-1]], old, factors[: new.shape[-1]], out=new)
    return made


def random_like(
    tensor: torch.Tensor,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    own: bool = False,
) -> torch.Tensor:
    """Normal numbers in the place of an input; one of integers stays as it is.

    Args:
        tensor: The input.
        dtype: The type wanted.
        device: The device wanted.
        generator: The generator to draw from.
        own: Keep the numbers of the input.

    Returns:
        The new input.
    """
    if not is_inexact(tensor):
        return tensor.to(device)
    dtype = type_like(tensor, dtype)
    if own:
        return tensor.to(device, dtype)
    return torch.randn(tensor.shape, generator=generator, dtype=dtype).to(device)
