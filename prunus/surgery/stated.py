"""What a small model says about its own sizes: updated where that is known, noted where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import nn

from prunus.graph import Graph, axes, is_torchs, lies_in, stated_sizes
from prunus.surgery.effective import effective_tensors

# attributes of classes not of torch's in which a size is usual; one that no forward pass reads is only noted
_USUAL = frozenset(
    "num_features embed_dim hidden_size hidden_dim out_channels in_channels in_features out_features dim width "
    "channels embedding_dim d_model inner_dim head_dim num_heads planes features feature_dim intermediate_size".split()
)


def update_stated_sizes(model: nn.Module, small: nn.Module) -> None:
    """Update the sizes that layers state about themselves (in_features, ...) to those of their weights, in place."""
    news = dict(small.named_modules())
    old_tensors, new_tensors = _by_all_names(model), _by_all_names(small)
    for path, old in model.named_modules():
        if path not in news:  # a step behind a weight, such as a mask
            continue
        new = news[path]
        for name, tensor, dim in stated_sizes(path, old_tensors.keys() & new_tensors.keys()):
            before = old_tensors[tensor].shape
            if dim < len(before) and type(vars(old).get(name)) is int and vars(old)[name] == before[dim]:
                setattr(new, name, new_tensors[tensor].shape[dim])
        after = new_tensors.get(f"{path}.weight")
        grouped = isinstance(getattr(new, "groups", None), int) and "in_channels" in vars(new)
        if grouped and after is not None and after.dim() > 2:
            inner, outer = (0, 1) if getattr(new, "transposed", False) else (1, 0)
            layer = cast(nn.Conv2d, new)  # or any other with these attributes
            layer.in_channels = after.shape[inner] * (layer.groups if inner else 1)
            layer.out_channels = after.shape[outer] * (layer.groups if outer else 1)
    for path, name, layer in _sizes_of_wrappers(model):
        if layer in news:  # it is not in a block that is skipped
            setattr(news[path], name, getattr(news[layer], name))


def _sizes_of_wrappers(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """The sizes that a module around one layer of torch repeats, as adapters do: path, name and the layer's path."""
    for path, module in model.named_modules():
        children = {name: vars(child) for name, child in module.named_children() if is_torchs(child)}
        layers = [(name, held) for name, held in children.items() if _USUAL & held.keys()]
        if len(layers) == 1 and not is_torchs(module):
            [(child, held)] = layers
            for name in sorted(_USUAL & vars(module).keys() & held.keys()):
                if type(held[name]) is int and vars(module)[name] == held[name]:
                    yield path, name, f"{path}.{child}".lstrip(".")


def _by_all_names(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a model computes with; tied ones by each of their names."""
    found = dict(model.named_parameters(remove_duplicate=False))
    behind = ".parametrizations."  # a tied weight behind a gate or mask, which keep its shape
    for name in [name for name in found if behind in name and name.endswith(".original")]:
        found[name.replace(behind, ".").removesuffix(".original")] = found[name]
    return found | dict(model.named_buffers(remove_duplicate=False)) | effective_tensors(model)


def notes(model: nn.Module, small: nn.Module, graph: Graph, widths: Mapping[str, int]) -> tuple[str, ...]:
    """Name the integers of a small model that may be those of the original still.

    Args:
        model: The traced model.
        small: The shrunk model.
        graph: The graph of `model`.
        widths: The number of units of each axis of `small`.

    Returns:
        A sentence for each; empty if all is known.
    """
    found: list[str] = []
    for place, layouts in graph.stated:
        sizes = sorted({int(axes.size(layout, widths)) for layout in layouts})
        if len(sizes) > 1:
            found.append(
                f"{place} still says {place.value}: the layers that it describes have {sizes} units now."
            )
    told = {attribute.place for attribute in graph.attributes} | {place for place, _ in graph.stated}
    known = {(place.module, place.path[0]) for place in told}
    known |= {(path, name) for path, name, _ in _sizes_of_wrappers(model)}
    shapes = {name: tensor.shape for name, tensor in effective_tensors(small).items()}
    for name, module in model.named_modules():
        held = {key: value for key, value in vars(module).items() if key in _USUAL and type(value) is int}
        if not held or is_torchs(module):
            continue
        for key, value in held.items():
            inside = (n for n in shapes if (not name or lies_in(n, name)) and (name, key) not in known)
            for tensor in inside:
                dim = next(
                    (d for d, n in enumerate(graph.shapes[tensor]) if n == value != shapes[tensor][d]), None
                )
                if dim is not None:
                    found.append(
                        f"{name}.{key}".lstrip(".")
                        + f" still says {value}, while {tensor} has {shapes[tensor][dim]} "
                        "units there now; no forward pass reads it as a size. Set it, if your code does."
                    )
                    break
    return tuple(found)
