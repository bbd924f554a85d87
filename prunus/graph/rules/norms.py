"""Rules for norms, and for reductions and softmax along a dimension."""

from __future__ import annotations

from typing import Any

import torch

from prunus.graph import axes
from prunus.graph.axes import Layout
from prunus.graph.op import DIRECTION, SCALES, SHIFTS, Op
from prunus.graph.operators import (
    BATCH_NORM,
    GROUP_NORM,
    LARGEST,
    LAYER_NORM,
    LENGTH,
    MEAN,
    RMS_NORM,
    SOFTMAX,
    SPREAD,
    SUM,
)
from prunus.graph.rules.registry import along, pointwise, rule

Parameter = torch.Tensor | None


@rule(BATCH_NORM)
def batch_norm(
    op: Op,
    x: torch.Tensor,
    weight: Parameter,
    bias: Parameter,
    mean: Any,
    variance: Any,
    *args: Any,
) -> Any:
    """x (N, C, *); without running statistics they are those of x, so it mixes the units of N and *.

    Running ones are of all units of N and *, which stay. A form of this operator has no arguments for them.
    """
    dims = op.dims(x)
    others = [dims[0], *dims[2:]]
    if isinstance(mean, torch.Tensor):
        op.fix(*others)
    op.mixes = axes.can_shrink(*others)
    for tensor, role in ((weight, SCALES), (bias, SHIFTS), (mean, SHIFTS), (variance, SCALES)):
        if isinstance(tensor, torch.Tensor):
            op.unify(dims[1], op.dims(tensor)[0])
            op.role(tensor, 0, role)
    if isinstance(op.out, torch.Tensor):
        return dims
    return (dims,) + (None,) * (len(op.out) - 1)


@rule(LAYER_NORM)
def layer_norm(
    op: Op, x: torch.Tensor, shape: list[int], weight: Parameter, bias: Parameter, eps: float | None
) -> Any:
    """The statistics are taken over the last dimensions, so it mixes their units."""
    dims = op.dims(x)
    first = len(dims) - len(shape)
    for i, layout in enumerate(dims[first:]):
        op.follow(layout, "normalized_shape", i)
        for tensor, role in ((weight, SCALES), (bias, SHIFTS)):
            if tensor is not None:
                op.unify(layout, op.dims(tensor)[i])
                op.role(tensor, i, role)
        op.mixes |= axes.can_shrink(layout)
    return dims, None, None


@rule(RMS_NORM)
def rms_norm(op: Op, x: torch.Tensor, shape: list[int], weight: Parameter, eps: float | None) -> Any:
    return layer_norm(op, x, shape, weight, None, eps)[0], None


@rule(GROUP_NORM)
def group_norm(
    op: Op,
    x: torch.Tensor,
    weight: Parameter,
    bias: Parameter,
    batch: int,
    channels: int,
    space: int,
    groups: int,
    eps: float,
) -> Any:
    """x (N, C, *) with C = G x rest; the statistics are taken over rest, so it mixes the units of rest."""
    dims = op.dims(x)
    group, _ = axes.factor(dims[1], channels // groups, op)
    for tensor, role in ((weight, SCALES), (bias, SHIFTS)):
        if tensor is not None:
            op.unify(dims[1], op.dims(tensor)[0])
            op.role(tensor, 0, role)
    op.follow(dims[1], "C")
    op.follow(group, "group")
    op.mixes = axes.can_shrink(dims[1])
    return dims, None, None


@rule(SOFTMAX)
def along_dim(op: Op, x: torch.Tensor, dim: int, *args: Any, **kwargs: Any) -> list[Layout]:
    op.mixes = axes.can_shrink(op.dims(x)[dim])
    return op.dims(x)


@rule("cumsum cumprod logcumsumexp")
def cumulative(op: Op, x: torch.Tensor, dim: int, *args: Any, **kwargs: Any) -> Any:
    """The result of a unit depends on its place, so the dimension that it runs along stays."""
    return along(op, x, dim)


def _reduce(op: Op, x: torch.Tensor, over: Any, keepdim: bool) -> list[Layout]:
    over = [over] if isinstance(over, int) else over
    over = {d % x.dim() for d in over} if over else set(range(x.dim()))
    dims = op.dims(x)
    op.mixes = axes.can_shrink(*(dims[d] for d in over))
    kept = [1 if d in over else layout for d, layout in enumerate(dims)]
    return kept if keepdim else [layout for d, layout in enumerate(kept) if d not in over]


@rule(MEAN, SUM, LARGEST, SPREAD, "amin aminmax logsumexp prod nansum any all min count_nonzero")
def reduction(op: Op, x: torch.Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    if isinstance(dim, torch.Tensor):  # max(a, b)
        return pointwise(op, x, dim)
    if isinstance(op.out, tuple) and op.name in ("max", "min"):
        op.unread = 1, op.dims(x)[dim]  # the index of a unit would be another number in the small model
    out = _reduce(op, x, dim, keepdim)
    return (out, out) if isinstance(op.out, tuple) else out


@rule("_weight_norm_interface")
def weight_norm(op: Op, direction: torch.Tensor, length: torch.Tensor, dim: int = 0) -> Any:
    """A length for each unit of `dim` times a direction, which is divided by its own length over the rest."""
    dims = op.dims(direction)
    op.unify(dims[dim], op.dims(length)[dim])
    op.role(direction, dim, DIRECTION)
    op.role(length, dim, SCALES)
    op.mixes = axes.can_shrink(*dims)
    return dims, op.dims(length)


@rule("renorm")
def renorm(op: Op, x: torch.Tensor, *args: Any) -> list[Layout]:
    """Each part along a dimension is made shorter, if it is too long over all others."""
    op.mixes = axes.can_shrink(*op.dims(x))
    return op.dims(x)


@rule(LENGTH)
def vector_norm(
    op: Op, x: torch.Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> list[Layout]:
    return _reduce(op, x, dim, keepdim)
