"""Rules for operators that keep the shape of their input, or make a new tensor."""

from __future__ import annotations

from typing import Any

import torch

from prunus.graph import axes
from prunus.graph.axes import Axis, Layout
from prunus.graph.op import Op, tensors_in
from prunus.graph.operators import CONSTANT, DRAWN, FRESH, GLU, UNTRACKED
from prunus.graph.rules.registry import pointwise, rule


@rule(FRESH, "_to_copy clone contiguous")
def same(op: Op, x: torch.Tensor, *args: Any, **kwargs: Any) -> list[Layout]:
    return op.dims(x)


@rule("detach alias lift_fresh _conj _neg_view view_as_real")
def alias(op: Op, x: torch.Tensor, *args: Any) -> list[Layout]:
    op.alias = x
    return op.dims(x) + list(op.out.shape[x.dim() :])


@rule("view_as_complex")
def view_as_complex(op: Op, x: torch.Tensor) -> list[Layout]:
    """The last dimension holds the real and the imaginary part."""
    op.alias = x
    *dims, parts = op.dims(x)
    op.fix(parts)
    return dims


@rule(GLU)
def glu(op: Op, x: torch.Tensor, dim: int = -1) -> list[Layout]:
    dims = list(op.dims(x))
    first, second = axes.split(dims[dim], x.shape[dim] // 2, op)
    op.unify(first, second)
    dims[dim] = first
    return dims


@rule("linalg_cross")
def cross(op: Op, a: torch.Tensor, b: torch.Tensor, dim: int = -1) -> Any:
    """The three numbers along a dimension are places in space."""
    op.fix(op.dims(a)[dim], op.dims(b)[dim])
    return pointwise(op, a, b)


@rule(CONSTANT)
def constant(op: Op, *args: Any, **kwargs: Any) -> list[Layout]:
    """Such a tensor is equal everywhere, so it may shrink with any operand, if its size follows."""
    dims: list[Layout] = [Axis(n) for n in op.out.shape]
    for i, layout in enumerate(dims):
        op.follow(layout, "size", i)
    return dims


@rule(DRAWN)
def drawn(op: Op, *args: Any, **kwargs: Any) -> list[Layout]:
    """Random numbers of a stated size, or around numbers that are given."""
    return pointwise(op, *args, **kwargs) if tensors_in(args) else constant(op)


@rule(UNTRACKED)
def untracked(op: Op, *args: Any, **kwargs: Any) -> None:
    """No dimension of such a tensor is known to shrink."""
