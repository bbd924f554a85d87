"""The arithmetic of gates: weights times the gates along their dimensions, one by one or all of a model at once.

At once, it is one step of autograd before the first layer and one behind the last. Done where each weight is read, a
dozen small operations stand between any two layers, and on small networks the layers run slower for it. Only plain
training is served so: whatever else is going on (no gradients, torch.func, a checkpoint, a compiler, several
processes), weights are made one by one. Source: ours. Shapes: N gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Place(NamedTuple):
    """The units along one dimension of a weight, as places among the gates (N,); N, where all have none."""

    dim: int
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]: int64 (length of the dimension,)


def gate(values: Tensor, dims: int, places: Sequence[Place]) -> Tensor:
    """What a weight of `dims` dimensions is multiplied with, of the gates (N,): size one in dimensions without any."""
    padded = _padded(values)
    return _multiplied([_along(padded.index_select(0, index), dims, dim) for dim, index in places])


def gated(values: Tensor, weights: Sequence[Tensor], places: Sequence[Sequence[Place]]) -> tuple[Tensor, ...]:
    """Each weight times its gates, of the gates (N,); `places` has those of each weight."""
    return _Gated.apply(places, values, *weights)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, places: Sequence[Sequence[Place]], values: Tensor, *weights: Tensor) -> tuple:
        # Not saved as autograd does it, which would let them go after the first of several losses; so `_unchanged`.
        ctx.places, ctx.given = places, [(tensor, tensor._version) for tensor in (values, *weights)]
        ctx.gates = _gates(values, weights, places)
        ctx.set_materialize_grads(False)
        return tuple(
            weight * _multiplied(gates).to(weight.dtype)
            for weight, gates in zip(weights, ctx.gates, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (values, _), *weights = ctx.given
        gates_of = ctx.gates
        if torch.is_grad_enabled():  # the gradient will be differentiated
            gates_of = _gates(_unchanged(ctx.given[0]), [weight for weight, _ in weights], ctx.places)
        needs_values, *needs = ctx.needs_input_grad[1:]
        of_weights: list[Tensor | None] = [None] * len(weights)
        changes: list[Tensor] = []  # what the gates at each place change: (length,)
        with torch.autocast(values.device.type, enabled=False):
            for i, (weight, grad, gates) in enumerate(zip(weights, grads, gates_of, strict=True)):
                if grad is None:
                    changes += [values.new_zeros(len(index)) for _, index in ctx.places[i]]
                    continue
                product = _multiplied(gates)
                if needs[i]:
                    of_weights[i] = grad * product.to(grad.dtype)
                if needs_values:
                    felt = (grad * _unchanged(weight)).to(values.dtype).sum_to_size(product.shape)
                    changes += _changes(felt, gates)
        of_values = None
        if needs_values:
            index = torch.cat([index for each in ctx.places for _, index in each])
            of_values = values.new_zeros(len(values) + 1).index_add(0, index, torch.cat(changes))[:-1]
        return None, of_values, *of_weights


def _gates(
    values: Tensor, weights: Sequence[Tensor], places: Sequence[Sequence[Place]]
) -> list[list[Tensor]]:
    """Of each weight the gates along each dimension that has some."""
    indices = [index for each in places for _, index in each]
    lengths = [len(index) for index in indices]
    pieces = iter(_padded(values).index_select(0, torch.cat(indices)).split(lengths))
    return [
        [_along(next(pieces), weight.dim(), dim) for dim, _ in each]
        for weight, each in zip(weights, places, strict=True)
    ]


def _changes(felt: Tensor, gates: list[Tensor]) -> list[Tensor]:
    """The gradients (length,) of the gates at each place of a weight, from that of their product."""
    if len(gates) == 2 and felt.numel() == gates[0].numel() * gates[1].numel():  # the usual case: a matrix
        first, second = (each.reshape(-1) for each in gates)
        matrix = felt.reshape(len(first), len(second))
        return [matrix @ second, first @ matrix]
    others = [_multiplied([felt, *gates[:own], *gates[own + 1 :]]) for own in range(len(gates))]
    return [each.sum_to_size(own.shape).reshape(-1) for each, own in zip(others, gates, strict=True)]


def _padded(values: Tensor) -> Tensor:
    """(N + 1,): a gate of one behind, for units without."""
    return F.pad(values, (0, 1), value=1.0)


def _along(gates: Tensor, dims: int, dim: int) -> Tensor:
    """Gates (length,) as a tensor of `dims` dimensions, of size one in all but `dim`."""
    return gates.view([-1 if d == dim else 1 for d in range(dims)])


def _multiplied(tensors: Sequence[Tensor]) -> Tensor:
    return reduce(torch.mul, tensors)


def _unchanged(given: tuple[Tensor, int]) -> Tensor:
    """The tensor. Raises RuntimeError, as autograd does, if it was changed in place since its version was noted."""
    tensor, version = given
    if tensor._version != version:
        raise RuntimeError(
            "a gated weight, or the gates, were changed in place between forward and backward pass; call backward "
            "before optimizer.step()."
        )
    return tensor
