"""Which units carry something: how far signals reach through weights of which some are zero.

A unit *varies* if a path of weights that stay leads to it from the inputs, and is *used* if one leads from it to the
outputs; it lives if both hold of it somewhere on its axis. One sweep over the traced operators forward and one back
find every path, so nothing has to be repeated until it settles: what lives only on what is dead is dead in the
same sweep. Where an operator is not known well enough, its units count as alive; of two axes in one dimension (heads
and their features) each is judged alone, so what lives only in heads that are removed stays. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from prunus.graph import Axis, Graph, Layout, Op, Storage, Tag, Untracked, axes, operators

Units = dict[str, Tensor]  # axis name -> bool (size,)


class Product(NamedTuple):
    """An operator that multiplies an activation by a parameter (or picks from it: an embedding has no `x`)."""

    x: Tag | None
    dims: list[Layout]  # of the parameter
    mask: Tensor
    made: int  # its dimension that becomes the result's
    summed: int | None  # its dimension that is summed over

    def through(self) -> set[Axis]:
        """The axes of x that are not summed over, but lead straight to the same units (the groups of a convolution)."""
        carried = {axis for layout in self.x.dims for axis in axes.leaves(layout)} if self.x else set()
        summed = set() if self.summed is None else set(axes.leaves(self.dims[self.summed]))
        return carried & set(axes.leaves(self.dims[self.made])) - summed

    def left(self, rows: Tensor, columns: Tensor | None) -> Tensor:
        """The mask where the made units `rows` and the summed units `columns` are True."""
        mask = self.mask & _along(rows, self.made, self.mask)
        return mask if columns is None else mask & _along(columns, self.summed, self.mask)


def alive(graph: Graph, masks: Mapping[str, Tensor]) -> Units:
    """The units of every axis that carry something; a weight without a mask is whole.

    Units over which an operator takes statistics (layer norm, softmax, a mean) all count as alive.
    """
    return _Sweep(graph, masks).alive()


class _Sweep:
    def __init__(self, graph: Graph, masks: Mapping[str, Tensor]):
        self.graph, self.masks = graph, masks
        self.origin: dict[Tag, tuple[str, bool]] = {}  # tags of parameters: name, whether transposed
        self.products: dict[Op, Product] = {}
        self.varies: dict[Tag, Units] = {}
        self.used: dict[Tag, Units] = {}
        for tag, name in graph.tensors.items():
            if name in graph.parameters:
                self.origin[tag] = name, False
            # a number for each unit shifts or scales it; more than that is a signal of its own (positions)
            signal = sum(size != 1 for size in graph.shapes[name]) > 1
            self.varies[tag] = {axis.name: _all(axis, signal) for axis in _axes(tag)}
        self.shared = _written_through_views(graph.ops)

    def alive(self) -> Units:
        for op in self.graph.ops:
            self._forward(op)
        for op in reversed(self.graph.ops):
            self._backward(op)
        found = {name: torch.zeros(axis.size, dtype=torch.bool) for name, axis in self.graph.axes.items()}
        met = set()
        for op in self.graph.ops:
            for tag in op.writes():
                for axis in _axes(tag):
                    met.add(axis.name)
                    varies, used = self.varies[tag][axis.name], self.used.get(tag, {}).get(axis.name)
                    found[axis.name] |= varies & used if used is not None else False
            for axis in (axis for tag in op.reads() for axis in _axes(tag) if op.mixes):
                found[axis.name].fill_(True)
        return {name: units if name in met else torch.ones_like(units) for name, units in found.items()}

    # ------------------------------------------------------------------------------------- forward
    def _forward(self, op: Op) -> None:
        inputs = op.reads()
        if op.is_a(operators.MOVE) and len(inputs) == 1 and inputs[0] in self.origin:
            name, flipped = self.origin[inputs[0]]
            for tag in op.writes():
                if len(tag.dims) == len(self.graph.layouts[name]) and _in_place(op, inputs[0], tag):
                    self.origin[tag] = name, flipped != (op.order == [1, 0])
        product = self._product(op)
        if product is not None:
            self.products[op] = product
        for tag in op.writes():
            units = {}
            for axis in _axes(tag):
                if op.mixes or tag.storage in self.shared:
                    units[axis.name] = _all(axis, True)
                elif product is not None:
                    units[axis.name] = self._made(product, axis)
                else:
                    units[axis.name] = self._carried(op, axis)
            self.varies[tag] = units

    def _made(self, product: Product, axis: Axis) -> Tensor:
        """Which units of an axis vary in the result of a product."""
        made = product.dims[product.made]
        if axis not in set(axes.leaves(made)):
            return self._of(self.varies, product.x, axis, missing=True)
        rows, columns = torch.ones(axes.size(made), dtype=torch.bool), None
        if product.x is not None:
            through = product.through()
            rows = _positions(
                made, lambda a: self._of(self.varies, product.x, a, True) if a in through else None
            )
            columns = _positions(
                product.dims[product.summed], lambda a: self._of(self.varies, product.x, a, missing=True)
            )
        return _units(product.left(rows, columns), product.made, made, axis)

    def _carried(self, op: Op, axis: Axis) -> Tensor:
        """Which units of an axis vary in the result of any other operator: those that do in an operand."""
        found = _all(axis, False)
        if any(isinstance(value, Untracked) for value in op.values()) or not _rides(op, axis):
            return _all(axis, True)
        for tag in op.reads():
            if axis in _axes(tag):
                found = found | self._of(self.varies, tag, axis, missing=True)
            elif not op.is_a(operators.FILLING) and tag not in self.graph.tensors:
                return _all(axis, True)  # spread over the axis
        return found

    # ------------------------------------------------------------------------------------ backward
    def _backward(self, op: Op) -> None:
        product = self.products.get(op)
        results = op.writes()
        for tag in op.reads():
            if product is not None and tag in self.origin:
                continue
            for axis in _axes(tag):
                if op.mixes or tag.storage in self.shared:
                    units = _all(axis, True)
                elif product is not None and tag is product.x:
                    units = self._asked(product, results[0], axis)
                elif not _rides(op, axis) or not any(axis in _axes(result) for result in results):
                    units = _all(axis, True)
                else:
                    units = _all(axis, False)
                    for result in results:
                        units = units | self._of(self.used, result, axis, missing=False)
                mine = self.used.setdefault(tag, {})
                mine[axis.name] = mine[axis.name] | units if axis.name in mine else units

    def _asked(self, product: Product, result: Tag, axis: Axis) -> Tensor:
        """Which units of an axis a product uses of its operand."""
        made, summed = product.dims[product.made], product.dims[product.summed]
        rows = _positions(made, lambda a: self._of(self.used, result, a, missing=False))
        if axis in set(axes.leaves(summed)):
            return _units(product.left(rows, None), product.summed, summed, axis)
        if axis in product.through():
            return _units(product.left(rows, None), product.made, made, axis)
        return self._of(self.used, result, axis, missing=False) if axis in _axes(result) else _all(axis, True)

    @staticmethod
    def _of(units: dict[Tag, Units], tag: Tag | None, axis: Axis, missing: bool) -> Tensor:
        found = units.get(tag, {}).get(axis.name)
        return _all(axis, missing) if found is None else found

    # ------------------------------------------------------------------------------------ products
    def _product(self, op: Op) -> Product | None:
        """How an operator multiplies by a parameter, if it is one of those known here."""
        if not any(op.results):  # the trace does not follow it
            return None
        if op.is_a(operators.CONVOLUTION):
            made = int(op.argument("transposed", False))
            return self._with(*op.operands(), made=made, summed=1 - made)
        if op.is_a(operators.LINEAR):
            return self._with(*op.operands(), made=0, summed=1)
        if op.is_a(operators.EMBEDDING):
            return self._with(None, *op.operands(), made=1, summed=None)
        if op.is_a(operators.MATRIX):
            (first, *_), (a, b) = op.inputs[0], op.operands()
            if op.is_a(operators.ADDMM) and first not in self.graph.tensors:
                return None  # a signal of its own is added
            return self._with(a, b, made=1, summed=0) or self._with(b, a, made=0, summed=1)
        return None

    def _with(self, x: Tag | None, weight: object, made: int, summed: int | None) -> Product | None:
        if weight not in self.origin or not (x is None or isinstance(x, Tag)) or x in self.origin:
            return None
        name, flipped = self.origin[weight]
        if flipped:
            made, summed = 1 - made, None if summed is None else 1 - summed
        mask = self.masks.get(name)
        whole = torch.ones((), dtype=torch.bool).expand(self.graph.shapes[name])
        return Product(x, self.graph.layouts[name], whole if mask is None else mask.cpu(), made, summed)


# --------------------------------------------------------------------------------------- helpers
def _all(axis: Axis, value: bool) -> Tensor:
    return torch.full((axis.size,), value)


def _axes(tag: Tag) -> list[Axis]:
    return list(dict.fromkeys(axis for layout in tag.dims for axis in axes.leaves(layout)))


def _in_place(op: Op, before: Tag, after: Tag) -> bool:
    """Whether a weight of as many dimensions as before still has each where it was, or two of two swapped."""
    if op.is_a(operators.TRANSPOSE):
        return len(after.dims) == 2
    return op.is_a(operators.PART) or after.shape == before.shape


def _rides(op: Op, axis: Axis) -> bool:
    """Whether the units of an axis stay apart: not so in the matrices of a product of activations (heads do)."""
    matrices = (layout for tag in op.reads() for layout in tag.dims[-2:])
    return not op.contracts or all(axis not in set(axes.leaves(layout)) for layout in matrices)


def _written_through_views(ops: list[Op]) -> set[Storage]:
    """The memory that is written to after a view of it was taken: there a tag does not tell the last value."""
    viewed, written = set(), set()
    for op in ops:
        for tag in op.writes():
            if tag.storage is None:
                continue
            if op.func._schema.is_mutable:
                written |= {tag.storage} & viewed
            elif any(other.storage is tag.storage for other in op.reads()):
                viewed.add(tag.storage)
    return written


def _along(vector: Tensor, dim: int, like: Tensor) -> Tensor:
    return vector.view([-1 if d == dim else 1 for d in range(like.dim())])


def _positions(layout: Layout, of: Callable[[Axis], Tensor | None]) -> Tensor:
    """Along a dimension, where all of the units it is made of are True; None from `of` is all of an axis."""
    found = torch.ones(axes.size(layout), dtype=torch.bool)
    for axis, index in axes.units(layout).items():
        units = of(axis)
        if units is not None:
            found[index[~units].flatten()] = False
    return found


def _units(mask: Tensor, dim: int, layout: Layout, axis: Axis) -> Tensor:
    """Which units of an axis have any True in a tensor, along its dimension of this layout."""
    others = [d for d in range(mask.dim()) if d != dim]
    along = mask.any(others) if others else mask
    return along[axes.units(layout)[axis]].any(1)
