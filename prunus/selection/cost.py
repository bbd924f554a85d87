"""What a network costs, as closed forms of its widths, and its latency as measured.

Every operator's multiply-accumulates are a product of layout sizes, so the cost of any keep is a
polynomial: no model is built, thousands of candidates are one query, and gradients flow to the widths.
`macs` counts what torch's own operator-level counter counts (convolutions and matrix products,
attention included), one multiply-accumulate where it says two flops.

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
        else:
            rows = [[(storage.bytes_per_element, storage.dims)] for storage in graph.storages]
        cached[name] = _Polynomial(rows)
    return cached[name]


CLOSED_FORMS = ("macs", "params", "memory_mb")


def of(graph: Graph, name: str, widths: Widths) -> Any:
    """The cost `name` (macs, params or memory_mb) at given widths; differentiable in them.

    widths: tensor (B, A) gives a tensor (B,); a dict {axis: number} gives a number, axes left out being whole.
    Raises UserError for an unknown cost or a tensor of another shape.
    """
    if name not in CLOSED_FORMS:
        raise unknown("closed-form cost", name, CLOSED_FORMS)
    if isinstance(widths, torch.Tensor):
        if widths.dim() != 2 or widths.shape[1] != len(graph.axes):
            raise UserError(f"widths should be (candidates, {len(graph.axes)}), are {tuple(widths.shape)}.")
        columns = widths.to(torch.float64).unbind(1)
        if len(widths) == 1 and not widths.requires_grad:  # numbers are ten times as fast as tensors of one
            columns = widths[0].tolist()
        value = _evaluate(graph, name, dict(zip(graph.axes, columns, strict=True)))
        return torch.as_tensor(value, dtype=torch.float64, device=widths.device).expand(widths.shape[0])
    return _evaluate(graph, name, widths)


def _evaluate(graph: Graph, name: str, widths: Mapping[str, Any]) -> Any:
    values = _polynomial(graph, name)(widths)
    if name != "memory_mb":
        return values[0]
    return _peak(graph, values) / 2**20


def _peak(graph: Graph, bytes_each: list[Any]) -> Any:
    """The most bytes alive at once, each tensor living from its operator to the last one that reads it."""
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
    """Multiply-accumulates of one forward pass on the example, of the whole model or of a keep."""
    return int(of(graph, "macs", graph.widths(keep)))


def params(graph: Graph, keep: Keep | None = None) -> int:
    """Number of parameters, of the whole model or of a keep; tied ones count once."""
    return int(of(graph, "params", graph.widths(keep)))


def memory_mb(graph: Graph, keep: Keep | None = None) -> float:
    """Peak activation memory of one forward pass on the example, in MiB, weights not counted.

    Each activation is freed after its last use, as a good runtime does; in-place operators and views share.
    """
    return float(of(graph, "memory_mb", graph.widths(keep)))
