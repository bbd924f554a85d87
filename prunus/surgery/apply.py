"""Keep applied: the same indices as zeros (mask), as smaller weights for one call (crop), or for real (shrink).

Every shrink is proved. The original, with the units that go set to zero in all its weights, and the small
model are run side by side in double precision, on weights shaken a little so that fresh ones and zeros
cannot hide a wrong index; their outputs must agree. Operators that mix units (layer norm, softmax, means
over a pruned axis) take their statistics over the units that are kept, in both. Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from prunus.errors import UserError, unknown
from prunus.graph import Graph, Keep, make_skeleton, set_attributes
from prunus.surgery.copies import checked_tensors, clone, resized
from prunus.surgery.proof import prove
from prunus.surgery.slicing import cut, masked


def mask(model: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    """A copy of `model`, of the same shapes, with zeros in all weights at the units that go."""
    keep, tensors = graph.check_keep(keep), checked_tensors(model, graph)
    return clone(model, masked(tensors, graph, keep))


def crop(
    model: nn.Module,
    graph: Graph,
    keep: Keep,
    *args: Any,
    weights: Mapping[str, torch.Tensor] | None = None,
    **kwargs: Any,
) -> Any:
    """Run `model` as if shrunk, for one call; gradients reach the full weights. Norm statistics are not updated.

    weights: full-size tensors by name to cut from, in place of the model's own (hypernetworks).
    """
    keep, tensors = graph.check_keep(keep), checked_tensors(model, graph)
    weights = weights or {}
    for name, tensor in weights.items():
        if name not in tensors:
            raise unknown("weight", name, tensors)
        if tensor.shape != tensors[name].shape:
            raise UserError(
                f"weights[{name!r}] should be {tuple(tensors[name].shape)}, is {tuple(tensor.shape)}."
            )
    part = cut({**tensors, **weights}, graph, keep)
    part |= {n: t.clone() for n, t in part.items() if n not in graph.parameters}  # the call may write to them
    bare = make_skeleton(model)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in bare.named_modules():
        module.training = modes[name]
    set_attributes(bare, graph.attributes, graph.widths(keep))
    return torch.func.functional_call(bare, part, args, kwargs)


def shrink(model: nn.Module, graph: Graph, keep: Keep, *, verify: str = "on") -> nn.Module:
    """A smaller copy of `model`, of the same class, with only the units in `keep`; the original is untouched.

    verify: "on" proves the result against the masked original, "off" trusts it (for those who shrink in a loop).
    Raises PruningError naming the axes if the proof fails, UserError if `keep` does not fit the graph.
    """
    if verify not in ("on", "off"):
        raise UserError(f'verify must be "on" or "off", got {verify!r}.')
    keep = graph.check_keep(keep)
    small = resized(model, graph, keep, checked_tensors(model, graph))
    if verify == "on":
        prove(model, graph, keep, small)
    return small
