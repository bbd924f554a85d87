"""Weights near a model's own, no two units alike: what a proof runs networks on.

Fresh norms, biases of zero and residual branches scaled by zero would hide a wrong index. So every number is multiplied
by one near 1 and gets an offset, both from a short list of normal draws that is repeated along the tensor; its length
is prime, so no two rows meet the same part of it. That costs one pass over each tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from math import sqrt

import torch

LENGTH = 65_537  # of the list; prime
SPREAD = 0.1  # of the logarithms of the multipliers
OFFSET = 0.1  # of the entries of a weight, over the root of how many are summed
SHIFT = 0.01  # of the entries of vectors and buffers, upwards: variances stay positive


def perturb(
    tensors: Mapping[str, torch.Tensor], parameters: Collection[str], dtype: torch.dtype, seed: int
) -> dict[str, torch.Tensor]:
    """Copy the tensors of a model, with other numbers near the same.

    Args:
        tensors: name -> tensor.
        parameters: The names of those that are parameters.
        dtype: The type of the copies.
        seed: The copies differ between seeds; after the first, parameters also get random signs, so that other units
            are above zero.

    Returns:
        name -> copy; tensors that are not floating-point are returned themselves, detached.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(LENGTH, (len(tensors),), generator=generator).tolist()
    signs = (torch.randint(2, (len(tensors),), generator=generator) * 2 - 1).tolist()
    made: dict[str, torch.Tensor] = {}
    for (name, tensor), start, sign in zip(tensors.items(), starts, signs, strict=True):
        tensor = tensor.detach()
        if tensor.is_floating_point() and tensor.numel():
            end = start + min(LENGTH, tensor.numel())
            factor, either, upwards = (numbers[start:end] for numbers in _lists(dtype, tensor.device))
            is_weight = name in parameters and tensor.numel() > max(tensor.shape, default=1)
            offset = either * (OFFSET / sqrt(tensor[0].numel())) if is_weight else upwards * SHIFT
            tensor = _tiled(tensor, factor, offset)
            if seed and sign < 0 and name in parameters:
                tensor.neg_()
        made[name] = tensor
    return made


@cache
def _lists(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Multipliers, offsets of either sign, and offsets upwards; twice as many as are used from any start."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(2 * LENGTH, generator=generator).mul_(SPREAD).exp_().to(device, dtype)
    offsets = torch.randn(2 * LENGTH, generator=generator).to(device, dtype)
    return factors, offsets, offsets.abs()


def _tiled(tensor: torch.Tensor, factor: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """tensor * factor + offset in one pass, both repeated along it in the order of its memory."""
    flat = tensor.contiguous().view(-1)
    made = torch.empty(tensor.shape, dtype=factor.dtype, device=tensor.device)
    whole, rest = divmod(flat.numel(), len(factor))
    if whole:
        rows, out = (each[: whole * len(factor)].view(whole, -1) for each in (flat, made.view(-1)))
        torch.addcmul(offset, rows, factor, out=out)
    if rest:
        torch.addcmul(offset[:rest], flat[-rest:], factor[:rest], out=made.view(-1)[-rest:])
    return made


def random_like(
    tensor: torch.Tensor, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> torch.Tensor:
    """Normal numbers in the place of an input; one that is not floating-point stays as it is.

    Args:
        tensor: The input.
        dtype: The type wanted.
        device: The device wanted.
        generator: The generator to draw from.

    Returns:
        The new input.
    """
    if not tensor.is_floating_point():
        return tensor.to(device)
    return torch.randn(tensor.shape, generator=generator, dtype=dtype).to(device)
