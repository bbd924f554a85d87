"""Integers that modules keep, and how they are set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from prunus.graph import axes
from prunus.graph.axes import Layout
from prunus.graph.skeleton import named_tensors


class Attribute(NamedTuple):
    """An integer attribute of a module that follows a layout; `item` is its place in a tuple."""

    module: str
    name: str
    item: int | None
    layout: Layout


def set_attributes(
    model: nn.Module, attributes: Sequence[Attribute], widths: Mapping[str, Any]
) -> dict[tuple[str, str], Any]:
    """Set module attributes to the sizes that follow from new widths.

    Args:
        model: The model whose modules are changed in place.
        attributes: The attributes that follow, such as `graph.attributes`.
        widths: The number of units of each axis, by its name; axes that are not named keep their size.

    Returns:
        The new value of each attribute (the whole tuple, for an item), by (module name, attribute name).
    """
    changed: dict[tuple[str, str], Any] = {}
    for module_name, name, item, layout in attributes:
        module = model.get_submodule(module_name)
        value = int(axes.size(layout, widths))
        if item is not None:
            old = getattr(module, name)
            items = [*old[:item], value, *old[item + 1 :]]
            value = (
                type(old)(*items) if hasattr(old, "_fields") else type(old)(items)
            )  # a named tuple, or not
        setattr(module, name, value)
        changed[module_name, name] = value
    return changed


def slots(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """The modules and attribute names that hold each parameter and buffer: several if it is tied."""
    names = {id(tensor): name for name, tensor in named_tensors(model).items()}
    found: dict[str, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                found[names[id(tensor)]].append((module, name))
    return found
