"""The axes on which a gate of zero is not the same as removal, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from weakref import WeakKeyDictionary

from prunus.gates.gates import ACT
from prunus.graph import Axis, Graph, Layout, Op, Tag, axes, operators


def inexact_axes(graph: Graph, roles: Collection[str] = ACT) -> dict[str, str]:
    """Find the axes on which a unit with a gate of zero still affects the output.

    On these axes a norm or softmax takes statistics, or activations are multiplied by each other (queries by keys).
    Source: ours.

    Args:
        graph: The graph of the model.
        roles: The roles of the dimensions that gates act on, see `Gates`.

    Returns:
        {axis: reason}.
    """
    known = _known.setdefault(graph, {})  # cached, because searches ask at every check
    if tuple(roles) not in known:
        known[tuple(roles)] = _find_inexact(graph, roles)
    return known[tuple(roles)]


_ZERO_OF_ZEROS = operators.ADDITION | operators.MULTIPLICATION

_known: WeakKeyDictionary[Graph, dict[tuple[str, ...], dict[str, str]]] = WeakKeyDictionary()


def _find_inexact(graph: Graph, roles: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    gated = {
        tag: _gated(graph, name, roles) for tag, name in graph.tensors.items() if name in graph.parameters
    }
    for op in graph.ops:
        inputs = op.reads()
        of_weights = [gated[tag] for tag in inputs if tag in gated]
        if op.is_a(operators.MOVE) and inputs and inputs[0] in gated:
            # a zero in a weight is a zero in what it moves to
            gated |= dict.fromkeys(op.writes(), of_weights[0])
        elif op.is_a(_ZERO_OF_ZEROS) and inputs and len(of_weights) == len(inputs):
            zero = set.intersection if op.is_a(operators.ADDITION) else set.union
            gated |= dict.fromkeys(op.writes(), zero(*of_weights))
        elif op.mixes:
            for axis in _mixed(op):
                found.setdefault(axis.name, f"{op} takes statistics over it")
        elif op.contracts:
            for axis in _summed(op):
                if not any(axis in each for each in of_weights):
                    found.setdefault(axis.name, f"{op} multiplies activations along it")
    return {name: found[name] for name in graph.axes if name in found}


def _gated(graph: Graph, name: str, roles: Collection[str]) -> set[Axis]:
    """The axes whose gates act on a parameter."""
    layouts = graph.layouts[name]
    acts = [layout for dim, layout in enumerate(layouts) if graph.role(name, dim) in roles]
    return {axis for layout in acts for axis in axes.leaves(layout)}


def _leaves(tags: Iterable[Tag]) -> dict[Axis, None]:
    return {axis: None for tag in tags for layout in tag.dims for axis in axes.leaves(layout)}


def _mixed(op: Op) -> Iterable[Axis]:
    """The axes over which statistics are taken: not a batch norm's channels, nor the groups of a group norm."""
    if op.is_a(operators.BATCH_NORM):
        normed, *_ = op.reads()
        return [axis for layout in (normed.dims[0], *normed.dims[2:]) for axis in axes.leaves(layout)]
    if not op.is_a(operators.GROUP_NORM):
        return _leaves(op.tags())
    normed, *_ = op.reads()
    channels, groups = op.argument("C"), op.argument("group")
    layout, inside = axes.normal(normed.dims[1]), []
    factors = list(layout.factors) if isinstance(layout, axes.Product) else [layout]
    while factors and axes.size(axes.nest(*inside)) < channels // groups:
        inside.insert(0, factors.pop())
    return list(axes.leaves(axes.nest(*inside)))


def _summed(op: Op) -> Iterable[Axis]:
    inputs, results = _leaves(op.reads()), _leaves(op.writes())
    return [*(axis for axis in inputs if axis not in results), *axes.leaves(_within_groups(op))]


def _within_groups(op: Op) -> Layout:
    """The layout that is summed over: for a grouped convolution the channels of one group, as groups do not mix."""
    groups = op.argument("groups") if op.is_a(operators.CONVOLUTION) else 1
    layout = axes.normal(op.over)
    if groups == 1 or axes.size(layout) == groups:
        return layout if groups == 1 else 1
    factors = list(layout.factors) if isinstance(layout, axes.Product) else []
    for count in range(1, len(factors)):
        if axes.size(axes.nest(*factors[:count])) == groups:
            return axes.nest(*factors[count:])
    return layout
