"""Rules for operators that move, split or join dimensions."""

from __future__ import annotations

from typing import Any

import torch

from prunus.graph import axes, reshaping
from prunus.graph.axes import Axis, Layout
from prunus.graph.op import Op
from prunus.graph.operators import CAT, REPEAT, RESTRIDED, STACK, TRIANGLE, VIEW, parameters
from prunus.graph.rules.registry import along, rule


@rule(VIEW)
def view(op: Op, x: torch.Tensor, shape: list[int], *args: Any) -> list[Layout]:
    op.alias = x
    _, size, *_ = parameters(op.func)  # called size or shape
    dims = reshaping.reshape(op.dims(x), op.out.shape, op)
    for i, layout in enumerate(dims):
        op.follow(layout, size, i)
    return dims


@rule("permute")
def permute(op: Op, x: torch.Tensor, order: list[int]) -> list[Layout]:
    op.alias, op.order = x, [d % x.dim() for d in order]
    dims = op.dims(x)
    return [dims[d] for d in order]


@rule("transpose")
def transpose(op: Op, x: torch.Tensor, a: int, b: int) -> list[Layout]:
    order = list(range(x.dim()))
    if order:
        order[a], order[b] = order[b], order[a]
    return permute(op, x, order)


@rule("t")
def t(op: Op, x: torch.Tensor) -> list[Layout]:
    return permute(op, x, list(range(x.dim()))[::-1])


@rule("unsqueeze")
def unsqueeze(op: Op, x: torch.Tensor, dim: int) -> list[Layout]:
    op.alias = x
    dims = list(op.dims(x))
    dims.insert(dim % (len(dims) + 1), 1)  # in place, x has its new shape already
    return dims


@rule("squeeze")
def squeeze(op: Op, x: torch.Tensor, over: Any = None) -> list[Layout]:
    op.alias = x
    dims = op.dims(x)
    over = range(len(dims)) if over is None else [over] if isinstance(over, int) else over
    gone = {d % len(dims) for d in over if axes.size(dims[d]) == 1} if dims else set()
    return [layout for d, layout in enumerate(dims) if d not in gone]


@rule("expand")
def expand(op: Op, x: torch.Tensor, shape: list[int], **kwargs: Any) -> list[Layout]:
    """A dimension repeated from size 1 is equal everywhere, so it is a new axis, if its size follows."""
    op.alias = x
    new = op.out.dim() - x.dim()
    dims: list[Layout] = [Axis(n) for n in op.out.shape]
    for i, layout in enumerate(op.dims(x)):
        if x.shape[i] != 1:
            dims[new + i] = layout
    for i, layout in enumerate(dims):
        op.follow(layout, "size", i)
    return dims


@rule(REPEAT)
def repeat(op: Op, x: torch.Tensor, times: list[int]) -> list[Layout]:
    """A dimension that is repeated from size 1 is equal everywhere, as in `expand`."""
    dims = [1] * (len(times) - x.dim()) + op.dims(x)
    for i, (n, layout) in enumerate(zip(times, dims, strict=True)):
        dims[i] = axes.nest(n, layout)
        if axes.size(layout) == 1 and n > 1:
            dims[i] = Axis(n)
            op.follow(dims[i], "repeats", i)
    return dims


@rule("roll flip")
def move(op: Op, x: torch.Tensor, *args: Any) -> list[Layout]:
    """Units move to other places of the same dimension, which no layout can express, so it is fixed."""
    over = args[-1] if args[-1] else range(x.dim())
    op.fix(*(op.dims(x)[d] for d in over))
    return op.dims(x)


@rule("rot90")
def rotate(op: Op, x: torch.Tensor, times: int, over: list[int]) -> Any:
    return along(op, x, over)


@rule("unfold")
def windows(op: Op, x: torch.Tensor, dim: int, *args: Any) -> list[Layout]:
    """Windows that slide along a dimension; what is in each stands in a new, last dimension."""
    op.alias = x
    dims = list(op.dims(x))
    op.fix(dims[dim])
    dims[dim] = op.out.shape[dim]
    return [*dims, op.out.shape[-1]]


@rule(TRIANGLE)
def triangle(op: Op, x: torch.Tensor, *args: Any) -> list[Layout]:
    op.fix(*op.dims(x)[-2:])
    return op.dims(x)


def _diagonal(op: Op, x: torch.Tensor, offset: int, first: int, second: int) -> tuple[list[Layout], Layout]:
    """The dimensions beside a diagonal and along it; the latter stays unless it is the main one of a square."""
    dims = op.dims(x)
    a, b = dims[first], dims[second]
    if offset or x.shape[first] != x.shape[second]:
        op.fix(a, b)
    else:
        op.unify(a, b)
    return [layout for d, layout in enumerate(dims) if d not in (first % x.dim(), second % x.dim())], a


@rule("diagonal")
def diagonal(op: Op, x: torch.Tensor, offset: int = 0, first: int = 0, second: int = 1) -> list[Layout]:
    op.alias = x
    beside, along_it = _diagonal(op, x, offset, first, second)
    return [*beside, along_it if axes.can_shrink(along_it) else op.out.shape[-1]]


