"""The units that are alive: those that signals reach through weights of which some are zero.

A unit *varies* if a path of weights that stay leads to it from the inputs, and is *used* if one leads from it
to the outputs; it is alive if both hold at some tensor along its axis. One sweep forward over the traced
operators and one back find every path, so no iteration is needed: a unit that depends on dead units alone is
dead in the same sweep. If an operator is not known well enough, its units count as alive. Two axes in one
dimension (heads and their features) are judged separately, so features that are alive in removed heads alone
stay. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from prunus.graph import Axis, Graph, Layout, Op, Storage, Tag, Untracked, axes, operators

Units = dict[str, Tensor]  # axis name -> bool (size,)


class Product(NamedTuple):
    """An operator that multiplies an activation by a parameter, or an embedding, which has no `x`."""

    x: Tag | None
    dims: list[Layout]  # of the parameter
    mask: Tensor
    made: int  # the dimension of the parameter that becomes the result's
    summed: int | None  # the dimension that is summed over; None for an embedding

    def through(self) -> set[Axis]:
        """The axes of x that lead to the same units of the result, not summed over (groups)."""
        carried = {axis for layout in self.x.dims for axis in axes.leaves(layout)} if self.x else set()
        summed = set() if self.summed is None else set(axes.leaves(self.dims[self.summed]))
        return carried & set(axes.leaves(self.dims[self.made])) - summed

    def left(self, rows: Tensor, columns: Tensor | None) -> Tensor:
        """The mask, False also where the made units `rows` or the summed units `columns` are."""
        mask = self.mask & _along(rows, self.made, self.mask)
        if columns is None:
            return mask
        assert self.summed is not None
        return mask & _along(columns, self.summed, self.mask)


def alive(graph: Graph, masks: Mapping[str, Tensor]) -> Units:
    """The units of every axis that are alive; a weight without a mask stays whole.

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
            # a vector shifts or scales units; a tensor of more dimensions is a signal of its own (positions), and so is
            # one that is kept in a plain attribute, which has no shape here
            signal = name in graph.state or sum(size != 1 for size in graph.shapes[name]) > 1
            self.varies[tag] = {axis.name: _all(axis, signal) for axis in _axes(tag)}
        self.shared = _written_through_views(graph.ops)

    def alive(self) -> Units:
        for op in self.graph.ops:
            self._forward(op)
        for op in reversed(self.graph.ops):
            self._backward(op)
        found = {name: torch.zeros(axis.size, dtype=torch.bool) for name, axis in self.graph.axes.items()}
        met: set[str] = set()
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
            units: Units = {}
            for axis in _axes(tag):
                if op.mixes or tag.storage in self.shared:
                    units[axis.name] = _all(axis, True)
                elif product is not None:
                    units[axis.name] = self._find_made(product, axis)
                else:
                    units[axis.name] = self._find_carried(op, axis)
            self.varies[tag] = units

    def _find_made(self, product: Product, axis: Axis) -> Tensor:
        """The units of an axis that vary in the result of a product: bool (axis.size,)."""
        made = product.dims[product.made]
        if axis not in set(axes.leaves(made)):
            return self._of(self.varies, product.x, axis, missing=True)
        rows, columns = torch.ones(axes.size(made), dtype=torch.bool), None
        if product.x is not None:
            through = product.through()
            assert product.summed is not None, "only an embedding sums over no dimension"
            rows = _positions(
                made, lambda a: self._of(self.varies, product.x, a, True) if a in through else None
            )
            columns = _positions(
                product.dims[product.summed], lambda a: self._of(self.varies, product.x, a, missing=True)
            )
        return _units(product.left(rows, columns), product.made, made, axis)

    def _find_carried(self, op: Op, axis: Axis) -> Tensor:
        """The units of an axis that vary in the result of any other operator: those that do in an operand."""
        found = _all(axis, False)
        if any(isinstance(value, Untracked) for value in op.values()) or not _rides(op, axis):
            return _all(axis, True)
        for tag in op.reads():
            if axis in _axes(tag):
                found = found | self._of(self.varies, tag, axis, missing=True)
            elif not op.is_a(operators.FILLING) and tag not in self.graph.tensors:
                return _all(axis, True)  # broadcast along the axis
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
                    units = self._find_used(product, results[0], axis)
                elif not _rides(op, axis) or not any(axis in _axes(result) for result in results):
                    units = _all(axis, True)
                else:
                    units = _all(axis, False)
                    for result in results:
                        units = units | self._of(self.used, result, axis, missing=False)
                mine = self.used.setdefault(tag, {})
                mine[axis.name] = mine[axis.name] | units if axis.name in mine else units

    def _find_used(self, product: Product, result: Tag, axis: Axis) -> Tensor:
        """The units of an axis of its operand that a product uses."""
        assert product.summed is not None, "only an embedding sums over no dimension"
        made, summed = product.dims[product.made], product.dims[product.summed]
        rows = _positions(made, lambda a: self._of(self.used, result, a, missing=False))
        if axis in set(axes.leaves(summed)):
            return _units(product.left(rows, None), product.summed, summed, axis)
        if axis in product.through():
            return _units(product.left(rows, None), product.made, made, axis)
        return self._of(self.used, result, axis, missing=False) if axis in _axes(result) else _all(axis, True)

    @staticmethod
    def _of(units: dict[Tag, Units], tag: Tag | None, axis: Axis, missing: bool) -> Tensor:
        found = None if tag is None else units.get(tag, {}).get(axis.name)
        return _all(axis, missing) if found is None else found

    # ------------------------------------------------------------------------------------ products
    def _product(self, op: Op) -> Product | None:
        """The product that an operator is, if it is one of those known here."""
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
                return None  # another signal is added
            return self._with(a, b, made=1, summed=0) or self._with(b, a, made=0, summed=1)
        return None

    def _with(self, x: Tag | None, weight: object, made: int, summed: int | None) -> Product | None:
        if not isinstance(weight, Tag) or weight not in self.origin:
            return None
        if not (x is None or isinstance(x, Tag)) or x in self.origin:
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
    """Whether an operator keeps the dimensions of a weight in place, or swaps the two of a matrix."""
    if op.is_a(operators.TRANSPOSE):
        return len(after.dims) == 2
    return op.is_a(operators.PART) or after.shape == before.shape


def _rides(op: Op, axis: Axis) -> bool:
    """Whether an operator keeps units separate: a product of activations does for heads alone."""
    matrices = (layout for tag in op.reads() for layout in tag.dims[-2:])
    return not op.contracts or all(axis not in set(axes.leaves(layout)) for layout in matrices)


def _written_through_views(ops: list[Op]) -> set[Storage]:
    """The memory that is written to after a view of it was taken: its tags may describe an older value."""
    viewed: set[Storage] = set()
    written: set[Storage] = set()
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
    """The places along a dimension at which the units of all its axes are True; None: all are."""
    found = torch.ones(axes.size(layout), dtype=torch.bool)
    for axis, index in axes.units(layout).items():
        units = of(axis)
        if units is not None:
            found[index[~units].flatten()] = False
    return found


def _units(mask: Tensor, dim: int, layout: Layout, axis: Axis) -> Tensor:
    """The units of an axis for which any element of a mask is True; dimension `dim` has this layout."""
    others = [d for d in range(mask.dim()) if d != dim]
    along = mask.any(others) if others else mask
    return along[axes.units(layout)[axis]].any(1)
