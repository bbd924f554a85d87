"""Masks of single weights: {parameter name: bool tensor of its shape, True stays}; others are dense.

A model *held* by masks computes with weight * mask, also after momentum, weight decay or a moving average
changed the weight itself. The masks are buffers of the model, so checkpoints, copies and other processes have
them too. `finalise` makes it an ordinary model with zeros in it. Names are the graph's: tied weights once.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import UserError
from prunus.graph import Graph, Keep
from prunus.sparse import reach
from prunus.surgery import copies, effective_tensors, slicing
from prunus.surgery import steps as weight_steps

Masks = Mapping[str, Tensor]
MB = 2**20  # bytes
ZLIB_LEVEL = 6


def check_masks(graph: Graph, masks: Masks) -> dict[str, Tensor]:
    """Check that masks fit the traced model, and copy the dict. Raises UserError if not."""
    return _check_shapes(
        {name: graph.shapes[name] for name in graph.layouts if name in graph.parameters}, masks
    )


def _check_shapes(shapes: Mapping[str, torch.Size], masks: Masks) -> dict[str, Tensor]:
    if not isinstance(masks, Mapping):
        raise UserError(
            f"masks should be a dict of parameter name to bool tensor, but is a {type(masks).__name__}."
        )
    wrong: list[str] = []
    for name, mask in masks.items():
        if name not in shapes:
            wrong.append(f"{name} is no parameter of it")
        elif not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            wrong.append(f"{name} should be a bool tensor, is {getattr(mask, 'dtype', type(mask).__name__)}")
        elif mask.shape != shapes[name]:
            wrong.append(f"{name} should be {tuple(shapes[name])}, is {tuple(mask.shape)}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"these masks are not of this model: {'; '.join(wrong[:3])}{more}. "
            "Give masks made from the graph of the same model (for a smaller one, see masks.sliced)."
        )
    return dict(masks)


# ---------------------------------------------------------------------------------- held models
@torch.inference_mode(False)  # tensors made in inference mode could never be trained
@torch.no_grad()
def hold(model: nn.Module, graph: Graph | None, masks: Masks) -> None:
    """Let a model, in place, compute with zeros where the masks are False, until `finalise`.

    A weight already held takes its new mask, in the same buffer, so that optimisers and averages in use
    continue; weights that return start at zero. Tied weights share one mask. The mask acts after other
    parametrisations (weight_norm). Parameters stay the same objects.

    Args:
        model: The model, changed in place.
        graph: Its graph; None if it has none (after a shrink), then masks are named as the model's tensors
            are.
        masks: Bool tensors by parameter name; weights that they do not name stay as they are.

    Raises:
        UserError: The masks are of another model; nothing is changed.
        FileError: The graph is of another model; nothing is changed.
    """
    tensors = effective_tensors(model) if graph is None else copies.checked_tensors(model, graph)
    buffers = dict(model.named_buffers())
    masks = _check_shapes(
        {name: tensor.shape for name, tensor in tensors.items() if name not in buffers}, masks
    )
    there = {weight.name: weight for weight in weight_steps.find_steps(model, weight_steps.Mask)}
    for name, mask in masks.items():
        ones = torch.ones_like(tensors[name], dtype=torch.bool, requires_grad=False)
        weight = there.get(name) or weight_steps.add_step(model, name, weight_steps.Mask(ones))
        steps, last = weight.steps, weight.step(weight_steps.Mask)
        assert last is not None
        plain = (
            steps.is_tensor and len(steps) == 1
        )  # the parameters of a weight_norm have no zeros of their own
        if plain:
            steps.original.masked_fill_(~last.mask, 0)
        last.mask.copy_(mask)
        if plain:
            steps.original.masked_fill_(~last.mask, 0)


def held(model: nn.Module) -> dict[str, Tensor]:
    """Copy the masks that hold a model now.

    Args:
        model: A model, held or not.

    Returns:
        Bool tensors by the graph's parameter names; empty if the model is not held.
    """
    found: dict[nn.Module, tuple[str, Tensor]] = {}
    for weight in weight_steps.find_steps(model, weight_steps.Mask):
        step = weight.step(weight_steps.Mask)
        assert step is not None
        found.setdefault(weight.steps, (weight.name, step.mask.clone()))
    return dict(found.values())


def finalise(model: nn.Module) -> None:
    """Make a held model, in place, an ordinary one with zeros in its parameters, classes and ties as before.

    Parameters stay the same objects, except under another parametrisation (weight_norm), which is removed
    too.

    Args:
        model: The model; if it is not held, nothing happens.
    """
    weight_steps.remove_steps(model, weight_steps.Mask)


# -------------------------------------------------------------------------------------- counting
def survivors(masks: Masks) -> dict[str, int]:
    """Count the weights of each mask that stay.

    Args:
        masks: Bool tensors by parameter name.

    Returns:
        Their numbers by parameter name.
    """
    return {name: int(mask.count_nonzero()) for name, mask in masks.items()}


def density(masks: Masks) -> float:
    """The share (0 to 1) of all masked weights that stay; 1 if there are none."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(survivors(masks).values()) / total if total else 1.0


