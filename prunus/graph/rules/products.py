"""Rules for operators that contract a dimension: convolutions, matrix products, attention, embeddings."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from prunus.graph import axes
from prunus.graph.axes import Layout
from prunus.graph.op import CONSUMES, PRODUCES, SHIFTS, Op
from prunus.graph.operators import (
    ADDMM,
    ATTENTION,
    BADDBMM,
    BMM,
    CONVOLUTION,
    EMBEDDING,
    LINEAR,
    MM,
    MV,
    argument,
    operands,
)
from prunus.graph.rules.registry import rule


@rule(CONVOLUTION)
def convolution(op: Op, *args: Any) -> list[Layout]:
    """weight (C_out, C_in / G, *kernel), transposed (C_in, C_out / G, *kernel)."""
    x, w = operands(op.func, args)
    b = argument(op.func, "bias", args, default=None)
    transposed = argument(op.func, "transposed", args, default=False)
    groups = argument(op.func, "groups", args)
    x_dims, w_dims = op.dims(x), op.dims(w)
    op.fix(*x_dims[2:])
    for kernel in w_dims[2:]:
        axes.fix(kernel, "the kernel of a convolution")
    group: Layout = 1
    if groups > 1:
        group, _ = axes.factor(w_dims[0], w.shape[0] // groups, op)
        op.follow(group, "groups")
    inner = axes.nest(group, w_dims[1])
    c_in, c_out = (w_dims[0], inner) if transposed else (inner, w_dims[0])
    op.unify(x_dims[1], c_in)
    op.role(w, 0, CONSUMES if transposed else PRODUCES)
    op.role(w, 1, PRODUCES if transposed else CONSUMES)
    if b is not None:
        op.unify(op.dims(b)[0], c_out)
        op.role(b, 0, SHIFTS)
    space = (x if transposed else op.out).shape[2:]
    op.count(prod(space) * prod(w.shape[2:]), x_dims[0], w_dims[0], w_dims[1], over=c_in)
    return [x_dims[0], c_out, *op.out.shape[2:]]


@rule(MM)
def mm(op: Op, a: torch.Tensor, b: torch.Tensor) -> list[Layout]:
    a_dims, b_dims = op.dims(a), op.dims(b)
    op.unify(a_dims[1], b_dims[0])
    op.role(b, 0, CONSUMES)
    op.role(b, 1, PRODUCES)
    op.role(a, 0, PRODUCES)
    op.role(a, 1, CONSUMES)
    op.count(1, a_dims[0], a_dims[1], b_dims[1], over=a_dims[1])
    return [a_dims[0], b_dims[1]]


@rule(ADDMM)
def addmm(op: Op, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **kwargs: Any) -> list[Layout]:
    out = mm(op, a, b)
    for i, layout in enumerate(reversed(op.dims(bias))):
        if bias.shape[-1 - i] != 1:
            op.unify(layout, out[-1 - i])
            op.role(bias, -1 - i, SHIFTS)
    return out


@rule(LINEAR)
def linear(op: Op, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> list[Layout]:
    """x (..., K), w (C_out, K)."""
    x_dims, w_dims = op.dims(x), op.dims(w)
    op.unify(x_dims[-1], w_dims[1])
    op.role(w, 0, PRODUCES)
    op.role(w, 1, CONSUMES)
    if b is not None:
        op.unify(op.dims(b)[0], w_dims[0])
        op.role(b, 0, SHIFTS)
    op.count(1, *x_dims, w_dims[0], over=x_dims[-1])
    return [*x_dims[:-1], w_dims[0]]


@rule(BMM)
def bmm(op: Op, a: torch.Tensor, b: torch.Tensor) -> list[Layout]:
    a_dims, b_dims = op.dims(a), op.dims(b)
    op.unify(a_dims[0], b_dims[0])
    op.unify(a_dims[2], b_dims[1])
    op.count(1, *a_dims, b_dims[2], over=a_dims[2])
    return [a_dims[0], a_dims[1], b_dims[2]]


@rule(BADDBMM)
def baddbmm(op: Op, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **kwargs: Any) -> list[Layout]:
    out = bmm(op, a, b)
    for i, layout in enumerate(reversed(op.dims(bias))):
        if bias.shape[-1 - i] != 1:
            op.unify(layout, out[-1 - i])
    return out


@rule(MV)
def mv(op: Op, a: torch.Tensor, b: torch.Tensor) -> list[Layout]:
    op.unify(op.dims(a)[1], op.dims(b)[0])
    op.contracts = True
    return [op.dims(a)[0]]


@rule("dot vdot")
def dot(op: Op, a: torch.Tensor, b: torch.Tensor) -> list[Layout]:
    op.unify(op.dims(a)[0], op.dims(b)[0])
    op.contracts = True
    return []


@rule(ATTENTION)
def attention(
    op: Op,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *args: Any,
    scale: float | None = None,
    **kwargs: Any,
) -> Any:
    """q (N, G, T, D), k (N, G, S, D), v (N, G, S, E).

    With grouped queries each head of k and v serves several of q. The default scale 1/sqrt(D) fixes D.
    """
    q_dims, k_dims, v_dims = op.dims(q), op.dims(k), op.dims(v)
    for other in (k_dims, v_dims):
        op.unify(q_dims[0], other[0])
        heads, _ = axes.factor(q_dims[1], axes.size(q_dims[1]) // axes.size(other[1]), op)
        op.unify(heads, other[1])
    op.unify(q_dims[3], k_dims[3])
    op.unify(k_dims[2], v_dims[2])
    if scale is None:
        op.fix(q_dims[3])
    op.count(1, *q_dims, k_dims[2], over=q_dims[3])
    op.count(1, *q_dims[:3], k_dims[2], v_dims[3], over=k_dims[2])
    return ([*q_dims[:3], v_dims[3]],) + (None,) * (len(op.out) - 1)


@rule(EMBEDDING)
def embedding(op: Op, weight: torch.Tensor, index: torch.Tensor, *args: Any, **kwargs: Any) -> list[Layout]:
    """weight (rows, C); data are indices of rows, so all rows stay."""
    rows, columns = op.dims(weight)
    op.fix(rows)
    op.role(weight, 1, PRODUCES)
    return [*op.dims(index), columns]
