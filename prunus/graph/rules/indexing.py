"""Rules for operators in which places are data: indexing, scattering, sorting, looking up."""

from __future__ import annotations

from typing import Any

import torch

from prunus.graph import axes
from prunus.graph.axes import Layout
from prunus.graph.op import PRODUCES, Op, tag_of, tensors_in
from prunus.graph.operators import Args, argument, name_of
from prunus.graph.rules.registry import along, broadcast, rule


def _is_mask(index: torch.Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def masks(func: Any, args: Args) -> bool:
    """Whether an operator takes as many numbers as a mask among the results of others says."""
    return name_of(func) == "index" and any(
        index is not None and _is_mask(index) and tag_of(index) is not None for index in args[1]
    )


def _indexed(op: Op, x: torch.Tensor, indices: list[torch.Tensor | None]) -> list[Layout]:
    """The layouts of `x[indices]`, -1 for as many as masks say; the dimensions that are indexed stay."""
    taken: list[int] = []
    d = 0
    for index in indices:
        width = index.dim() if index is not None and _is_mask(index) else 1
        taken += range(d, d + width) if index is not None else ()
        d += width
    dims = op.dims(x)
    places = _places(indices, taken)
    op.fix(*(dims[d] for d in taken if places is None))
    if places is not None:
        op.unify(dims[taken[0]], places)
        op.picks = True
    given = [index for index in indices if index is not None]
    if any(map(_is_mask, given)):
        op.fix(*(layout for index in given for layout in op.dims(index)))
        found: list[Layout] = [-1] * max(1 if _is_mask(index) else index.dim() for index in given)
    else:
        found = broadcast(op, given)
    result = [layout for d, layout in enumerate(dims) if d not in taken]
    first = taken[0] if taken == list(range(taken[0], taken[-1] + 1)) else 0
    result[first:first] = found
    return result


def _places(indices: list[torch.Tensor | None], taken: list[int]) -> Layout | None:
    """The layout along which a single index holds places of units; None for other indices."""
    tags = [tag_of(index) for index in indices if index is not None]
    return tags[0].places if len(tags) == len(taken) == 1 and tags[0] is not None else None


@rule("index")
def index(op: Op, x: torch.Tensor, indices: list[torch.Tensor | None]) -> list[Layout]:
    sizes = op.out.shape
    return [n if layout == -1 else layout for n, layout in zip(sizes, _indexed(op, x, indices), strict=True)]


@rule("index_put _index_put_impl _unsafe_index_put")
def index_put(
    op: Op, x: torch.Tensor, indices: list[torch.Tensor | None], values: torch.Tensor, *args: Any
) -> list[Layout]:
    places = _indexed(op, x, indices)
    for i, layout in enumerate(reversed(op.dims(values))):
        if values.shape[-1 - i] == 1:
            continue
        if places[-1 - i] == -1:
            op.fix(layout)
        else:
            op.unify(places[-1 - i], layout)
    return op.dims(x)


@rule("index_select")
def index_select(op: Op, x: torch.Tensor, dim: int, where: torch.Tensor) -> Any:
    return along(op, x, dim)


def _unify_beside(op: Op, dim: int, *tensors: Any, places: Layout | None = None) -> None:
    """Unify the dimensions of tensors, but `dim` stays, and so do those of which they use a part only.

    places: The layout of the first tensor's `dim`, if the units there are picked by their places; it need not stay.
    """
    each = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.dim()]
    for d in range(each[0].dim()):
        layouts = [op.dims(tensor)[d] for tensor in each]
        if d == dim % each[0].dim() and places is not None:
            op.unify(layouts[0], places)
            op.fix(*layouts[1:])
        elif d == dim % each[0].dim() or len({tensor.shape[d] for tensor in each}) > 1:
            op.fix(*layouts)
        else:
            for layout in layouts[1:]:
                op.unify(layouts[0], layout)


