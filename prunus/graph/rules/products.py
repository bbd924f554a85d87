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


def _contract(op: Op, a: torch.Tensor, b: torch.Tensor) -> None:
    """Unify the dimension over which matrices (..., M, K) and (..., K, O) are multiplied, and state the roles."""
    op.unify(op.dims(a)[-1], op.dims(b)[-2])
    for tensor, consumed, produced in ((b, -2, -1), (a, -1, -2)):
        op.role(tensor, consumed, CONSUMES)
        op.role(tensor, produced, PRODUCES)


@rule(MM)
def mm(op: Op, a: torch.Tensor, b: torch.Tensor) -> list[Layout]:
    a_dims, b_dims = op.dims(a), op.dims(b)
    _contract(op, a, b)
    op.count(1, a_dims[0], a_dims[1], b_dims[1], over=a_dims[1])
    return [a_dims[0], b_dims[1]]


@rule(ADDMM)
def addmm(op: Op, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **kwargs: Any) -> list[Layout]:
    return _shift(op, mm(op, a, b), bias)


def _shift(op: Op, out: list[Layout], bias: torch.Tensor) -> list[Layout]:
    """The layouts of a product, to which a bias is added that may be broadcast."""
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
    _contract(op, a, b)
    op.count(1, *a_dims, b_dims[2], over=a_dims[2])
    return [a_dims[0], a_dims[1], b_dims[2]]


@rule(BADDBMM)
def baddbmm(op: Op, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **kwargs: Any) -> list[Layout]:
    return _shift(op, bmm(op, a, b), bias)


@rule("addbmm")
def addbmm(op: Op, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **kwargs: Any) -> list[Layout]:
    """The sum of a batch's products."""
    return _shift(op, bmm(op, a, b)[1:], bias)


@rule("_grouped_mm")
def grouped_mm(
    op: Op, a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor | None = None, *args: Any, **kwargs: Any
) -> list[Layout]:
    """As bmm, but one operand may hold the matrices of all groups one after the other, which end at `ends`.

    Tokens (T, K), sorted by their expert, times the experts' weights (G, K, O) are such a product.
    """
    a_dims, b_dims = op.dims(a), op.dims(b)
    if a.dim() == b.dim() == 3:
        return bmm(op, a, b)
    op.fix(*(dims[0] for dims in (a_dims, b_dims) if len(dims) == 3))
    _contract(op, a, b)
    if a.dim() == b.dim():  # the groups lie along the dimension that is summed over
        op.fix(a_dims[-1])
        groups: list[Layout] = [op.out.shape[0]]
    else:
        groups = []
        op.fix(b_dims[-1] if a.dim() == 3 else a_dims[0])
    for tensor in (a, b):  # its kernels read rows, or columns, that begin at multiples of 16 bytes
        inner = -1 if tensor.stride(-1) == 1 else -2
        op.multiple(op.dims(tensor)[inner], 16 // tensor.element_size())
    op.count(1, a_dims[-2], a_dims[-1], b_dims[-1], over=a_dims[-1])
    return [*groups, a_dims[-2], b_dims[-1]]


@rule(MV)
def mv(op: Op, a: torch.Tensor, b: torch.Tensor) -> list[Layout]:
    op.unify(op.dims(a)[1], op.dims(b)[0])
    op.role(a, 0, PRODUCES)
    op.role(a, 1, CONSUMES)
    op.contracts = True
    return [op.dims(a)[0]]


@rule("addmv")
def addmv(op: Op, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **kwargs: Any) -> list[Layout]:
    return _shift(op, mv(op, a, b), bias)


@rule("dot vdot")
def dot(op: Op, a: torch.Tensor, b: torch.Tensor) -> list[Layout]:
    op.unify(op.dims(a)[0], op.dims(b)[0])
    op.contracts = True
    return []


@rule("_trilinear")
def trilinear(op: Op, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, *places: Any) -> list[Layout]:
    """The product of three tensors with new dimensions of size 1 each, summed over some dimensions."""
    *new, over = places[:4]
    wide: list[Layout] = [1] * (a.dim() + len(new[0]))
    for tensor, added in zip((a, b, c), new, strict=True):
        dims = [d for d in range(len(wide)) if d not in added]
        for place, d in enumerate(dims):
            if tensor.shape[place] == 1:
                continue
            layout = op.dims(tensor)[place]
            if wide[d] == 1:
                wide[d] = layout
            else:
                op.unify(wide[d], layout)
            op.role(tensor, place, CONSUMES if d in over else PRODUCES)
    op.contracts = True
    return [layout for d, layout in enumerate(wide) if d not in over]


@rule("_cdist_forward _euclidean_dist")
def distances(op: Op, a: torch.Tensor, b: torch.Tensor, *args: Any) -> list[Layout]:
    """Distances between all rows of a (..., P, D) and of b (..., R, D)."""
    op.unify(op.dims(a)[-1], op.dims(b)[-1])
    op.contracts = True
    (*batch, rows, _), (*other, columns, _) = op.dims(a), op.dims(b)
    for first, second in zip(batch, other, strict=True):
        op.unify(first, second)
    return [*batch, rows, columns]


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
