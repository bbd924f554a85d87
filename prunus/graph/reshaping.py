"""The layouts of a tensor in another shape."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from prunus.graph import axes
from prunus.graph.axes import Layout, Product


def reshape(dims: Sequence[Layout], shape: Sequence[int], why: Any) -> list[Layout]:
    """The layouts after a row-major reshape of a tensor with layouts `dims` to `shape`."""
    result: list[Layout] = [1] * len(shape)
    i, j = len(dims), len(shape)
    if 0 in shape:
        return _reshape_nothing(dims, list(shape), why)
    while i and j:
        # the smallest run of dimensions on both sides with the same number of elements
        i_start, j_start = i - 1, j - 1
        left, right = axes.size(dims[i_start]), shape[j_start]
        while left != right:
            if left < right:
                i_start -= 1
                left *= axes.size(dims[i_start])
            else:
                j_start -= 1
                right *= shape[j_start]
        if i - i_start == 1 and j - j_start == 1:
            result[j_start] = dims[i_start]
        else:
            run = axes.nest(*dims[i_start:i])
            for k in range(j - 1, j_start - 1, -1):
                run, result[k] = _peel(run, shape[k], why)
        i, j = i_start, j_start
    return result


def _reshape_nothing(dims: Sequence[Layout], shape: list[int], why: Any) -> list[Layout]:
    """The layouts of a tensor without elements (nothing was detected): those before and behind the empty dimension."""
    sizes = list(map(axes.size, dims))
    i, j = sizes.index(0), shape.index(0)
    before, behind = (sizes[:i], shape[:j]), (sizes[i + 1 :], shape[j + 1 :])
    if all(0 not in new and prod(old) == prod(new) for old, new in (before, behind)):
        return [*reshape(dims[:i], before[1], why), dims[i], *reshape(dims[i + 1 :], behind[1], why)]
    for layout in dims:
        axes.fix(layout, why)
    return [*shape]


def _peel(layout: Layout, inner: int, why: Any) -> tuple[Layout, Layout]:
    """`factor`, or ints where the sizes do not nest."""
    if isinstance(layout, Product) and inner > 1:
        # take whole factors while they divide; a factor that straddles the border cannot be cut
        need, taken = inner, []
        rest = list(layout.factors)
        while need > 1 and need % axes.size(rest[-1]) == 0:
            need //= axes.size(rest[-1])
            taken.insert(0, rest.pop())
        if need > 1 and axes.size(rest[-1]) % need:
            n = axes.size(layout)
            axes.fix(layout, why)
            return n // inner, inner
    return axes.factor(layout, inner, why)
