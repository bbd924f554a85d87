"""Apply a keep: as zeros (mask), as smaller weights for one call (crop), or for real (shrink).

Every shrink is proved. The small model holds the kept weights, bit by bit. Then both it and the original, with zeros
in all weights of the removed units, are run in every mode that was traced, on random weights and inputs through which
a signal passes, so that fresh weights and zeros cannot hide a wrong index; their outputs, and the buffers that they
write, must agree. That is decided in float32 if the difference is no more than rounding, otherwise in double
precision. In both, operators that mix units (layer norm, softmax, means over a pruned axis) take their statistics over
the kept units only, and random numbers (dropout, noise) are the same for the same unit. Blocks that are skipped are
passed by in the original, if they return their input (a branch: zeros) with their parameters at zero. Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from prunus.errors import UserError, unknown
from prunus.graph import Graph, Keep, make_skeleton, plain_model, set_attributes
from prunus.surgery.copies import checked_tensors, clone, resize
from prunus.surgery.proof import prove
from prunus.surgery.skipped import Skip, put_skipped
from prunus.surgery.slicing import cut, mask_tensors


def mask(model: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    """Copy `model` with zeros in all weights of the units and blocks that are not kept; shapes stay the same.

    A norm over a cut axis counts the zeros, so the copy answers otherwise than the small model, whose proof takes such
    statistics over the kept units. A block that ends with a norm returns zeros, where `shrink` lets it return its
    input.

    Args:
        model: The traced model; it is not changed.
        graph: Its graph.
        keep: axis -> indices that stay.

    Returns:
        The copy.

    Raises:
        FileError: `model` is not the model that was traced.
        UserError: `keep` does not fit the graph.
    """
    model = plain_model(model)
    keep, tensors = graph.check_keep(keep), checked_tensors(model, graph)
    return clone(model, mask_tensors(tensors, graph, keep))


def crop(
    model: nn.Module,
    graph: Graph,
    keep: Keep,
    *args: Any,
    weights: Mapping[str, torch.Tensor] | None = None,
    **kwargs: Any,
) -> Any:
    """Run `model` for one call as if it were shrunk; gradients reach the full-size weights.

    Norm statistics are not updated.

    Args:
        model: The traced model; it is not changed.
        graph: Its graph.
        keep: axis -> indices that stay.
        *args: Arguments of the call.
        weights: name -> full-size tensor, cut in place of the model's own (for hypernetworks).
        **kwargs: Keyword arguments of the call.

    Returns:
        The output of the call.

    Raises:
        FileError: `model` is not the model that was traced.
        UserError: `keep` does not fit the graph, or `weights` has an unknown name or a wrong shape.
    """
    model = plain_model(model)
    keep, tensors = graph.check_keep(keep), checked_tensors(model, graph)
    weights = weights or {}
    for name, tensor in weights.items():
        if name not in tensors:
            raise unknown("weight", name, tensors)
        if tensor.shape != tensors[name].shape:
            raise UserError(
                f"weights[{name!r}] should have the full shape {tuple(tensors[name].shape)}, has "
                f"{tuple(tensor.shape)}; give it uncut."
            )
    lost = graph.blocks.lost(keep)
    part = cut({n: t for n, t in {**tensors, **weights}.items() if n not in lost}, graph, keep)
    part |= {n: t.clone() for n, t in part.items() if n not in graph.parameters}  # the call may write to them
    bare = make_skeleton(model)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in bare.named_modules():
        module.training = modes[name]
    set_attributes(bare, graph.attributes, graph.widths(keep))
    put_skipped(bare, map(Skip.of, graph.blocks.skipped(keep)))
    return torch.func.functional_call(bare, part, args, kwargs)


def shrink(model: nn.Module, graph: Graph, keep: Keep, *, verify: str = "on") -> nn.Module:
    """Copy `model` with only the units in `keep`: smaller, of the same class, and proved.

    Args:
        model: The traced model; it is not changed.
        graph: Its graph.
        keep: axis -> indices that stay.
        verify: "on" proves the result against the masked original; "off" skips the proof, for shrinking in a loop.

    Returns:
        The small model.

    Raises:
        FileError: `model` is not the model that was traced.
        PruningError: The proof failed; the message names the axes.
        UserError: `keep` does not fit the graph, or `verify` is neither "on" nor "off".
    """
    if verify not in ("on", "off"):
        raise UserError(f'verify must be "on" or "off", got {verify!r}.')
    model = plain_model(model)
    keep = graph.check_keep(keep)
    small = resize(model, graph, keep, checked_tensors(model, graph))
    if verify == "on":
        prove(model, graph, keep, small)
    return small
