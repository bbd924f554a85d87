"""Layouts and long lists in words."""

from __future__ import annotations

from collections.abc import Sequence

from prunus.graph import axes
from prunus.graph.axes import Axis, Layout


def formula(layout: Layout) -> str:
    """Write a layout as sums and products of axes, each with its size.

    Args:
        layout: The layout, in its normal form.

    Returns:
        A formula such as `heads[8] x 64`.
    """
    if isinstance(layout, Axis):
        return f"{layout.name}[{layout.size}]"
    if isinstance(layout, axes.Sum):
        return " + ".join(map(formula, layout.parts))
    if isinstance(layout, axes.Product):
        return " x ".join(
            f"({formula(f)})" if isinstance(f, axes.Sum) else formula(f) for f in layout.factors
        )
    return str(layout)


def shortened(items: Sequence[object], most: int = 6) -> str:
    """Write a list, without the end of a long one.

    Args:
        items: Its items.
        most: How many are written.

    Returns:
        The items with commas, and how many there are if some are left out.
    """
    text = ", ".join(map(str, items[:most]))
    return text + (f", ... ({len(items)} in all)" if len(items) > most else "")
