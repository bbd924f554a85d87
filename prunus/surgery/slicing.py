"""The part of a tensor that stays under a keep, cut out or with zeros around it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunus.graph import Graph, Keep, axes

Places = dict[tuple[axes.Layout, torch.device], torch.Tensor | None]  # None: everything stays


def sliced(
    tensor: torch.Tensor, layouts: list[axes.Layout], keep: Keep, places: Places | None = None
) -> torch.Tensor:
    """The part of a parameter or buffer that stays; differentiable. Untouched ones are returned as they are.

    places: indices found for other tensors under the same keep; what is found here is added.
    """
    places = {} if places is None else places
    for dim, layout in enumerate(layouts):
        key = axes.normal(layout), tensor.device
        if key not in places:
            cuts = any(axis.name in keep for axis in axes.leaves(layout))
            places[key] = axes.positions(layout, keep).to(tensor.device) if cuts else None
        index = places[key]
        if index is not None:
            tensor = tensor.index_select(dim, index)
    return tensor


def cut(tensors: Mapping[str, torch.Tensor], graph: Graph, keep: Keep) -> dict[str, torch.Tensor]:
    """The part of each of a model's tensors that stays; the indices of an axis are found once for all of them."""
    places: Places = {}
    return {name: sliced(tensor, graph.layouts[name], keep, places) for name, tensor in tensors.items()}


def zeroed(tensor: torch.Tensor, layouts: list[axes.Layout], keep: Keep) -> torch.Tensor:
    """The whole tensor with zeros at everything that goes."""
    for dim, layout in enumerate(layouts):
        if any(axis.name in keep for axis in axes.leaves(layout)):
            stays = torch.zeros(tensor.shape[dim], dtype=torch.bool)
            stays[axes.positions(layout, keep)] = True
            shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
            tensor = torch.where(stays.to(tensor.device).view(shape), tensor, torch.zeros_like(tensor))
    return tensor


def differences(shapes: Mapping[str, torch.Size], tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """How `tensors` differ from the shapes expected of them, in words."""
    found = [
        f"{name} should be {tuple(shape)}, is {tuple(tensors[name].shape) if name in tensors else 'missing'}"
        for name, shape in shapes.items()
        if name not in tensors or tensors[name].shape != shape
    ]
    return found + [f"{name} is unexpected" for name in tensors if name not in shapes]


def masked(tensors: dict[str, torch.Tensor], graph: Graph, keep: Keep) -> dict[str, torch.Tensor]:
    """Zeros in the parameters; buffers stay, for nothing reads them at the units that go (and some divide)."""
    return {n: zeroed(t, graph.layouts[n], keep) if n in graph.parameters else t for n, t in tensors.items()}