def sliced(graph: Graph, keep: Keep, masks: Masks) -> dict[str, Tensor]:
    """The masks of the model shrunk to a keep. Raises UserError if either is of another model."""
    keep = graph.check_keep(keep)
    return {
        n: slicing.slice_tensor(mask, graph.layouts[n], keep) for n, mask in check_masks(graph, masks).items()
    }


def dead(graph: Graph, masks: Masks) -> dict[str, list[int]]:
    """Find the units through which no signal passes, as the keep that removes them. Source: ours.

    A unit is dead if no path of weights that stay leads to it from the inputs, or none from it to the
    outputs. If all units of an axis are dead, the first stays. Units over which statistics are taken (those
    of a layer norm) stay, because the others depend on their number.

    Removing them leaves the outputs as they are, with one exception: a unit without an input still has a
    constant value, from its bias, the shift of its norm or its activation (sigmoid). If that unit is used,
    its contribution is lost, as in the masked model whose unit is zero (with which the proof compares);
    retraining recovers it.

    Args:
        graph: The graph of the model.
        masks: Bool tensors by parameter name.

    Returns:
        The indices that stay, for the axes that have dead units.

    Raises:
        UserError: The masks are of another model.
    """
    units = reach.alive(graph, check_masks(graph, masks))
    kept = {name: alive.nonzero().flatten().tolist() or [0] for name, alive in units.items()}
    return {name: indices for name, indices in kept.items() if len(indices) < graph.axes[name].size}


# ------------------------------------------------------------------------------------------ size
def packed(mask: Tensor) -> Tensor:
    """Pack a bool tensor into bits.

    Args:
        mask: A bool tensor of n elements, of any shape.

    Returns:
        A uint8 tensor (ceil(n / 8),): element i is bit i % 8, the lowest first, of byte i // 8.
    """
    return torch.from_numpy(np.packbits(mask.detach().cpu().flatten().numpy(), bitorder="little"))


def unpacked(bits: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Unpack the bits of `packed`.

    Args:
        bits: A uint8 tensor (ceil(n / 8),).
        shape: The shape of the mask, of n elements.

    Returns:
        The bool tensor of this shape.

    Raises:
        UserError: The bits are not those of a mask of this shape.
    """
    count = torch.Size(shape).numel()
    spare = -count % 8
    fits = bits.dtype == torch.uint8 and bits.shape == ((count + 7) // 8,)
    if not fits or (spare and bits[-1] >> (8 - spare)):
        raise UserError(
            f"{count} weights should be packed in uint8 ({(count + 7) // 8},) with zeros after the last, but "
            f"are {bits.dtype} {tuple(bits.shape)}; the file is damaged, or of another model."
        )
    flat = np.unpackbits(bits.cpu().numpy(), count=count, bitorder="little")
    return torch.from_numpy(flat.astype(bool)).reshape(shape)


def sizes_mb(model: nn.Module | Mapping[str, Tensor], masks: Masks) -> dict[str, float]:
    """Compute the size of a model on disk in MiB (2**20 bytes), without headers and without writing it.

    Args:
        model: A model, or its tensors by name.
        masks: Bool tensors by parameter name.

    Returns:
        dense: all parameters and buffers as they are; packed: of masked ones the values that stay and a bit
        for
        every weight; compressed: the packed bytes of each tensor and mask through zlib (level 6).
    """
    tensors: Mapping[str, Tensor] = effective_tensors(model) if isinstance(model, nn.Module) else model
    masks = _check_shapes({name: tensor.shape for name, tensor in tensors.items()}, masks)
    dense, stored = 0, {"packed": 0, "compressed": 0}
    for name, tensor in tensors.items():
        dense += tensor.numel() * tensor.element_size()
        tensor = tensor.detach().cpu()
        pieces: list[Any] = [tensor]
        if name in masks:
            pieces = [tensor[masks[name].cpu()], packed(masks[name])]
        for piece in pieces:
            data = piece.contiguous().flatten().view(torch.uint8).numpy()
            stored["packed"] += data.nbytes
            stored["compressed"] += len(zlib.compress(data, ZLIB_LEVEL)) if data.nbytes else 0
    return {"dense": dense / MB} | {what: count / MB for what, count in stored.items()}
