"""The kinds of axes, such as the heads of attention or the width of a residual stream, from operators alone.

No class and no attribute is asked for its name. Attention is a scaled dot product, or a softmax between two products of
data; a residual stream is what is added to a product of itself. An axis that plays several parts has the kind that
comes first in `KINDS`. Source: ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prunus.graph import axes
from prunus.graph.axes import Axis, Layout
from prunus.graph.op import Op, Tag
from prunus.graph.operators import (
    ADDITION,
    ATTENTION,
    BATCHED,
    CONVOLUTION,
    EMBEDDING,
    EXPANSION,
    MATMUL,
    PRODUCT,
    REPEAT,
    SOFTMAX,
)

KINDS = {  # in this order an axis takes the first that fits
    "groups": "heads of keys and values that several heads of queries share, with those",
    "heads": "heads of attention; where keys are shared, the heads of queries within each group",
    "head_dim": "what a head multiplies: the width of its queries, keys and values",
    "width": "the residual stream that attention reads, or that no convolution reads",
    "embeddings": "the width of an embedding that is not that of a residual stream",
    "channels": "what convolutions read or write",
    "mlp": "hidden units between linear layers, in a residual branch if the network has any",
    "other": "axes of none of these kinds, such as the units of a pooler or of a recurrent layer",
}


@dataclass(frozen=True)
class _Attention:
    """One attention: the layouts that it batches over, those within a head, and the tensors that it multiplies."""

    batch: list[Layout]
    within: list[Layout]
    operands: list[Tag]
    contracted: Layout  # by the product of queries and keys
    shared: list[Layout]  # heads of keys, where the operator itself lets several heads of queries share one


@dataclass
class Kinds:
    """The kinds of the axes of a traced forward pass.

    Args:
        ops: Its operators, in the order in which they ran.
        named: The axes that may shrink, by name.
    """

    ops: Sequence[Op]
    named: Mapping[str, Axis]
    _made: dict[int, int] = field(init=False)  # tag -> the number of the operator that made it

    def __post_init__(self):
        self._made = {id(tag): n for n, op in reversed([*enumerate(self.ops)]) for tag in op.writes()}

    def find(self) -> tuple[dict[str, str], frozenset[str]]:
        """Find the kind of each axis.

        Returns:
            Axis name -> kind, and the names of those that rotary position embeddings couple in pairs, with the others
            of the same dimension.
        """
        attentions = list(self._attentions())
        groups = [layout for each in attentions for layout in self._groups(each)]
        projections = [
            op
            for each in attentions
            for tag in each.operands
            for op in self._behind(tag)[1]
            if op.is_a(MATMUL)
        ]
        branches = [(op, within) for op in self.ops if (within := self._branch(op))]
        streams = _leaves(layout for op, _ in branches for layout in _outputs(op))
        convolutions = [op for op in self.ops if op.is_a(CONVOLUTION)]
        convolved = _leaves(op.over for op in convolutions)
        read_by_attention = _leaves(op.over for op in projections)
        inside = {number for _, within in branches for number in within} or range(len(self.ops))
        layers = [op for n, op in enumerate(self.ops) if n in inside and op.is_a(MATMUL) and _has_weight(op)]
        hidden = _leaves(layout for op in layers for layout in _outputs(op))
        hidden &= _leaves(op.over for op in layers if op not in projections)
        found = {
            "groups": _leaves(groups),
            "heads": _leaves(layout for each in attentions for layout in each.batch),
            "head_dim": _leaves(layout for each in attentions for layout in each.within),
            "width": streams & read_by_attention | streams - convolved,
            "embeddings": _leaves(op.operands()[0].dims[1] for op in self.ops if _is_embedding(op)),
            "channels": convolved | _leaves(op.writes()[0].dims[1] for op in convolutions),
            "mlp": hidden - _leaves(layout for op in layers for layout in _loops(op)),
        }
        kinds = {
            name: next((kind for kind in KINDS if axis in found.get(kind, ())), "other")
            for name, axis in self.named.items()
        }
        turned = _leaves(each.contracted for each in attentions if _in_pairs(each.contracted))
        rotary = {name for name, axis in self.named.items() if axis in turned and kinds[name] == "head_dim"}
        return kinds, frozenset(rotary)

    # ------------------------------------------------------------------------------------- attention
    def _attentions(self) -> Iterator[_Attention]:
        """The attentions: in one operator, or as products before and after a softmax."""
        for op in self.ops:
            if op.is_a(ATTENTION):
                q, k, v = op.operands()
                shared = [k.dims[1]] if axes.size(k.dims[1]) < axes.size(q.dims[1]) else []
                within = [q.dims[3], k.dims[3], v.dims[3]]
                yield _Attention([*q.dims[:2], k.dims[1]], within, [q, k, v], k.dims[3], shared)
        weights: set[int] = set()  # the results of a softmax over a product of data
        for op in self.ops:
            if op.is_a(SOFTMAX):
                scores = [each for each in self._behind(op.reads()[0])[1] if _is_of_data(each)]
                for each in scores:
                    yield self._product(each)
                weights |= {id(tag) for tag in op.writes() if scores}
        for op in self.ops:
            if _is_of_data(op) and any(weights & self._behind(tag)[0] for tag in op.operands()):
                yield self._product(op)

    def _product(self, op: Op) -> _Attention:
        batch, *within = op.writes()[0].dims
        operands = [tag for tag in op.operands() if isinstance(tag, Tag)]
        return _Attention([batch], [op.over, *within], operands, op.over, [])

    def _groups(self, attention: _Attention) -> Iterator[Layout]:
        """The heads of keys and values that are repeated on the way to the product."""
        yield from attention.shared
        heads = _leaves(attention.batch)
        for tag in attention.operands:
            behind = self._behind(tag)[0]
            for op in self._between(behind):
                if op.is_a(EXPANSION | REPEAT) and op.reads():
                    old, new = op.reads()[0], op.writes()[0]
                    added = len(new.dims) - len(old.dims)
                    grown = any(a == 1 < b for a, b in zip(old.shape, new.shape[added:], strict=True))
                    yield from (axis for axis in _leaves(old.dims) & heads if grown)

    # -------------------------------------------------------------------------------------- branches
    def _branch(self, op: Op) -> set[int]:
        """The operators between the two parts of a sum, if one of them is made of the other by a product."""
        parts = [tag for tag in op.reads() if tag.data] if op.is_a(ADDITION) else []
        if len(parts) != 2:
            return set()
        return self._way(*parts) or self._way(*reversed(parts))

    def _way(self, source: Tag, tag: Tag) -> set[int]:
        """The operators that made a tensor since another was made; none without that one or without a product."""
        first = self._made.get(id(source), -1)
        seen, todo, numbers = {id(tag)}, [tag], set()
        while todo:
            number = self._made.get(id(todo.pop()), -1)
            if number > first and number not in numbers:
                numbers.add(number)
                fresh = [each for each in self.ops[number].reads() if id(each) not in seen]
                seen |= {id(each) for each in fresh}
                todo += fresh
        multiplies = any(self.ops[number].is_a(PRODUCT) for number in numbers)
        return numbers if multiplies and id(source) in seen else set()

    # ------------------------------------------------------------------------------------- the graph
    def _behind(self, tag: Tag) -> tuple[set[int], list[Op]]:
        """The tensors that a tensor is made of without a product, and the products that made the first of them."""
        seen, todo, products = {id(tag)}, [tag], {}
        while todo:
            number = self._made.get(id(todo.pop()))
            if number is None:
                continue
            if self.ops[number].is_a(PRODUCT):
                products[number] = self.ops[number]
                continue
            fresh = [each for each in self.ops[number].reads() if id(each) not in seen]
            seen |= {id(each) for each in fresh}
            todo += fresh
        return seen, list(products.values())

    def _between(self, tags: Collection[int]) -> list[Op]:
        """The operators, other than products, that made some tensors."""
        found = {self._made[tag] for tag in tags if tag in self._made}
        return [self.ops[number] for number in sorted(found) if not self.ops[number].is_a(PRODUCT)]


def _leaves(layouts: Iterable[Layout]) -> set[Axis]:
    return {axis for layout in layouts for axis in axes.leaves(layout)}


def _has_weight(op: Op) -> bool:
    """Whether a product multiplies with something that is made of parameters alone."""
    return any(isinstance(tag, Tag) and not tag.data for tag in op.operands())


def _is_of_data(op: Op) -> bool:
    """Whether an operator multiplies batches of matrices that both depend on the input."""
    return op.is_a(BATCHED) and all(isinstance(tag, Tag) and tag.data for tag in op.operands())


def _is_embedding(op: Op) -> bool:
    return op.is_a(EMBEDDING) and isinstance(op.operands()[0], Tag)


def _outputs(op: Op) -> list[Layout]:
    return op.writes()[0].dims


def _loops(op: Op) -> Iterator[Layout]:
    """What a layer both reads and writes: a recurrent state."""
    yield from _leaves([op.over]) & _leaves(_outputs(op))


def _in_pairs(layout: Layout) -> bool:
    """Whether a unit has several places in a dimension."""
    return any(index.shape[1] > 1 for index in axes.units(layout).values())
