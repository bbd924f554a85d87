"""Rules for indexing, gathering and sorting."""

from __future__ import annotations

from typing import Any

import torch

from prunus.graph.axes import Layout
from prunus.graph.op import Op
from prunus.graph.rules.registry import rule


@rule("index")
def index(op: Op, x: torch.Tensor, indices: list[torch.Tensor | None]) -> list[Layout]:
    dims = op.dims(x)
    places = {d: places for d, places in enumerate(indices) if places is not None}
    taken = list(places)
    op.fix(*(dims[d] for d in taken))
    if any(each.dtype == torch.bool for each in places.values()):
        op.fix(*dims)
        return list(op.out.shape)
    kept = [d for d in range(x.dim()) if d not in taken]
    adjacent = taken == list(range(taken[0], taken[-1] + 1))
    first = taken[0] if adjacent else 0
    middle = op.out.dim() - len(kept)
    result = [dims[d] for d in kept]
    result[first:first] = list(op.out.shape[first : first + middle])
    return result


@rule("index_select gather")
def index_select(op: Op, x: torch.Tensor, dim: int, where: torch.Tensor, **kwargs: Any) -> list[Layout]:
    dims = list(op.dims(x))
    op.fix(dims[dim])
    if op.name == "gather":
        op.fix(*dims)
        return list(op.out.shape)
    dims[dim] = op.out.shape[dim]
    return dims


@rule("topk sort")
def sort(op: Op, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """The order depends on data, so no dimension shrinks."""
    op.fix(*op.dims(x))
