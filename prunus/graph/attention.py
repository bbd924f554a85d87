"""Attention, found from operators: a scaled dot product, or a softmax between two products of data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from prunus.graph import axes
from prunus.graph.axes import Layout
from prunus.graph.flow import Flow
from prunus.graph.op import Op, Tag
from prunus.graph.operators import ATTENTION, BATCHED, EXPANSION, REPEAT, SOFTMAX


class Attention(NamedTuple):
    """One attention, or one of its two products.

    Args:
        heads: The layouts that it batches over.
        within: Those within a head.
        contracted: That which the product of queries and keys sums over.
        operands: The tensors that it multiplies.
        kept: The keys and values, each before it is repeated for several heads of queries.
        shared: The heads of keys and values that are repeated.
    """

    heads: list[Layout]
    within: list[Layout]
    contracted: Layout
    operands: list[Tag]
    kept: list[Tag]
    shared: list[Layout]


def attentions(flow: Flow) -> Iterator[Attention]:
    """Find the attentions of a forward pass.

    Args:
        flow: Its operators.

    Yields:
        Each attention that is one operator, and each of the two products of the others.
    """
    weights: set[int] = set()  # the results of a softmax over a product of data
    for op in flow.ops:
        if op.is_a(ATTENTION):
            yield _whole(flow, op)
        elif op.is_a(SOFTMAX):
            products = [each for each in flow.behind(op.reads()[0]).products if _is_of_data(each)]
            for each in products:
                yield _product(flow, each, kept=each.operands()[1])
            weights |= {id(tag) for tag in op.writes() if products}
        elif _is_of_data(op):
            others = [tag for tag in op.operands() if not weights & flow.behind(tag).tags]
            if len(others) == 1:
                yield _product(flow, op, kept=others[0])


def _whole(flow: Flow, op: Op) -> Attention:
    q, k, v = op.operands()
    heads = [*q.dims[:2], k.dims[1]]
    found = [_before_repetition(flow, tag) for tag in (k, v)]
    shared = [layout for _, layouts in found for layout in layouts]
    shared += [k.dims[1]] if axes.size(k.dims[1]) < axes.size(q.dims[1]) else []
    return Attention(
        heads, [q.dims[3], k.dims[3], v.dims[3]], k.dims[3], [q, k, v], [tag for tag, _ in found], shared
    )


def _product(flow: Flow, op: Op, kept: Tag) -> Attention:
    batch, *within = op.writes()[0].dims
    tag, shared = _before_repetition(flow, kept)
    return Attention([batch], [op.over, *within], op.over, list(op.operands()), [tag], shared)


def _before_repetition(flow: Flow, tag: Tag) -> tuple[Tag, list[Layout]]:
    """Keys or values before each head is repeated, with their layouts; without repetition as they are, with none."""
    for op in flow.behind(tag).ops:
        if op.is_a(EXPANSION | REPEAT) and op.reads():
            old, new = op.reads()[0], op.writes()[0]
            added = len(new.dims) - len(old.dims)
            grows = any(a == 1 < b for a, b in zip(old.shape, new.shape[added:], strict=True))
            if grows and axes.size(axes.nest(*new.dims)) == axes.size(axes.nest(*tag.dims)):
                return old, old.dims
    return tag, []


def _is_of_data(op: Op) -> bool:
    """Whether an operator multiplies batches of matrices that both depend on the input."""
    return op.is_a(BATCHED) and all(isinstance(tag, Tag) and tag.data for tag in op.operands())
