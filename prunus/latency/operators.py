"""Operators whose time depends on widths or on blocks; each can be built alone at any widths.

Tracing records operators with the layouts of their tensors, so each can be built and timed alone (operator_timing.py).
Operators that differ only in their widths share one table (table.py): a grid of sizes, with the multiples that hardware
prefers, and linear interpolation. Selection relies on narrower networks being faster, so tables are made to rise.
Source: ours, after the per-layer tables of NetAdapt (Yang et al., ECCV 2018, arXiv:1804.03230) and MetaPruning.

Letters: S sizes that an operator depends on (1, 2, or 1 for all together; 0 for one of fixed sizes, in a block), C
candidates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any

from torch import Tensor

from prunus.graph import Graph, Layout, Op, Tag, Untracked, axes
from prunus.graph import operators as families
from prunus.selection import Depth

KINDS = ("convolutions", "grouped convolutions", "products", "norms", "others")

Sizes = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Operator:
    """One operation whose time depends on widths.

    variables: the sizes that it depends on, independent of each other. key: equal for operators that take the same time
    at the same sizes. kind: the kind that shares one correction factor. blocks: the blocks in which it runs, if the
    graph's axes include them (`Graph.deep`).
    """

    op: Op
    variables: tuple[Layout, ...]
    key: str
    kind: str
    blocks: tuple[str, ...] = ()

    @cached_property
    def full(self) -> Sizes:
        """The sizes in the whole model."""
        return tuple(map(axes.size, self.variables))

    @property
    def together(self) -> bool:
        """Whether it depends on more sizes than a grid can hold."""
        return len(self.variables) > 2

    def coordinates(self, size: Callable[[Layout], Tensor]) -> list[Tensor]:
        """The table's coordinates at some widths: a tensor (C,) for each S. size: a layout's lengths (C,)."""
        return [self._work(size)] if self.together else [size(variable) for variable in self.variables]

    def place(self, sizes: Sizes) -> tuple[float, ...]:
        """The table's coordinates of measured sizes."""
        if not self.together:
            return sizes
        return (self._work(partial(size_at, sizes=dict(zip(self.variables, sizes, strict=True)))),)

    def _work(self, size: Callable[[Layout], Any]) -> Any:
        """The number of elements read and written, as a share of that at full size."""
        whole = sum(prod(tag.shape) for tag in self.op.tags())
        return sum(prod(map(size, tag.dims)) for tag in self.op.tags()) / whole

    def build(self, sizes: Sizes, tensor: Callable[[int, Sizes, Any], Any]) -> tuple[list, dict]:
        """Build the arguments at other sizes. tensor(position, shape, tag) makes those that are tensors."""
        size = partial(size_at, sizes=dict(zip(self.variables, sizes, strict=True)))
        count = iter(range(10**6))

        def build_argument(value: Any) -> Any:
            if isinstance(value, Tag):
                return tensor(next(count), tuple(map(size, value.dims)), value)
            if isinstance(value, Untracked):
                return tensor(next(count), tuple(value.shape), value)
            return [build_argument(each) for each in value] if isinstance(value, (list, tuple)) else value

        args, kwargs = [build_argument(value) for value in self.op.inputs[0]], {}
        for name, value in self.op.inputs[1].items():
            if name != "device":
                kwargs[name] = build_argument(value)
        for layout, argument, element in self.op.follows:
            if element is None:
                args[argument] = size(layout)
            else:
                args[argument][element] = size(layout)
        return args, kwargs


def operators(graph: Graph) -> list[Operator]:
    """List the operations of a traced model that compute something and depend on widths, or on blocks."""
    depth = Depth(graph)
    found = (_operator(op, depth.at(number)) for number, op in enumerate(graph.ops))
    return [each for each in found if each is not None]


def _operator(op: Op, blocks: tuple[str, ...]) -> Operator | None:
    dims = [dim for tag in op.tags() for dim in tag.dims] + [layout for layout, _, _ in op.follows]
    layouts = list(dict.fromkeys(axes.normal(dim) for dim in dims))
    layouts = [layout for layout in layouts if axes.can_shrink(layout)]
    if op.alias is not None or not (layouts or blocks) or not any(op.results):
        return None
    each = [set(axes.leaves(layout)) for layout in layouts]
    independent = sum(map(len, each)) == len(set().union(*each))
    variables = (
        layouts if independent else list(dict.fromkeys(a for lay in layouts for a in axes.leaves(lay)))
    )
    names = {variable: f"w{i}" for i, variable in enumerate(variables)}
    values = [list(value) if isinstance(value, list) else value for value in op.inputs[0]]
    for layout, argument, element in op.follows:
        holder, place = (values, argument) if element is None else (values[argument], element)
        holder[place] = _formula(layout, names)
    arguments = [_words(value, names) for value in values]
    arguments += [f"{k}={_words(v, names)}" for k, v in op.inputs[1].items() if k != "device"]
    key = f"{op.func}({', '.join(arguments)})"
    if len(variables) > 2:
        key += f" of {'+'.join(str(axes.size(variable)) for variable in variables)}"
    kind = "norms" if op.is_a(families.NORM) else "others"
    if op.contracts:
        grouped = "grouped convolutions" if op.follows else "convolutions"
        kind = grouped if op.is_a(families.CONVOLUTION) else "products"
    return Operator(op, tuple(variables), key, kind, blocks)


def size_at(layout: Layout, sizes: Mapping[Layout, int]) -> int:
    """The length of a layout, given the sizes of some layouts: of this one or of its parts."""
    layout = axes.normal(layout)
    if layout in sizes:
        return sizes[layout]
    if isinstance(layout, axes.Sum):
        return sum(size_at(part, sizes) for part in layout.parts)
    if isinstance(layout, axes.Product):
        return prod(size_at(factor, sizes) for factor in layout.factors)
    return axes.size(layout)


def _formula(layout: Layout, names: Mapping[Layout, str]) -> str:
    layout = axes.normal(layout)
    if layout in names:
        return names[layout]
    if isinstance(layout, axes.Sum):
        return f"({'+'.join(_formula(part, names) for part in layout.parts)})"
    if isinstance(layout, axes.Product):
        return "*".join(_formula(factor, names) for factor in layout.factors)
    return str(axes.size(layout))


def _words(value: Any, names: Mapping[Layout, str]) -> str:
    """An argument in a key; constant tensors (weights, or computed from weights alone) are marked."""
    if isinstance(value, Tag):
        dims = ", ".join(_formula(dim, names) for dim in value.dims)
        return f"{'constant' if is_constant(value) else ''}[{dims}]"
    if isinstance(value, Untracked):
        return f"untracked{list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(_words(each, names) for each in value)})"
    return str(value)


def is_constant(tag: Tag | Untracked) -> bool:
    """Whether a tensor is a weight, made of weights alone, or depends on nothing."""
    return isinstance(tag, Untracked) or tag.storage is None
