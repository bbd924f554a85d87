"""The arithmetic of gates: weights times the gates along their dimensions.

All weights of a model are multiplied in one node of autograd, before the first layer (see at_once.py). Multiplying
each weight when it is read would put a dozen small operations between any two layers, which slows small networks
down. Source: ours. Shapes: N gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Place(NamedTuple):
    """The gates along one dimension of a weight.

    Args:
        dim: The dimension.
        index: int64 (length of the dimension,), per position the index of its gate; N for a position without one.
    """

    dim: int
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]: int64 (length of the dimension,)


def combine_gates(values: Tensor, dims: int, places: Sequence[Place]) -> Tensor:
    """The factor for a weight of `dims` dimensions, from the gates (N,); size one in dimensions without gates."""
    padded = _pad(values)
    return _multiply([_align(padded.index_select(0, index), dims, dim) for dim, index in places])


def apply_gates(
    values: Tensor, weights: Sequence[Tensor], places: Sequence[Sequence[Place]]
) -> tuple[Tensor, ...]:
    """Multiply each weight by its gates.

    Args:
        values: (N,), all gates.
        weights: The weights.
        places: For each weight the places of its gates.

    Returns:
        The products, in the order of the weights; differentiable twice.
    """
    return _ApplyGates.apply(places, values, *weights)


class _ApplyGates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, places: Sequence[Sequence[Place]], values: Tensor, *weights: Tensor) -> tuple:
        # save_for_backward would free them after the first of several losses; `_check_unchanged` replaces its check
        ctx.places, ctx.given = places, [(tensor, tensor._version) for tensor in (values, *weights)]
        ctx.gates = _gather_gates(values, weights, places)
        ctx.set_materialize_grads(False)
        return tuple(
            weight * _multiply(gates).to(weight.dtype)
            for weight, gates in zip(weights, ctx.gates, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (values, _), *weights = ctx.given
        gates_of = ctx.gates
        if torch.is_grad_enabled():  # the gradient will be differentiated
            gates_of = _gather_gates(
                _check_unchanged(ctx.given[0]), [weight for weight, _ in weights], ctx.places
            )
        needs_values, *needs = ctx.needs_input_grad[1:]
        of_weights: list[Tensor | None] = [None] * len(weights)
        changes: list[Tensor] = []  # gradients of the gates at each place: (length,)
        with torch.autocast(values.device.type, enabled=False):
            for i, (weight, grad, gates) in enumerate(zip(weights, grads, gates_of, strict=True)):
                if grad is None:
                    changes += [values.new_zeros(len(index)) for _, index in ctx.places[i]]
                    continue
                product = _multiply(gates)
                if needs[i]:
                    of_weights[i] = grad * product.to(grad.dtype)
                if needs_values:
                    sensitivity = (
                        (grad * _check_unchanged(weight)).to(values.dtype).sum_to_size(product.shape)
                    )
                    changes += _gate_gradients(sensitivity, gates)
        of_values = None
        if needs_values:
            index = torch.cat([index for each in ctx.places for _, index in each])
            of_values = values.new_zeros(len(values) + 1).index_add(0, index, torch.cat(changes))[:-1]
        return None, of_values, *of_weights


def _gather_gates(
    values: Tensor, weights: Sequence[Tensor], places: Sequence[Sequence[Place]]
) -> list[list[Tensor]]:
    """For each weight the gates along each of its gated dimensions."""
    indices = [index for each in places for _, index in each]
    lengths = [len(index) for index in indices]
    pieces = iter(_pad(values).index_select(0, torch.cat(indices)).split(lengths))
    return [
        [_align(next(pieces), weight.dim(), dim) for dim, _ in each]
        for weight, each in zip(weights, places, strict=True)
    ]


def _gate_gradients(sensitivity: Tensor, gates: list[Tensor]) -> list[Tensor]:
    """The gradients (length,) of the gates at each place of a weight, from the gradient of their product."""
    if (
        len(gates) == 2 and sensitivity.numel() == gates[0].numel() * gates[1].numel()
    ):  # the usual case: a matrix
        first, second = (each.reshape(-1) for each in gates)
        matrix = sensitivity.reshape(len(first), len(second))
        return [matrix @ second, first @ matrix]
    others = [_multiply([sensitivity, *gates[:own], *gates[own + 1 :]]) for own in range(len(gates))]
    return [each.sum_to_size(own.shape).reshape(-1) for each, own in zip(others, gates, strict=True)]


def _pad(values: Tensor) -> Tensor:
    """(N + 1,): the gates and a one, for positions without a gate."""
    return F.pad(values, (0, 1), value=1.0)


def _align(gates: Tensor, dims: int, dim: int) -> Tensor:
    """Gates (length,) as a tensor of `dims` dimensions, of size one in all but `dim`."""
    return gates.view([-1 if d == dim else 1 for d in range(dims)])


def _multiply(tensors: Sequence[Tensor]) -> Tensor:
    return reduce(torch.mul, tensors)


def _check_unchanged(given: tuple[Tensor, int]) -> Tensor:
    """The tensor; RuntimeError, as autograd raises it, if it was changed in place since its version was stored."""
    tensor, version = given
    if tensor._version != version:
        raise RuntimeError(
            "a gated weight, or the gates, were changed in place between forward and backward pass; call backward "
            "before optimizer.step()."
        )
    return tensor
