"""Widths that are fast on this machine, by a table that was measured on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunus.graph import Graph
from prunus.latency.table import GRIDS

SLACK = 0.02  # of the time: if a wider axis takes at most this much longer, a width is pointless


def fast_widths(graph: Graph, price: Callable[[Tensor], Tensor]) -> dict[str, list[int]]:
    """Find for each axis the widths that no wider one matches in speed, for `select(..., widths=...)`.

    Only the widths at which tables are measured are compared, because between them a table is a straight line. The
    other axes are whole meanwhile. An axis that is no faster at any of these widths may keep each of them.
    Source: ours.

    Args:
        graph: The graph of the model.
        price: price(widths (C, A)) -> milliseconds (C,), such as the `price` of what `measure_tables` returns.

    Returns:
        axis -> units, rising; the whole axis is among them.
    """
    whole = torch.tensor([axis.size for axis in graph.axes.values()], dtype=torch.float64)
    found = {}
    for place, (name, axis) in enumerate(graph.axes.items()):
        tried = _measured(graph, name, axis.size)
        widths = whole.repeat(len(tried), 1)
        widths[:, place] = torch.tensor(tried, dtype=torch.float64)
        times = price(widths)
        least_above = times.flip(0).cummin(0).values.flip(0)[1:]  # the shortest time of all wider ones
        fast = [
            t * (1 + SLACK) < above for t, above in zip(times.tolist(), least_above.tolist(), strict=False)
        ]
        fast = [width for width, keeps in zip(tried, [*fast, True], strict=True) if keeps]
        found[name] = fast if len(fast) > 1 else tried
    return found


def _measured(graph: Graph, name: str, size: int) -> list[int]:
    """The numbers of units, rising, that stand for measured sizes of some tensor; the last is the whole axis."""
    each = {m.index.shape[1] for m in graph.members(name) if m.role in ("produces", "consumes")} or {1}
    units = {sizes // n for n in each for sizes in GRIDS["fine"] if sizes % n == 0 and sizes // n < size}
    return [*sorted(units), size]
