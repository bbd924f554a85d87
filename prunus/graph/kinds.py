"""The kinds of axes, such as the heads of attention or the width of a residual stream, from operators alone.

No class and no attribute is asked for its name. A residual stream is a signal to which a product of itself is added. An
axis that plays several parts has the kind that comes first in `KINDS`. Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prunus.graph import axes
from prunus.graph.attention import attentions
from prunus.graph.axes import Axis, Layout
from prunus.graph.flow import Flow
from prunus.graph.op import Op, Tag
from prunus.graph.operators import ADDITION, CONVOLUTION, EMBEDDING, MATMUL

KINDS = {  # an axis has the first kind that fits
    "experts": "units of which each example takes the largest few, such as experts by a router",
    "groups": "heads of keys and values, each shared by several heads of queries, which go with it",
    "heads": "heads of attention; where keys are shared, the heads of queries of each group",
    "head_dim": "the width of a head's queries, keys and values",
    "width": "the residual stream that attention reads, or that no convolution reads",
    "embeddings": "the width of an embedding that is not that of a residual stream",
    "channels": "what convolutions read or write",
    "mlp": "hidden units between linear layers, in a residual branch if the network has any",
    "depth": "modules that can be skipped; only scores of blocks name them",
    "other": "axes of none of these kinds, such as the units of a pooler or of a recurrent layer",
}


class Kinds:
    """The kinds of the axes of a traced forward pass.

    Args:
        ops: Its operators, in the order in which they ran.
    """

    def __init__(self, ops: Sequence[Op]):
        flow = Flow(ops)
        found = list(attentions(flow))
        self.kept = [tag for each in found for tag in each.kept]
        self.coupled = _leaves(each.contracted for each in found if _in_pairs(each.contracted))
        heads = _leaves(layout for each in found for layout in each.heads)
        sources = [op for each in found for tag in each.operands for op in flow.behind(tag).products]
        projections = [op for op in sources if op.is_a(MATMUL)]
        branches = [(op, numbers) for op in ops if (numbers := _branch(flow, op))]
        inside = {number for _, numbers in branches for number in numbers} or range(len(ops))
        streams = _leaves(layout for op, _ in branches for layout in op.writes()[0].dims)
        convolutions = [op for op in ops if op.is_a(CONVOLUTION)]
        convolved = _leaves(op.over for op in convolutions)
        self._axes = {
            "experts": _leaves(op.places for op in ops if op.places is not None),
            "groups": _leaves(layout for each in found for layout in each.shared) & heads,
            "heads": heads,
            "head_dim": _leaves(layout for each in found for layout in each.within),
            "width": streams & _leaves(op.over for op in projections) | streams - convolved,
            "embeddings": _leaves(op.operands()[0].dims[1] for op in ops if _is_embedding(op)),
            "channels": convolved | _leaves(op.writes()[0].dims[1] for op in convolutions),
            "mlp": _hidden([ops[number] for number in sorted(inside)], projections),
        }

    def of(self, axis: Axis) -> str:
        """Return the kind of an axis."""
        if axis.kind == "depth":
            return axis.kind
        return next((kind for kind in KINDS if axis in self._axes.get(kind, ())), "other")


def _leaves(layouts: Iterable[Layout]) -> set[Axis]:
    return {axis for layout in layouts for axis in axes.leaves(layout)}


def _in_pairs(layout: Layout) -> bool:
    """Whether a unit has several places in a dimension."""
    return any(index.shape[1] > 1 for index in axes.units(layout).values())


def _branch(flow: Flow, op: Op) -> set[int]:
    """The numbers of the operators between the two parts of a sum, if one is made of the other by a product."""
    parts = [tag for tag in op.reads() if tag.data] if op.is_a(ADDITION) else []
    if len(parts) != 2:
        return set()
    return flow.between(*parts) or flow.between(*reversed(parts))


def _is_embedding(op: Op) -> bool:
    return op.is_a(EMBEDDING) and isinstance(op.operands()[0], Tag)


def _hidden(ops: Sequence[Op], projections: Sequence[Op]) -> set[Axis]:
    """The axes that one linear layer writes and another reads, other than projections of attention.

    An axis that the same layer reads and writes is a recurrent state, and left out.
    """
    layers = [op for op in ops if _is_linear(op)]
    written = {id(op): _leaves(op.writes()[0].dims) for op in layers}
    read = _leaves(op.over for op in layers if op not in projections)
    states = {axis for op in layers for axis in _leaves([op.over]) & written[id(op)]}
    return {axis for each in written.values() for axis in each} & read - states


def _is_linear(op: Op) -> bool:
    """Whether a product multiplies matrices, one of them made of parameters alone, or picked from such a table."""
    other = op.is_a(CONVOLUTION) or not op.contracts
    return not other and any(tag.picked or not tag.data for tag in op.reads())
