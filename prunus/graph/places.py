"""The places of the units that stay, along the dimensions of tensors."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch

from prunus.errors import UserError
from prunus.graph import axes
from prunus.graph.axes import Layout

Keep = Mapping[str, Sequence[int]]  # the indices that stay, by the name of their axis
Where = list[torch.Tensor | None]  # per dimension, some positions, or None


class Places:
    """The positions that stay along dimensions under one keep, computed once for each layout and device.

    Args:
        keep: axis -> indices that stay.
    """

    def __init__(self, keep: Keep):
        self.keep = keep
        self._stay: dict[tuple[Layout, torch.device], torch.Tensor | None] = {}
        self._go: dict[tuple[Layout, torch.device], torch.Tensor] = {}

    def stay(self, dims: Sequence[Layout], device: torch.device) -> Where:
        """For each dimension the positions that stay; None if all do."""
        return [None if isinstance(layout, int) else self._positions(layout, device) for layout in dims]

    def go(self, dims: Sequence[Layout], device: torch.device) -> Where:
        """For each dimension the positions that do not stay; None if all do."""
        found: Where = []
        for layout, stay in zip(dims, self.stay(dims, device), strict=True):
            key = axes.normal(layout), device
            if stay is not None and key not in self._go:
                gone = torch.ones(axes.size(layout), dtype=torch.bool, device=device)
                gone[stay] = False
                self._go[key] = gone.nonzero().flatten()
            found.append(None if stay is None else self._go[key])
        return found

    def _positions(self, layout: Layout, device: torch.device) -> torch.Tensor | None:
        key = axes.normal(layout), device
        if key not in self._stay:
            cut = any(axis.name in self.keep for axis in axes.leaves(layout))
            self._stay[key] = axes.positions(layout, self.keep).to(device) if cut else None
        return self._stay[key]

    def cut(self, tensor: torch.Tensor, dims: Sequence[Layout]) -> torch.Tensor:
        """The part of a tensor that stays; the tensor itself if all does."""
        return take(tensor, self.stay(dims, tensor.device))

    def clear(self, tensor: torch.Tensor, dims: Sequence[Layout]) -> torch.Tensor:
        """A tensor with zeros wherever it does not stay; the tensor itself if all does."""
        where = self.go(dims, tensor.device)
        return tensor if all(gone is None for gone in where) else set_zero(tensor.clone(), where)

    def put(self, part: torch.Tensor, dims: Sequence[Layout], full: torch.Tensor) -> torch.Tensor:
        """A copy of `full` in which a part takes the places that stay; of the part itself if all do."""
        stays = self.stay(dims, full.device)
        if all(stay is None for stay in stays):
            return part.clone()
        every = [torch.arange(n, device=full.device) for n in full.shape]
        index = [all_ if stay is None else stay for stay, all_ in zip(stays, every, strict=True)]
        return full.index_put(torch.meshgrid(*index, indexing="ij"), part)


def take(tensor: torch.Tensor, where: Where) -> torch.Tensor:
    """The part of a tensor at these positions of its dimensions; the tensor itself if that is all."""
    for dim, stay in enumerate(where):
        if stay is not None:
            tensor = tensor.index_select(dim, stay)
    return tensor


def set_zero(tensor: torch.Tensor, where: Where) -> torch.Tensor:
    """Set a tensor to zero, in place, at these positions of its dimensions; returns it."""
    for dim, gone in enumerate(where):
        if gone is not None:
            tensor.index_fill_(dim, gone, 0)
    return tensor


def check_indices(name: str, indices: Sequence[int], size: int, least: int) -> list[int]:
    """Check the units of an axis that are to stay.

    Args:
        name: The name of the axis, for the message.
        indices: The units.
        size: How many there are.
        least: How many stay at least.

    Returns:
        The units, sorted.

    Raises:
        UserError: They are too few, repeated, out of range, or no integers.
    """
    try:
        wanted = [
            i if type(i) is int else operator.index(i) for i in indices if i is not True and i is not False
        ]
    except TypeError:
        wanted = [-1]
    inside = all(0 <= unit < size for unit in wanted)
    if not (inside and len(set(wanted)) == len(indices) >= least):
        raise UserError(
            f"keep[{name!r}] must hold {least} to {size} different integers from 0 to {size - 1}; got {indices!r}."
        )
    return sorted(wanted)
