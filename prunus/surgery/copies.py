"""Copies of a model that hold other tensors.

Models are copied without their weights: each tensor of the copy is created once, in its final shape. Ties, frozen
parameters, memory formats and parametrisations are preserved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from prunus.errors import FileError, PruningError
from prunus.graph import (
    Attribute,
    Graph,
    Keep,
    copy_model,
    get_integer,
    kept_tensors,
    parametrised,
    set_attributes,
    set_integer,
    set_kept,
    skeleton,
    tensors_behind,
)
from prunus.surgery.effective import effective_tensors
from prunus.surgery.slicing import cut, shape_differences, slice_tensor
from prunus.surgery.stated import notes, update_stated_sizes
from prunus.surgery.steps import Mask, make_plain


def checked_tensors(model: nn.Module, graph: Graph) -> dict[str, torch.Tensor]:
    """The model's effective tensors, checked against the graph.

    Args:
        model: The traced model.
        graph: Its graph.

    Returns:
        {name: tensor}, see `effective_tensors`.

    Raises:
        FileError: Names or shapes differ from the graph's.
    """
    tensors = effective_tensors(model)
    wrong = shape_differences(graph.shapes, tensors)
    if wrong:
        raise FileError(f"this model is not the one that was traced: {'; '.join(wrong[:3])}. Trace it again.")
    return tensors


@torch.inference_mode(False)  # tensors made in inference mode could never be trained
def clone(model: nn.Module, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Copy a model, but with other tensors.

    Ties, frozen parameters, memory formats and parametrisations are preserved. A parametrised weight is set to the
    tensor of its plain name; Prunus's own steps (masks, gates) become plain parameters.

    Args:
        model: The model to copy; it is not changed.
        tensors: name -> tensor of any shape, cloned into the copy; names left out keep the model's own.

    Returns:
        The copy.

    Raises:
        PruningError: A parametrisation cannot give the tensor of its weight.
    """
    memo: dict[int, Any] = {}
    for name, tensor in skeleton.named_tensors(model).items():
        new = tensors.get(name, tensor).detach()
        new = new.clone(memory_format=memory_format(tensor, new))
        memo[id(tensor)] = (
            nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        )
    small = copy_model(model, memo)
    for weight in parametrised.weights_behind_steps(small):
        if weight.name in tensors:
            _set_value(small, weight, tensors[weight.name].detach())
    return small


def memory_format(old: torch.Tensor, new: torch.Tensor) -> torch.memory_format:
    """The memory format for `new`, which replaces `old`."""
    last = old.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous()
    return torch.channels_last if last and new.dim() == 4 else torch.contiguous_format


def _set_value(model: nn.Module, weight: parametrised.Behind, value: torch.Tensor) -> None:
    """Let a weight behind steps have a value: the steps stay what they were, except for our own, which go."""
    frozen = not any(parameter.requires_grad for parameter in weight.steps.parameters())
    if weight.only_own:
        plain = nn.Parameter(value.clone(), requires_grad=not frozen)
        for module in filter(parametrize.is_parametrized, list(model.modules())):
            for attribute, steps in list(parametrised.lists_of(module).items()):
                if steps is weight.steps:
                    make_plain(module, attribute, plain)
        return
    steps = parametrised.without_own(weight.steps)
    if not parametrised.give(steps, value) and not _hold(steps, value):
        raise PruningError(
            f"{weight.name} is behind {weight.kinds}, which cannot give the weight that it should have. Make it plain "
            "first (torch.nn.utils.parametrize.remove_parametrizations), or trace the model again as it is now."
        )


def _hold(steps: Any, value: torch.Tensor) -> bool:
    """Let steps give their present value with zeros, by a mask after them; whether `value` is that."""
    training, stays = steps.training, value != 0
    given = steps.eval()()  # in training mode some would change
    steps.train(training)
    holds = given.shape == value.shape and torch.equal(torch.where(stays, given, 0.0), value)
    if holds:
        steps.append(Mask(stays))
    return holds


def resize(model: nn.Module, graph: Graph, keep: Keep, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Copy a model with its tensors cut to a keep; the integers in its modules (groups, heads) follow.

    Args:
        model: The traced model; it is not changed.
        graph: Its graph.
        keep: axis -> indices that stay, checked.
        tensors: name -> full-size tensor to cut from.

    Returns:
        The small model, not proved.
    """
    behind = {
        name: slice_tensor(tensor, graph.behind[name], keep)
        for name, tensor in tensors_behind(model).items()
        if name in graph.behind
    }
    small = clone(model, behind | cut(tensors, graph, keep))
    set_kept(
        small,
        {
            n: slice_tensor(t, graph.state[n], keep)
            for n, t in kept_tensors(small).items()
            if n in graph.state
        },
    )
    widths = graph.widths(keep)
    set_attributes(small, graph.integers(widths), widths)
    update_stated_sizes(model, small)
    small.prunus_notes = notes(model, small, graph, widths)  # pyright: ignore[reportArgumentType]
    return small


def with_tensors(
    model: nn.Module, tensors: dict[str, torch.Tensor], attributes: Mapping[str, Mapping[str, Any]]
) -> nn.Module:
    """Copy a model with other tensors and integers, as when a file is loaded.

    Args:
        model: The model to copy; it is not changed.
        tensors: name -> tensor of any shape.
        attributes: module name -> {attribute: value}, the integers to set.

    Returns:
        The copy.
    """
    small = clone(model, tensors)
    for module_name, values in attributes.items():
        for name, value in values.items():
            module, path = small.get_submodule(module_name), name.split(".")
            set_integer(module, path, tuple(value) if isinstance(value, list) else value)
    update_stated_sizes(model, small)
    set_kept(small, {name: tensors[name] for name in kept_tensors(small) if name in tensors})
    return small


def changed_attributes(small: nn.Module, graph: Graph, keep: Keep) -> dict[str, dict[str, Any]]:
    """The integers of a small model that follow its axes.

    Args:
        small: The shrunk model.
        graph: The graph of the original.
        keep: axis -> indices that stay.

    Returns:
        {module: {attribute: value}}, plain JSON.
    """
    found: dict[str, dict[str, Any]] = {}
    stated = [Attribute(each.place, each.layouts[0]) for each in graph.stated]
    for attribute in graph.integers(graph.widths(keep)) + stated:
        value = get_integer(small.get_submodule(attribute.module), attribute.place.path)
        found.setdefault(attribute.module, {})[attribute.key] = value
    return found
