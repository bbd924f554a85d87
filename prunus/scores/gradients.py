"""Scores of units from gradients: Taylor."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import UserError
from prunus.graph import Graph, call, make_skeleton
from prunus.scores.members import ALL, Batches, Scores, _gather, _members, _on_device


def taylor(
    model: nn.Module,
    graph: Graph,
    loss: Callable[[Any, Any], Tensor],
    batches: Batches,
    *,
    roles: Sequence[str] = ("consumes",),
) -> Scores:
    """The mean over batches of (sum over weights of gradient * weight)^2, the network in eval mode.

    roles: the weights that consume an axis (all, where none do). To scale what they read is to scale them, so their
    sum is the derivative by a gate on the unit, as in the paper; producers before a norm say much less.
    loss(output, targets) -> scalar. Raises UserError if there is no batch, or a loss is not a number.
    """
    total: Scores = {}
    count = 0
    with torch.inference_mode(False), torch.enable_grad():
        bare = make_skeleton(model, real=True)
        weights = {n: p.requires_grad_() for n, p in bare.named_parameters() if p.is_floating_point()}
        for count, (inputs, targets) in enumerate(_on_device(bare, batches), 1):
            value = loss(call(bare, inputs), targets)
            if not value.isfinite():
                raise UserError(
                    f"taylor: the loss of batch {count} is {value.item()}; are model and data whole?"
                )
            gradients = torch.autograd.grad(
                value, list(weights.values()), allow_unused=True, materialize_grads=True
            )
            change = {
                name: weight.detach().float() * gradient.float()
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
            for axis in graph.axes:
                parts = [_gather(change[m.tensor], m) for m in _members(graph, axis, roles, otherwise=ALL)]
                square = reduce(torch.add, parts).square()
                total[axis] = total[axis] + square if axis in total else square
    if not count:
        raise UserError("taylor: there is no batch to score with.")
    return {axis: squares / count for axis, squares in total.items()}
