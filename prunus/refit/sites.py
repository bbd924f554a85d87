"""The products of a model that may be fitted again, found in its graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from prunus.graph import OWN_NAMES, Graph, Layout, Op, Tag, axes, full_name, operators, parametrised

SHARED = "several products use it"


@dataclass
class Sites:
    """The products with parameters, in the order in which they run.

    Args:
        inputs: By parameter and for each of its products, the layouts of the operand that depends on data.
        outputs: The same of the output.
        normalised: By parameter and for each of its products, whether batch norms alone read the output, which take
            off its mean.
        left: By parameter, why its weights stay as they are.
    """

    inputs: dict[str, list[list[Layout]]] = field(default_factory=lambda: defaultdict(list))
    outputs: dict[str, list[list[Layout]]] = field(default_factory=lambda: defaultdict(list))
    normalised: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    left: dict[str, str] = field(default_factory=dict)


def find_sites(graph: Graph, model: nn.Module, names: Mapping[str, str] = OWN_NAMES) -> Sites:
    """Find the products of a graph that may be fitted again.

    Args:
        graph: The graph.
        model: A copy of the model, of any size.
        names: The names that its tensors have in the graph, where they differ from those in the model.

    Returns:
        The products.
    """
    computed = (names.get(name, name) for name in _computed(model))
    sites = Sites(left=dict.fromkeys(computed, "a parametrisation computes it"))
    readers: dict[Tag, list[Op]] = defaultdict(list)
    for op in graph.ops:
        for tag in op.reads():
            readers[tag].append(op)
    read: dict[str, int] = defaultdict(int)  # how many numbers of a parameter its products read
    for op, name, numbers in _uses(graph):
        if not numbers:
            sites.left.setdefault(name, f"{op} reads it too")
            continue
        data = [each for each in op.operands() if isinstance(each, Tag) and each.data]
        if not data:
            sites.left.setdefault(name, f"what {op} multiplies it by depends on no input")
            continue
        out = op.writes()[0]
        sites.inputs[name].append(data[0].dims)
        sites.outputs[name].append(out.dims)
        after = readers[out]
        norms = [each.is_a(operators.BATCH_NORM) for each in after]
        sites.normalised[name].append(bool(norms) and all(norms) and out not in graph.outputs)
        read[name] += numbers
    for name, count in read.items():
        if count > prod(graph.shapes[name]):
            sites.left.setdefault(name, SHARED)
    return sites


def unread(graph: Graph) -> list[str]:
    """List the axes that no product with a parameter reads, so that none can make good what is lost on them."""
    read = {
        axis.name
        for op, _, numbers in _uses(graph)
        if numbers
        for operand in op.operands()
        if isinstance(operand, Tag) and operand.data
        for layout in operand.dims
        for axis in axes.leaves(layout)
    }
    return [name for name in graph.axes if name not in read]


def _computed(model: nn.Module) -> Iterator[str]:
    """The parameters of a model that parametrisations compute, by their plain names."""
    for prefix, module in model.named_modules():
        if is_parametrized(module):
            yield from (full_name(prefix, name) for name in parametrised.lists_of(module))


def _uses(graph: Graph) -> Iterator[tuple[Op, str, int]]:
    """The operators that read a weight, moved or as it is; its name; and how many of its numbers a product reads.

    The last is 0 if the weight is no operand, or if another weight is the other operand.
    """
    weights = {
        tag: (name, prod(graph.shapes[name]))
        for tag, name in graph.tensors.items()
        if name in graph.parameters and len(graph.shapes[name]) > 1
    }
    for op in graph.ops:
        own = [tag for tag in op.reads() if tag in weights]
        if own and op.is_a(operators.MOVE):
            name, numbers = weights[own[0]]
            for tag in op.writes():  # other moves may repeat numbers, but leave none out
                weights[tag] = name, prod(tag.shape) if op.is_a(operators.PART) else numbers
            continue
        operands = op.operands() if op.is_a(operators.WEIGHTED) else ()
        among = [tag for tag in operands if tag in weights]
        for tag in own:
            name, numbers = weights[tag]
            yield op, name, numbers if among == [tag] else 0
