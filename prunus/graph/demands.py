"""What operators ask of the widths of axes: a multiple of some number, or some units at least."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import lcm

from prunus.graph import axes
from prunus.graph.axes import Axis
from prunus.graph.op import Op


def multiples_of(ops: Sequence[Op], names: Iterable[str]) -> dict[str, int]:
    """Compute the number of which the width of each axis must be a multiple; mostly 1."""
    found = dict.fromkeys(names, 1)
    for each in ops:
        for layout, number in each.multiples:
            for axis, multiple in axes.multiples(layout, number):
                found[axis.name] = lcm(found.get(axis.name, 1), multiple)
    return found


def leasts_of(ops: Sequence[Op]) -> dict[str, tuple[int, str]]:
    """Find the fewest units that some operator takes, with the operator, of the axes that have more than one."""
    found: dict[str, tuple[int, str]] = {}
    for each in ops:
        for layout, number in each.leasts:
            shape = axes.normal(layout)
            for axis in axes.leaves(
                shape
            ):  # within a product it is not known which of the factors may shrink
                units = number if axis is shape else axis.size
                found[axis.name] = max(found.get(axis.name, (1, "")), (units, str(each)))
    return found


def asking(ops: Sequence[Op], axis: Axis) -> Op:
    """Find the first operator that takes only multiples of some number of an axis."""
    return next(each for each in ops for layout, _ in each.multiples if axis in axes.leaves(layout))