@rule("trace")
def trace(op: Op, x: torch.Tensor) -> list[Layout]:
    _, summed = _diagonal(op, x, 0, 0, 1)
    op.mixes = axes.can_shrink(summed)
    return []


@rule("diag_embed")
def diag_embed(op: Op, x: torch.Tensor, offset: int = 0, first: int = -2, second: int = -1) -> list[Layout]:
    *dims, last = op.dims(x)
    if offset:
        op.fix(last)
        last = op.out.shape[first]
    for d in sorted((first % op.out.dim(), second % op.out.dim())):
        dims.insert(d, last)
    return dims


@rule(RESTRIDED)
def restride(op: Op, x: torch.Tensor, shape: list[int], *args: Any) -> list[Layout]:
    """The same shape in another memory order is the same tensor; any other shape is not followed."""
    if list(op.out.shape) != list(x.shape):
        op.fix(*op.dims(x))
        return list(op.out.shape)
    op.alias = x
    return op.dims(x)


@rule(CAT)
def cat(op: Op, tensors: list[torch.Tensor], dim: int = 0) -> list[Layout]:
    tensors = [t for t in tensors if t.dim() == op.out.dim()]
    dim %= op.out.dim()
    result = list(op.dims(tensors[0]))
    for tensor in tensors[1:]:
        for d, layout in enumerate(op.dims(tensor)):
            if d != dim:
                op.unify(result[d], layout)
    result[dim] = axes.Sum(tuple(op.dims(tensor)[dim] for tensor in tensors))
    return result


@rule(STACK)
def stack(op: Op, tensors: list[torch.Tensor], dim: int = 0) -> list[Layout]:
    result = list(op.dims(tensors[0]))
    for tensor in tensors[1:]:
        for a, b in zip(result, op.dims(tensor), strict=True):
            op.unify(a, b)
    result.insert(dim % op.out.dim(), len(tensors))
    return result


def _parts(op: Op, x: torch.Tensor, dim: int, lengths: list[int]) -> list[list[Layout]]:
    dim %= x.dim()
    results: list[list[Layout]] = []
    rest = op.dims(x)[dim]
    for length in lengths:
        part, rest = axes.split(rest, length, op)
        results.append([part if d == dim else layout for d, layout in enumerate(op.dims(x))])
    return results


@rule("split unsafe_split")
def split(op: Op, x: torch.Tensor, length: int, dim: int = 0) -> tuple[list[Layout], ...]:
    """One integer is the length of all parts but the last, so they shrink together."""
    op.alias = x
    parts = _parts(op, x, dim, [part.shape[dim] for part in op.out])
    for part in parts:
        if axes.size(part[dim]) == length:
            op.match(parts[0][dim], part[dim])
        else:
            op.fix(part[dim])
    op.follow(parts[0][dim], "split_size")
    return tuple(parts)


@rule("split_with_sizes unsafe_split_with_sizes")
def split_with_sizes(op: Op, x: torch.Tensor, lengths: list[int], dim: int = 0) -> tuple[list[Layout], ...]:
    op.alias = x
    parts = _parts(op, x, dim, lengths)
    for i, part in enumerate(parts):
        op.follow(part[dim], "split_sizes", i)
    return tuple(parts)


@rule("unbind")
def unbind(op: Op, x: torch.Tensor, dim: int = 0) -> tuple[list[Layout], ...]:
    op.alias = x
    dims = list(op.dims(x))
    op.fix(dims.pop(dim))
    return (dims,) * len(op.out)


@rule("slice")
def slice_(
    op: Op, x: torch.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> list[Layout]:
    op.alias = x
    dims = list(op.dims(x))
    length = x.shape[dim]
    begin = max(0, min(length, (start or 0) + (length if (start or 0) < 0 else 0)))
    if op.out.shape[dim] == length:
        if end == length:
            op.follow(dims[dim], "end")
        return dims
    if not axes.can_shrink(dims[dim]):
        dims[dim] = op.out.shape[dim]
    elif step == 1:
        before, rest = axes.split(dims[dim], begin, op)
        part, after = axes.split(rest, op.out.shape[dim], op)
        for argument, place in (("start", start), ("end", end)):
            if place is not None and place < 0:
                op.from_end(argument, dims[dim])
        op.follow(before, "start")
        if axes.size(after):
            op.follow(axes.total(before, part), "end")
        dims[dim] = part
    elif length % step == 0 and begin < step and op.out.shape[dim] == length // step:
        dims[dim], inner = axes.factor(dims[dim], step, op)
        op.fix(inner)
    else:
        op.fix(dims[dim])
        dims[dim] = op.out.shape[dim]
    return dims


@rule("select")
def select(op: Op, x: torch.Tensor, dim: int, index: int) -> list[Layout]:
    op.alias = x
    dims = list(op.dims(x))
    op.fix(dims.pop(dim))
    return dims
