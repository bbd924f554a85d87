"""Layouts and lists in words, for explanations."""

from __future__ import annotations

from collections.abc import Sequence

from prunus.graph import axes
from prunus.graph.axes import Axis, Layout


def describe(layout: Layout) -> str:
    """Describe what a dimension is made of, and why it stays if it does."""
    shape = axes.normal(layout)
    whys = sorted({str(axis.fixed) for axis in axes.ends(layout) if axis.fixed})
    text = f"fixed at {shape}" if isinstance(shape, int) else formula(shape)
    return f"{text} ({'; '.join(whys)})" if whys else text


def formula(layout: Layout) -> str:
    """Write a layout as sums and products of the names of axes, each with its size."""
    if isinstance(layout, Axis):
        return f"{layout.name}[{layout.size}]"
    if isinstance(layout, axes.Sum):
        return " + ".join(map(formula, layout.parts))
    if isinstance(layout, axes.Product):
        return " x ".join(
            f"({formula(f)})" if isinstance(f, axes.Sum) else formula(f) for f in layout.factors
        )
    return str(layout)


def shorten(items: Sequence[object], most: int = 6) -> str:
    """List the first few items, and say how many there are in all."""
    text = ", ".join(map(str, items[:most]))
    return text + (f", ... ({len(items)} in all)" if len(items) > most else "")
