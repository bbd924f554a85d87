"""The graph of a small model, from that of its original.

A trace of the small model would know less, because what its config says of sizes may no longer hold, and would give its
axes other names, where an axis has but one unit left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from prunus.graph.graph import Graph
from prunus.graph.places import Keep


@contextmanager
def resized(graph: Graph, keep: Keep) -> Iterator[Graph]:
    """Make the graph of the small model for the time of a block, in which the graph of the original must not be used.

    Args:
        graph: The graph of the original, whose axes have the small model's sizes in the block.
        keep: axis -> the units that the small model has, for all axes.

    Yields:
        The graph of the small model; a single unit is no axis in it.
    """
    shapes = {
        name: graph.shape(name, keep) if name in graph.layouts else n for name, n in graph.shapes.items()
    }
    sizes = {name: axis.size for name, axis in graph.axes.items()}
    try:
        for name, axis in graph.axes.items():
            axis.size = len(keep[name])
        yield replace(graph, axes={n: axis for n, axis in graph.axes.items() if axis.size > 1}, shapes=shapes)
    finally:
        for name, axis in graph.axes.items():
            axis.size = sizes[name]
