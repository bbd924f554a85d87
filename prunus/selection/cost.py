"""The costs of a network, as closed forms of its widths.

The multiply-accumulates of every operator are a product of layout sizes, so the cost of a keep is a polynomial: no
model is built, thousands of candidates are one query, and gradients flow to the widths. `macs` counts the operators
that torch's FlopCounterMode counts (convolutions and matrix products, attention included), one multiply-accumulate
for two of its flops.

Shapes: B candidates, A axes in the order of `graph.axes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from prunus.errors import UserError, unknown
from prunus.graph import Graph, Keep, Layout, axes

Widths = Mapping[str, Any] | torch.Tensor
_polynomials: WeakKeyDictionary[Graph, dict[str, _Polynomial]] = WeakKeyDictionary()


class _Polynomial:
    """A sum of terms `number * product of layout sizes`, one value per row."""

    def __init__(self, rows: Sequence[Sequence[tuple[int, Sequence[Layout]]]]):
        self.rows: list[list[tuple[int, tuple[Layout, ...]]]] = []
        for row in rows:
            joined: dict[tuple[Layout, ...], int] = defaultdict(int)
            for number, layouts in row:
                normal = [axes.normal(layout) for layout in layouts]
                for n in normal:
                    number *= n if isinstance(n, int) else 1
                joined[tuple(n for n in normal if not isinstance(n, int))] += number
            self.rows.append([(number, layouts) for layouts, number in joined.items()])

    def __call__(self, widths: Mapping[str, Any]) -> list[Any]:
        sizes = {f: axes.size(f, widths) for f in {f for row in self.rows for _, fs in row for f in fs}}
        values = []
        for row in self.rows:
            value = 0
            for number, factors in row:
                term = number
                for factor in factors:
                    term = term * sizes[factor]
                value = value + term
            values.append(value)
        return values


def _polynomial(graph: Graph, name: str) -> _Polynomial:
    cached = _polynomials.setdefault(graph, {})
    if name not in cached:
        if name == "macs":
            rows = [[term for op in graph.ops for term in op.macs]]
        elif name == "params":
            rows = [[(1, graph.layouts[parameter]) for parameter in sorted(graph.parameters)]]
        elif name == "weights_mb":
            rows = [[(graph.bytes_per_element[tensor], dims) for tensor, dims in graph.layouts.items()]]
        elif name == "cache_mb":
            rows = [graph.cached]
        else:
            rows = [[(storage.bytes_per_element, storage.dims)] for storage in graph.storages]
        cached[name] = _Polynomial(rows)
    return cached[name]


CLOSED_FORMS = ("macs", "params", "memory_mb", "weights_mb", "cache_mb")


def of(graph: Graph, name: str, widths: Widths) -> Any:
    """Evaluate a cost at given widths; differentiable in them.

    Args:
        graph: The graph of the model.
        name: One of `CLOSED_FORMS`.
        widths: A tensor (B, A), or a dict {axis: number}; axes left out are whole.

    Returns:
        A tensor (B,) for a tensor, a number for a dict, in the cost's unit.

    Raises:
        UserError: The cost is unknown, or the tensor has another shape.
    """
    if name not in CLOSED_FORMS:
        raise unknown("closed-form cost", name, CLOSED_FORMS)
    if isinstance(widths, torch.Tensor):
        if widths.dim() != 2 or widths.shape[1] != len(graph.axes):
            raise UserError(
                f"widths should have shape (candidates, {len(graph.axes)}), got {tuple(widths.shape)}."
            )
        columns = widths.to(torch.float64).unbind(1)
        if len(widths) == 1 and not widths.requires_grad:  # numbers are ten times as fast as tensors of one
            columns = widths[0].tolist()
        value = _evaluate(graph, name, dict(zip(graph.axes, columns, strict=True)))
        return torch.as_tensor(value, dtype=torch.float64, device=widths.device).expand(widths.shape[0])
    return _evaluate(graph, name, widths)


def _evaluate(graph: Graph, name: str, widths: Mapping[str, Any]) -> Any:
    values = _polynomial(graph, name)(widths)
    if name in ("macs", "params"):
        return values[0]
    return (_peak(graph, values) if name == "memory_mb" else values[0]) / 2**20


def _peak(graph: Graph, bytes_each: list[Any]) -> Any:
    """The most bytes in use at once; a tensor is in use from its operator to the last one that reads it."""
    events: dict[int, list[tuple[int, Any]]] = defaultdict(list)
    for storage, value in zip(graph.storages, bytes_each, strict=True):
        events[storage.born].append((1, value))
        events[storage.died + 1].append((-1, value))
    alive: Any = 0
    totals = []
    for moment in sorted(events):
        for sign, value in events[moment]:
            alive = alive + sign * value
        totals.append(alive)
    if not any(isinstance(total, torch.Tensor) for total in totals):
        return max(totals)
    return torch.stack(
        torch.broadcast_tensors(*(torch.as_tensor(t, dtype=torch.float64) for t in totals))
    ).amax(0)


def macs(graph: Graph, keep: Keep | None = None) -> int:
    """Count the multiply-accumulates of one forward pass on the example.

    Args:
        graph: The graph of the model.
        keep: axis -> kept indices; None: the whole model.

    Returns:
        The multiply-accumulates.

    Raises:
        UserError: `keep` does not fit the graph.
    """
    return int(of(graph, "macs", graph.widths(keep)))


def params(graph: Graph, keep: Keep | None = None) -> int:
    """Count the parameters; tied parameters count once.

    Args:
        graph: The graph of the model.
        keep: axis -> kept indices; None: the whole model.

    Returns:
        The number of parameters.

    Raises:
        UserError: `keep` does not fit the graph.
    """
    return int(of(graph, "params", graph.widths(keep)))


def memory_mb(graph: Graph, keep: Keep | None = None) -> float:
    """Compute the peak memory of the activations in one forward pass on the example, weights not counted.

    Each activation is freed after its last use, as a good runtime does; in-place operators and views share memory.

    Args:
        graph: The graph of the model.
        keep: axis -> kept indices; None: the whole model.

    Returns:
        MiB.

    Raises:
        UserError: `keep` does not fit the graph.
    """
    return float(of(graph, "memory_mb", graph.widths(keep)))


def weights_mb(graph: Graph, keep: Keep | None = None) -> float:
    """Compute the memory of parameters and buffers, of the types that were traced; tied ones count once.

    Args:
        graph: The graph of the model.
        keep: axis -> kept indices; None: the whole model.

    Returns:
        MiB.

    Raises:
        UserError: `keep` does not fit the graph.
    """
    return float(of(graph, "weights_mb", graph.widths(keep)))


def cache_mb(graph: Graph, keep: Keep | None = None) -> float:
    """Compute the memory of the keys and values of all attentions on the example, which a decoder keeps.

    Heads that several heads of queries share count once. In an encoder-decoder the attentions within the encoder
    count, too, though no cache holds them.

    Args:
        graph: The graph of the model, traced on the batch and length that are meant.
        keep: axis -> kept indices; None: the whole model.

    Returns:
        MiB; 0 without attention.

    Raises:
        UserError: `keep` does not fit the graph.
    """
    return float(of(graph, "cache_mb", graph.widths(keep)))


def coverage(graph: Graph, cost: str = "macs") -> float:
    """Measure how much of a cost can disappear.

    Args:
        graph: The graph of the model.
        cost: One of `CLOSED_FORMS`.

    Returns:
        The share (0 to 1) of the cost that goes when every axis is halved.

    Raises:
        UserError: The cost is unknown.
    """
    return 1 - of(graph, cost, graph.halved()) / (of(graph, cost, {}) or 1)