@rule("gather")
def gather(op: Op, x: torch.Tensor, dim: int, where: torch.Tensor, **kwargs: Any) -> list[Layout]:
    tag = tag_of(where)
    op.picks = tag is not None and tag.places is not None
    _unify_beside(op, dim, x, where, places=tag.places if tag is not None else None)
    return op.dims(where)


@rule("scatter scatter_add scatter_reduce")
def scatter(
    op: Op, x: torch.Tensor, dim: int, where: torch.Tensor, source: Any, *args: Any, **kwargs: Any
) -> list[Layout]:
    _unify_beside(op, dim, x, where, source)
    return op.dims(x)


@rule("index_add index_copy index_reduce index_fill")
def index_add(
    op: Op, x: torch.Tensor, dim: int, where: torch.Tensor, source: Any, *args: Any, **kwargs: Any
) -> list[Layout]:
    _unify_beside(op, dim, x, source)
    return op.dims(x)


@rule("slice_scatter")
def slice_scatter(op: Op, x: torch.Tensor, source: torch.Tensor, dim: int = 0, *args: Any) -> list[Layout]:
    _unify_beside(op, dim, x, source)
    return op.dims(x)


@rule("select_scatter")
def select_scatter(op: Op, x: torch.Tensor, source: torch.Tensor, dim: int, place: int) -> list[Layout]:
    rest = list(op.dims(x))
    op.fix(rest.pop(dim))
    for a, b in zip(rest, op.dims(source), strict=True):
        op.unify(a, b)
    return op.dims(x)


@rule("topk")
def topk(op: Op, x: torch.Tensor, k: int, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    """The largest k units along a dimension, such as the experts of a token, and their places."""
    dims = list(op.dims(x))
    if not x.dim() or k == x.shape[dim] or not axes.can_shrink(dims[dim]):
        return along(op, x, dim)
    op.mixes, op.places, op.placed = True, dims[dim], (1,)
    op.least(dims[dim], k)
    dims[dim] = k
    return dims, dims


@rule("sort")
def sort(op: Op, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Sorted numbers, and their order; if they are places of units, so are the sorted ones."""
    tag = tag_of(x)
    if tag is not None and tag.places is not None:
        op.places, op.placed = tag.places, (0,)
    return rank(op, x, *args, **kwargs)


@rule("histc")
def count_values(op: Op, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """How many numbers lie in each bin; of places of units, such as the tokens of each expert, a bin is a unit."""
    tag = tag_of(x)
    if tag is not None and tag.places is not None:
        op.follow(tag.places, "bins")
    op.fix(*op.dims(x))
    return op.sizes()


@rule("argmax argmin median nanmedian mode kthvalue cummax cummin")
def rank(op: Op, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """The order, or the place of a unit, would be another in the small model, so the dimension stays."""
    return along(op, x, op.argument("dim", None))


@rule("multinomial")
def multinomial(op: Op, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    return along(op, x, -1)


@rule("bucketize searchsorted isin")
def look_up(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Each number is looked up in a table, which stays."""
    name = "elements" if op.name == "isin" else "self"
    x = argument(op.func, name, args, kwargs)
    op.fix(*(layout for each in tensors_in(args) if each is not x for layout in op.dims(each)))
    return op.dims(x) if isinstance(x, torch.Tensor) else op.sizes()


@rule("_pack_padded_sequence")
def pack(op: Op, x: torch.Tensor, lengths: torch.Tensor, batch_first: bool) -> Any:
    """The steps of all sequences one after the other, x (N, T, ...) or (T, N, ...), and how many each has."""
    first, second, *others = op.dims(x)
    op.fix(first, second)
    (steps, *_), _ = op.sizes()
    return [steps, *others], None


@rule("_embedding_bag _embedding_bag_forward_only")
def embedding_bag(op: Op, weight: torch.Tensor, *args: Any) -> Any:
    """weight (rows, C); each bag is a sum, mean or maximum of rows, which all stay."""
    rows, columns = op.dims(weight)
    op.fix(rows)
    op.role(weight, 1, PRODUCES)
    (bags, _), *others = op.sizes()
    return [bags, columns], *others
