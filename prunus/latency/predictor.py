"""Milliseconds of every sub-network of a model, predicted from tables of its operators.

A sum of operators' times is often wrong by a lot: programs join operators, and neighbours share caches. So it is
corrected on whole random sub-networks, a factor for each kind of operator and a constant, none below zero, and how well
it then predicts other ones is said with it. Whoever has a limit to keep measures what the prediction proposes
(latency.py). Times of sub-networks are kept as shares of the original's in the same rounds.

Source: ours; tables of operators as in NetAdapt (Yang et al., ECCV 2018, arXiv:1804.03230) and MetaPruning (Liu et al.,
ICCV 2019, arXiv:1903.10258). Letters: A axes, C candidates, N networks, K kinds of operators.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunus.errors import UserError
from prunus.graph import Graph, Layout, axes
from prunus.latency import operators as timed_operators
from prunus.latency.operators import Operator
from prunus.latency.table import Table

PRIOR = 0.02  # how strongly kinds of operators are drawn to one factor: a factor off by 1 weighs like a time off by 2 %


@dataclass(frozen=True)
class Fit:
    """How well held-out random sub-networks are predicted: R2, and the worst error relative to the time measured."""

    r2: float
    worst_error: float
    fitted_on: int
    held_out: int


class Predictor:
    """Milliseconds of every sub-network of one model, under the circumstances it was measured in.

    original_ms: the whole model's, measured. fit: how far to trust it. left_out: operators that do not run by
    themselves. seconds, measured: what the table took, and how many points of it were not known before.
    """

    def __init__(self, graph: Graph, data: Mapping[str, Any]):
        """data: plain values, as `measured_data` gives them; the same on all processes."""
        self.graph = graph
        self.original_ms: float = data["original_ms"]
        self.circumstances: dict = data["circumstances"]
        self.left_out: list[str] = data["left_out"]
        self.seconds, self.measured = data["seconds"], data["measured"]
        self._terms = _terms(graph, data["tables"])
        widths = torch.tensor([each["widths"] for each in data["samples"]], dtype=torch.float64)
        whole = torch.tensor([[axis.size for axis in graph.axes.values()]], dtype=torch.float64)
        kinds = self._by_kind(torch.cat([whole, widths]))
        shares = [1.0, *(each["share"] for each in data["samples"])]
        ms = self.original_ms * torch.tensor(shares, dtype=torch.float64)
        held = torch.arange(len(ms)) % 3 == 2
        self._factors, self._constant = corrected(kinds[~held], ms[~held])
        self._scale = (
            self.original_ms / self._raw(kinds[:1]).item()
        )  # so that shares are of what was measured
        self.fit = judged(self._scale * self._raw(kinds[held]), ms[held], int((~held).sum()))

    def price(self, widths: Tensor) -> Tensor:
        """Milliseconds (C,) of widths (C, A), in the order of `graph.axes`; differentiable. Never falls when one rises.

        Raises UserError for a tensor of another shape.
        """
        if widths.dim() != 2 or widths.shape[1] != len(self.graph.axes):
            raise UserError(
                f"widths should be (candidates, {len(self.graph.axes)}), are {tuple(widths.shape)}."
            )
        return self._scale * self._raw(self._by_kind(widths.double()))

    def _raw(self, kinds: Tensor) -> Tensor:
        return kinds @ self._factors + self._constant

    def _by_kind(self, widths: Tensor) -> Tensor:
        """The tables' sums (C, K)."""
        columns, sizes = dict(zip(self.graph.axes, widths.unbind(1), strict=True)), {}

        def size(layout: Layout) -> Any:
            if layout not in sizes:
                sizes[layout] = axes.size(layout, columns)
            return sizes[layout]

        kinds: dict[str, Any] = {
            kind: torch.zeros(len(widths), dtype=torch.float64) for kind in timed_operators.KINDS
        }
        for term in self._terms:
            each = [operator.coordinates(size) for operator in term.operators]
            stacked = [torch.stack([c.expand(len(widths)) for c in line]) for line in zip(*each, strict=True)]
            kinds[term.kind] = kinds[term.kind] + term.times @ term.table(stacked)
        return torch.stack(list(kinds.values()), 1)


@dataclass(frozen=True)
class _Term:
    """The operators that look up one table, each with how often it occurs."""

    kind: str
    table: Table
    operators: list[Operator]
    times: Tensor


def _terms(graph: Graph, tables: Sequence[dict]) -> list[_Term]:
    groups = grouped(graph)
    terms = []
    for of in tables:
        group = groups[of["key"], tuple(of["full"])]
        table = Table({group[0].place(tuple(sizes)): ms for sizes, ms in of["points"]})
        counted = Counter(operator.variables for operator in group)
        first = {operator.variables: operator for operator in reversed(group)}
        times = torch.tensor([counted[variables] for variables in first], dtype=torch.float64)
        terms.append(_Term(group[0].kind, table, list(first.values()), times))
    return terms


def grouped(graph: Graph) -> dict[tuple[str, timed_operators.Sizes], list[Operator]]:
    """The operators of a model by the table they share: what they are, and the sizes it reaches to."""
    groups: dict[tuple[str, timed_operators.Sizes], list[Operator]] = {}
    for operator in timed_operators.operators(graph):
        groups.setdefault((operator.key, operator.full), []).append(operator)
    return groups


def corrected(kinds: Tensor, ms: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (K,) and a constant, none below zero, with which the sums (N, K) are nearest to ms (N,), relatively.

    Kinds that hardly vary by themselves, or are a small part, take nearly the factor that is best for all together.
    """
    from scipy.optimize import nnls  # takes long to import

    together = torch.stack([kinds.sum(1), torch.ones_like(ms)], 1) / ms[:, None]
    common = nnls(together.numpy(), torch.ones_like(ms).numpy())[0][0]
    apart = torch.cat([kinds, torch.ones_like(ms)[:, None]], 1) / ms[:, None]
    drawn = PRIOR * torch.nn.functional.pad(torch.eye(kinds.shape[1], dtype=ms.dtype), (0, 1))
    rows, wanted = torch.cat([apart, drawn]), torch.cat([torch.ones_like(ms), common * drawn.sum(1)])
    found = torch.from_numpy(nnls(rows.numpy(), wanted.numpy())[0])
    return found[:-1], found[-1]


def judged(predicted: Tensor, ms: Tensor, fitted_on: int) -> Fit:
    """The fit of milliseconds (N,) to those measured."""
    spread = (ms - ms.mean()).square().sum().clamp_min(1e-12)
    r2 = 1 - (predicted - ms).square().sum() / spread
    return Fit(r2.item(), ((predicted - ms).abs() / ms).max().item(), fitted_on, len(ms))


def first_units(graph: Graph, widths: Sequence[int]) -> dict[str, list[int]]:
    """The keep of so many units an axis: which ones makes no difference to time."""
    return {name: list(range(width)) for name, width in zip(graph.axes, widths, strict=True)}


def shares(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Of the first's time, what each of the others takes: the median over rounds of the ratio within a round."""
    return [statistics.median(a / b for a, b in zip(each, rounds[0], strict=True)) for each in rounds[1:]]
