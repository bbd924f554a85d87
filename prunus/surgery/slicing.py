"""The part of a tensor that stays under a keep, cut out or with zeros around it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunus.graph import DIRECTION, Graph, Keep, Layout, Places, axes


def slice_tensor(
    tensor: torch.Tensor, layouts: list[Layout], keep: Keep, places: Places | None = None
) -> torch.Tensor:
    """Cut one tensor to the part that stays; differentiable.

    Args:
        tensor: A parameter or buffer at full size.
        layouts: The layout of each of its dimensions.
        keep: axis -> indices that stay.
        places: Those of the same keep, so that the indices of an axis are computed once for many tensors.

    Returns:
        The part, or the tensor itself if nothing is cut.
    """
    return (places or Places(keep)).cut(tensor, layouts)


def cut(tensors: Mapping[str, torch.Tensor], graph: Graph, keep: Keep) -> dict[str, torch.Tensor]:
    """Cut all tensors of a model; the indices of an axis are computed once for all of them.

    Args:
        tensors: name -> tensor at full size.
        graph: The graph of the model.
        keep: axis -> indices that stay.

    Returns:
        {name: the part that stays}; differentiable.
    """
    places = Places(keep)
    return {name: slice_tensor(tensor, graph.layouts[name], keep, places) for name, tensor in tensors.items()}


def zero_tensor(tensor: torch.Tensor, layouts: list[Layout], keep: Keep) -> torch.Tensor:
    """The tensor at full size with zeros in all entries that do not stay."""
    return Places(keep).clear(tensor, layouts)


def shape_differences(shapes: Mapping[str, torch.Size], tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """List how tensors differ from expected shapes.

    Args:
        shapes: name -> expected shape.
        tensors: name -> tensor.

    Returns:
        One phrase for each tensor that is missing, unexpected or of another shape; empty if all agree.
    """
    found = [
        f"{name} should be {tuple(shape)}, is {tuple(tensors[name].shape) if name in tensors else 'missing'}"
        for name, shape in shapes.items()
        if name not in tensors or tensors[name].shape != shape
    ]
    return found + [f"{name} is unexpected" for name in tensors if name not in shapes]


def mask_tensors(tensors: dict[str, torch.Tensor], graph: Graph, keep: Keep) -> dict[str, torch.Tensor]:
    """`tensors` with zeros in the parameters of removed units and skipped blocks.

    Buffers stay as they are: their entries at removed units do not matter, and some (variances) are divided by. So are
    the directions of the old weight_norm: the lengths of removed units are zero instead.
    """
    places, lost = Places(keep), graph.blocks.lost(keep)
    zeros = {n: torch.zeros_like(t) for n, t in tensors.items() if n in lost & graph.parameters}
    left = ((n, t) for n, t in tensors.items() if n in graph.parameters - lost)
    return {**tensors, **{n: places.clear(t, zeroed(graph, n)) for n, t in left}, **zeros}


def zeroed(graph: Graph, name: str) -> list[Layout]:
    """The layouts of a parameter's dimensions, but plain sizes where entries may not be zero."""
    return [
        axes.size(layout) if graph.role(name, dim) == DIRECTION else layout
        for dim, layout in enumerate(graph.layouts[name])
    ]
