"""Masks: which single weights stay. {parameter name: bool tensor of its shape, True stays}; others are dense.

A model *held* by masks computes with weight * mask, whatever an optimiser's momentum, weight decay or a moving average
do to the weight behind it; the masks are buffers of the model, so checkpoints, copies and other processes have them
too. `finalise` makes it an ordinary model with zeros in it. Names are the graph's: tied weights once.
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
from prunus.surgery import copies, slicing
from prunus.surgery import steps as weight_steps

Masks = Mapping[str, Tensor]
MB = 2**20  # bytes
ZLIB_LEVEL = 6


def checked(graph: Graph, masks: Masks) -> dict[str, Tensor]:
    """`masks`, known to fit the traced model. Raises UserError naming the first differences."""
    return _fitting({name: graph.shapes[name] for name in graph.layouts if name in graph.parameters}, masks)


def _fitting(shapes: Mapping[str, torch.Size], masks: Masks) -> dict[str, Tensor]:
    if not isinstance(masks, Mapping):
        raise UserError(
            f"masks should be a dict of parameter name to bool tensor, is a {type(masks).__name__}."
        )
    wrong = []
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
class Mask(nn.Module):
    """A parametrisation: zero where the mask is False, whatever stands there (NaN too); no gradient goes there."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, 0.0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


@torch.inference_mode(False)  # tensors made there could never be trained
@torch.no_grad()
def hold(model: nn.Module, graph: Graph | None, masks: Masks) -> None:
    """Let `model`, in place, compute with zeros where `masks` say so, until `finalise`.

    A weight already held takes its new mask (in the buffer it has, so that optimisers and averages in use go on);
    what comes back starts at zero. Weights `masks` does not name stay as they are. Tied weights share one mask;
    after other parametrisations (weight_norm) the mask acts last. Parameters stay the same objects.
    graph: of this model; None where it has none (after a shrink), then `masks` go by the model's own names.
    Raises UserError if the masks, or FileError if the graph, are of another model; then nothing is changed.
    """
    tensors = copies.effective(model) if graph is None else copies.checked_tensors(model, graph)
    buffers = dict(model.named_buffers())
    masks = _fitting({name: tensor.shape for name, tensor in tensors.items() if name not in buffers}, masks)
    there = {weight.name: weight for weight in weight_steps.found(model, Mask)}
    for name, mask in masks.items():
        ones = torch.ones_like(tensors[name], dtype=torch.bool, requires_grad=False)
        weight = there.get(name) or weight_steps.put(model, name, Mask(ones))
        steps, last = weight.steps, weight.step(Mask)
        plain = steps.is_tensor and len(steps) == 1  # what stands behind a norm has no zeros of its own
        if plain:
            steps.original.masked_fill_(~last.mask, 0)
        last.mask.copy_(mask)
        if plain:
            steps.original.masked_fill_(~last.mask, 0)


def held(model: nn.Module) -> dict[str, Tensor]:
    """The masks that hold `model` now (copies), by the graph's names; none if it is not held."""
    found: dict[nn.Module, tuple[str, Tensor]] = {}
    for weight in weight_steps.found(model, Mask):
        found.setdefault(weight.steps, (weight.name, weight.step(Mask).mask.clone()))
    return dict(found.values())


def finalise(model: nn.Module) -> None:
    """Make a held `model`, in place, an ordinary one: plain parameters with zeros in them, its classes and ties back.

    Parameters stay the same objects, but those behind another parametrisation (weight_norm), which goes too.
    Nothing happens to a model that is not held.
    """
    weight_steps.take_off(model, Mask)


# -------------------------------------------------------------------------------------- counting
def survivors(masks: Masks) -> dict[str, int]:
    """How many weights of each mask stay."""
    return {name: int(mask.count_nonzero()) for name, mask in masks.items()}


def density(masks: Masks) -> float:
    """The share of all masked weights that stay, 0 to 1; 1 if there are none."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(survivors(masks).values()) / total if total else 1.0


def sliced(graph: Graph, keep: Keep, masks: Masks) -> dict[str, Tensor]:
    """The masks of the model shrunk to `keep`. Raises UserError if the keep or the masks are of another model."""
    keep = graph.check_keep(keep)
    return {n: slicing.sliced(mask, graph.layouts[n], keep) for n, mask in checked(graph, masks).items()}


def dead(graph: Graph, masks: Masks) -> dict[str, list[int]]:
    """The keep that removes the units through which nothing passes; axes without one are not named.

    A unit is dead if no path of weights that stay leads to it from the inputs, or none from it to the outputs (so
    also if its neighbours are dead); where all units of an axis are dead, the first stays. Units over which statistics
    are taken (a layer norm's) stay, for the others depend on how many they are.
    A unit that nothing leads to still has a constant value, from its bias, its norm's shift or what its activation
    makes of zero (sigmoid), and that goes with it: if it is used, the model's outputs change by what it added, as in
    the masked model whose unit is zero (of which the shrink is proved), and retraining has to make up for it. All
    else leaves the outputs as they are.
    Raises UserError if the masks are of another model.
    """
    units = reach.alive(graph, checked(graph, masks))
    kept = {name: alive.nonzero().flatten().tolist() or [0] for name, alive in units.items()}
    return {name: indices for name, indices in kept.items() if len(indices) < graph.axes[name].size}


# ------------------------------------------------------------------------------------------ size
def packed(mask: Tensor) -> Tensor:
    """A bool tensor as bits, uint8 (ceil(n / 8),): weight i is bit i % 8, the lowest first, of byte i // 8."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().flatten().numpy(), bitorder="little"))


def unpacked(bits: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The bool tensor of `shape` that `packed` gave. Raises UserError if the bits are not of this shape."""
    count = torch.Size(shape).numel()
    spare = -count % 8
    fits = bits.dtype == torch.uint8 and bits.shape == ((count + 7) // 8,)
    if not fits or (spare and bits[-1] >> (8 - spare)):
        raise UserError(
            f"{count} weights should be packed in uint8 ({(count + 7) // 8},) with zeros behind the last, but there "
            f"are {bits.dtype} {tuple(bits.shape)}."
        )
    flat = np.unpackbits(bits.cpu().numpy(), count=count, bitorder="little")
    return torch.from_numpy(flat.astype(bool)).reshape(shape)


def sizes_mb(model: nn.Module | Mapping[str, Tensor], masks: Masks) -> dict[str, float]:
    """What a model takes on disk, in MiB (2**20 bytes), reckoned without writing; headers are not counted.

    dense: all parameters and buffers as they are. packed: of masked ones the values that stay and a bit for every
    weight. compressed: the packed bytes, each tensor's and each mask's, through zlib (level 6).
    """
    tensors: Mapping[str, Tensor] = copies.effective(model) if isinstance(model, nn.Module) else model
    masks = _fitting({name: tensor.shape for name, tensor in tensors.items()}, masks)
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
