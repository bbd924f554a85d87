"""Milliseconds of every sub-network of a model, predicted from tables of its operators.

A sum of operators' times is often far off: programs fuse operators, and neighbours share caches. So it is corrected on
whole random sub-networks, by a factor for each kind of operator and a constant, none below zero; held-out sub-networks
say how well it then predicts. To meet a limit, measure what the prediction proposes (meter.py). Times of sub-networks
are shares of the original's in the same rounds.

If the graph's axes include blocks (`Graph.deep`), the time of each operator is multiplied by the widths, 0 or 1, of
the blocks in which it runs, and some of the random sub-networks skip blocks.

Source: ours; tables of operators as in NetAdapt (Yang et al., ECCV 2018, arXiv:1804.03230) and MetaPruning (Liu et al.,
ICCV 2019, arXiv:1903.10258). Letters: A axes, C candidates, N networks, K kinds of operators.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from prunus.errors import UserError
from prunus.graph import Graph, Layout, axes
from prunus.latency import operators as timed_operators
from prunus.latency.operators import Operator
from prunus.latency.table import Table
from prunus.selection import is_deep

PRIOR = 0.02  # pull of all kinds to one factor: a factor off by 1 weighs as much as a time off by 2 %


@dataclass(frozen=True)
class Fit:
    """The quality of a prediction on held-out random sub-networks: R2, and the worst error relative to the measured
    time."""

    r2: float
    worst_error: float
    fitted_on: int
    held_out: int


class Predictor:
    """Predicts milliseconds of every sub-network of one model, in the circumstances in which it was measured.

    original_ms: the whole model's measured time. fit: the quality of the prediction. left_out: operators that do not
    run alone. seconds: how long measuring took. measured: the number of points that were not known before.
    """

    def __init__(self, graph: Graph, data: Mapping[str, Any]):
        """data: plain values from `measure_data`, the same in all processes."""
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
        self._factors, self._constant = fit_factors(kinds[~held], ms[~held])
        # scaled so that the whole model is predicted exactly
        self._scale = self.original_ms / self._raw(kinds[:1]).item()
        self.fit = judge_fit(self._scale * self._raw(kinds[held]), ms[held], int((~held).sum()))

    @property
    def is_deep(self) -> bool:
        """Whether it predicts networks of which blocks are skipped, too."""
        return is_deep(self.graph)

    def price(self, widths: Tensor) -> Tensor:
        """Predict milliseconds (C,) of widths (C, A), in the order of `graph.axes`; blocks may be left out if all stay.

        The result is differentiable, and does not fall when a width rises. Raises UserError for another shape.
        """
        units = sum(axis.kind != "depth" for axis in self.graph.axes.values())
        if widths.dim() != 2 or widths.shape[1] not in (units, len(self.graph.axes)):
            raise UserError(
                f"widths should be (candidates, {len(self.graph.axes)}), are {tuple(widths.shape)}."
            )
        missing = len(self.graph.axes) - widths.shape[1]
        whole = torch.nn.functional.pad(widths.double(), (0, missing), value=1.0)
        return self._scale * self._raw(self._by_kind(whole))

    def _raw(self, kinds: Tensor) -> Tensor:
        return kinds @ self._factors + self._constant

    def _by_kind(self, widths: Tensor) -> Tensor:
        """The sums of the tables' times for each kind: (C, K)."""
        columns, sizes = dict(zip(self.graph.axes, widths.unbind(1), strict=True)), {}
        ones = torch.ones(len(widths), dtype=torch.float64)

        def stays(blocks: tuple[str, ...]) -> Tensor:
            return reduce(torch.mul, (columns[block] for block in blocks), ones)

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
            ms = term.table(stacked).expand(len(each), len(widths))
            if any(operator.blocks for operator in term.operators):
                ms = ms * torch.stack([stays(operator.blocks) for operator in term.operators])
            kinds[term.kind] = kinds[term.kind] + term.times @ ms
        return torch.stack(list(kinds.values()), 1)


@dataclass(frozen=True)
class _Term:
    """The operators that share one table. times: how often each occurs."""

    kind: str
    table: Table
    operators: list[Operator]
    times: Tensor


def _terms(graph: Graph, tables: Sequence[dict]) -> list[_Term]:
    groups = group_operators(graph)
    terms = []
    for entry in tables:
        group = groups[entry["key"], tuple(entry["full"])]
        table = Table({group[0].place(tuple(sizes)): ms for sizes, ms in entry["points"]})
        counted = Counter((operator.variables, operator.blocks) for operator in group)
        first = {(operator.variables, operator.blocks): operator for operator in reversed(group)}
        times = torch.tensor([counted[each] for each in first], dtype=torch.float64)
        terms.append(_Term(group[0].kind, table, list(first.values()), times))
    return terms


def group_operators(graph: Graph) -> dict[tuple[str, timed_operators.Sizes], list[Operator]]:
    """Group the operators of a model by the table that they share: by key and full sizes."""
    groups: dict[tuple[str, timed_operators.Sizes], list[Operator]] = {}
    for operator in timed_operators.operators(graph):
        groups.setdefault((operator.key, operator.full), []).append(operator)
    return groups


def fit_factors(kinds: Tensor, ms: Tensor) -> tuple[Tensor, Tensor]:
    """Fit factors (K,) and a constant, none below zero: sums (N, K) then predict ms (N,) with the least relative error.

    The factors of kinds that hardly vary on their own, or take little time, stay near the best common factor.
    """
    from scipy.optimize import nnls  # slow to import

    together = torch.stack([kinds.sum(1), torch.ones_like(ms)], 1) / ms[:, None]
    common = nnls(together.numpy(), torch.ones_like(ms).numpy())[0][0]
    apart = torch.cat([kinds, torch.ones_like(ms)[:, None]], 1) / ms[:, None]
    prior = PRIOR * torch.nn.functional.pad(torch.eye(kinds.shape[1], dtype=ms.dtype), (0, 1))
    rows, wanted = torch.cat([apart, prior]), torch.cat([torch.ones_like(ms), common * prior.sum(1)])
    found = torch.from_numpy(nnls(rows.numpy(), wanted.numpy())[0])
    return found[:-1], found[-1]


def judge_fit(predicted: Tensor, ms: Tensor, fitted_on: int) -> Fit:
    """Compare predicted milliseconds (N,) with measured ones (N,)."""
    spread = (ms - ms.mean()).square().sum().clamp_min(1e-12)
    r2 = 1 - (predicted - ms).square().sum() / spread
    return Fit(r2.item(), ((predicted - ms).abs() / ms).max().item(), fitted_on, len(ms))


def first_units(graph: Graph, widths: Sequence[int]) -> dict[str, list[int]]:
    """The keep of the first units of every axis; which units stay makes no difference to time. widths: (A,)."""
    return {name: list(range(width)) for name, width in zip(graph.axes, widths, strict=True)}


def shares(rounds: Sequence[Sequence[float]]) -> list[float]:
    """The other calls' shares of the first call's time: the median over rounds of the ratio within a round."""
    return [statistics.median(a / b for a, b in zip(each, rounds[0], strict=True)) for each in rounds[1:]]
