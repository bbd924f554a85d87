"""Scores of units from gradients: taylor, and what it takes for a loss where there are no labels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import UserError
from prunus.graph import Graph, Member, is_inexact, make_skeleton, output_tensors, plain_model
from prunus.scores.blocks import Watched
from prunus.scores.members import (
    ALL,
    Batches,
    Scores,
    _answer,
    _as_float,
    _checked_loss,
    _gather,
    _members,
    _to_device,
)


def taylor(
    model: nn.Module,
    graph: Graph,
    loss: Callable[[Any, Any], Tensor],
    batches: Batches,
    *,
    roles: Sequence[str] = ("consumes",),
    depth: bool = False,
) -> Scores:
    """Score units by the mean over batches of (sum over weights of gradient * weight)^2, in eval mode.

    Scaling a unit is the same as scaling the weights that read it, so their sum is the derivative with respect to a
    gate on the unit, as in the paper. Weights that write a unit before a norm say much less. A block is scored by a
    gate on what it adds: by the gradient of its output times that, summed and squared. Source: Molchanov et al., CVPR
    2019, arXiv:1906.10771.

    Args:
        model: The traced model; its gradients are not touched.
        graph: Its graph.
        loss: loss(output, targets) -> scalar.
        batches: (inputs, targets) pairs.
        roles: The roles of the weights that are summed; for an axis without such weights, all of its weights.
        depth: Whether the blocks that can be skipped are scored, too.

    Returns:
        {axis: float32 (size,)}; higher means keep.

    Raises:
        UserError: There is no batch, one is no pair, the model cannot be called with its inputs, or its loss is NaN,
            infinite, or no number that depends on weights.
    """
    total: Scores = {}
    count = 0
    members = {axis: _members(graph, axis, roles, otherwise=ALL) for axis in graph.axes}
    found: dict[Member, Tensor] = {}  # the sums (U,) of one batch
    with torch.inference_mode(False), torch.enable_grad():
        bare = make_skeleton(plain_model(model), real=True)
        weights = {n: p.requires_grad_() for n, p in bare.named_parameters() if is_inexact(p)}
        blocks = Watched(bare, graph, gradients=True) if depth else None
        read = _watch_gradients(weights, [m for each in members.values() for m in each], found)
        for count, (inputs, targets) in enumerate(_to_device(bare, batches, "taylor"), 1):
            found.clear()
            value = _checked_loss(loss(_answer(bare, inputs, "taylor"), targets), "taylor")
            if not value.isfinite():
                raise UserError(
                    f"taylor: the loss of batch {count} is {value.item()}, not a finite number; check the model's "
                    "weights and the data for NaN."
                )
            outputs = [each for each in blocks.outputs.values() if each.requires_grad] if blocks else []
            value.backward(inputs=[*read, *outputs])  # hooks run only on the way to these
            for axis, each in members.items():
                zeros = torch.zeros(graph.axes[axis].size, device=value.device)
                square = reduce(torch.add, [found.get(member, zeros) for member in each]).square()
                total[axis] = total[axis] + square if axis in total else square
            for axis, slope in (blocks.slopes if blocks else {}).items():
                total[axis] = total.get(axis, 0) + slope.square().reshape(1)
    if not count:
        raise UserError("taylor: expected at least one batch to score with, got none; give data.")
    return {axis: squares / count for axis, squares in total.items()}


def _watch_gradients(
    weights: Mapping[str, Tensor], members: Iterable[Member], found: dict[Member, Tensor]
) -> list[Tensor]:
    """Let each gradient be summed over the units of its weight as soon as it is there, and freed.

    So one gradient is in memory at a time, not those of all weights. Returns the weights whose gradients are needed.
    """
    held: dict[str, list[Member]] = {}
    for member in members:
        held.setdefault(member.tensor, []).append(member)

    def watch(weight: Tensor, own: Sequence[Member]) -> None:
        def sum_up(weight: Tensor) -> None:
            assert weight.grad is not None
            change = _as_float(weight) * _as_float(weight.grad)
            weight.grad = None
            found.update({member: _gather(change, member) for member in own})

        weight.register_post_accumulate_grad_hook(sum_up)

    read = {name: weights[name] for name in held if name in weights}
    for name, weight in read.items():
        watch(weight, held[name])
    return list(read.values())


def random_projection(seed: int) -> Callable[[Any, Any], Tensor]:
    """Make a loss without labels: the answers of a model, projected on random directions that change at every call.

    Over the draws its mean squared gradient is that of the answers, summed over their numbers. So `taylor` scores a
    unit by the squared change of the answers, to first order. Source: ours; Hutchinson's estimate (1989).

    Args:
        seed: The seed of the directions.

    Returns:
        loss(output, targets), which does not read the targets.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(output: Any, targets: Any) -> Tensor:
        answers = [each for each in output_tensors(output) if each.is_floating_point()]
        ways = [torch.randn(each.shape, generator=generator).to(each) for each in answers]
        return reduce(torch.add, [(each * way).sum() for each, way in zip(answers, ways, strict=True)])

    return loss
