"""The places of the units that stay, along the dimensions of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from prunus.graph import axes
from prunus.graph.axes import Layout

Keep = Mapping[str, Sequence[int]]  # the indices that stay, by the name of their axis


class Places:
    """The positions that stay along dimensions under one keep, computed once for each layout and device.

    Args:
        keep: axis -> indices that stay.
    """

    def __init__(self, keep: Keep):
        self.keep = keep
        self._stay: dict[tuple[Layout, torch.device], torch.Tensor | None] = {}
        self._go: dict[tuple[Layout, torch.device], torch.Tensor] = {}

    def stay(self, layout: Layout, device: torch.device) -> torch.Tensor | None:
        """The positions that stay; None if all do."""
        if isinstance(layout, int):
            return None
        key = axes.normal(layout), device
        if key not in self._stay:
            cut = any(axis.name in self.keep for axis in axes.leaves(layout))
            self._stay[key] = axes.positions(layout, self.keep).to(device) if cut else None
        return self._stay[key]

    def go(self, layout: Layout, device: torch.device) -> torch.Tensor | None:
        """The positions that do not stay; None if all do."""
        stay = self.stay(layout, device)
        if stay is None:
            return None
        key = axes.normal(layout), device
        if key not in self._go:
            gone = torch.ones(axes.size(layout), dtype=torch.bool, device=device)
            gone[stay] = False
            self._go[key] = gone.nonzero().flatten()
        return self._go[key]

    def cut(self, tensor: torch.Tensor, dims: Iterable[Layout]) -> torch.Tensor:
        """The part of a tensor that stays; the tensor itself if all does."""
        for dim, layout in enumerate(dims):
            where = self.stay(layout, tensor.device)
            if where is not None:
                tensor = tensor.index_select(dim, where)
        return tensor

    def clear(self, tensor: torch.Tensor, dims: Sequence[Layout]) -> torch.Tensor:
        """A tensor with zeros wherever it does not stay; the tensor itself if all does."""
        if all(self.stay(layout, tensor.device) is None for layout in dims):
            return tensor
        return self.clear_(tensor.clone(), dims)

    def clear_(self, tensor: torch.Tensor, dims: Sequence[Layout]) -> torch.Tensor:
        """Set a tensor to zero wherever it does not stay, in place; returns it."""
        for dim, layout in enumerate(dims):
            where = self.go(layout, tensor.device)
            if where is not None:
                tensor.index_fill_(dim, where, 0)
        return tensor

    def put(self, tensor: torch.Tensor, dims: Sequence[Layout], full: torch.Tensor) -> torch.Tensor:
        """A copy of `full` in which a small tensor takes the places that stay."""
        stays = [self.stay(layout, full.device) for layout in dims]
        index = [
            (torch.arange(full.shape[dim], device=full.device) if where is None else where).view(
                [-1 if d == dim else 1 for d in range(full.dim())]
            )
            for dim, where in enumerate(stays)
        ]
        return full.index_put(tuple(index), tensor) if any(where is not None for where in stays) else tensor.clone()
