"""Milliseconds of every sub-network of a model, predicted from tables of its operators.

A sum of operators' times is often wrong by a lot: programs join operators, and neighbours share caches. So it is
corrected on whole random sub-networks, a factor for each kind of operator and a constant, none below zero, and how well
it then predicts other ones is said with it. Whoever has a limit to keep measures what the prediction proposes
(latency.py). Times of sub-networks are kept as shares of the original's in the same rounds.

Source: ours; tables of operators as in NetAdapt (Yang et al., ECCV 2018, arXiv:1804.03230) and MetaPruning (Liu et al.,
ICCV 2019, arXiv:1903.10258). Letters: A axes, C candidates, N networks, K kinds of operators.
"""

import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus import optables, surgery
from prunus.errors import UserError, unknown
from prunus.export import programs
from prunus.graph import Graph, Layout, axes
from prunus.optables import Operator, Table
from prunus.optimes import RUNTIMES, Like, Runtime
from prunus.progress import silent
from prunus.selection import FLOOR, blocks
from prunus.timings import Timings, cache_folder, circumstances

SECONDS = 60.0  # for a table
NETWORKS, LEAST_NETWORKS = 21, 12  # random ones; of three, two are fitted on and one is held out
OPERATORS = 0.4  # of the time, for single operators; the rest is for networks
MOST_WEIGHTS = 10**9  # of all of them together
MOST_SLOWER = 2.0  # than expected: beginning takes time, too
PRIOR = 0.02  # how strongly kinds of operators are drawn to one factor: a factor off by 1 weighs like a time off by 2 %


# -------------------------------------------------------------------------------------- prediction
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
            kind: torch.zeros(len(widths), dtype=torch.float64) for kind in optables.KINDS
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


def grouped(graph: Graph) -> dict[tuple[str, optables.Sizes], list[Operator]]:
    """The operators of a model by the table they share: what they are, and the sizes it reaches to."""
    groups: dict[tuple[str, optables.Sizes], list[Operator]] = {}
    for operator in optables.operators(graph):
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


# --------------------------------------------------------------------------------------- measuring
def tables(
    model: nn.Module,
    graph: Graph,
    *,
    runtime: str | Runtime = "torch",
    seconds: float = SECONDS,
    cache: str | Path | None = None,
    progress: Callable = silent,
) -> Predictor:
    """Measure what `model` is made of, on the example it was traced with, where it is, on torch's number of threads.

    runtime: torch or onnxruntime. seconds: how long that may take; grids get coarser and rounds fewer to hold it, but
    the least is more for large models. cache: the folder that keeps times, `timings.cache_folder()` if None; what it
    knows is not measured again. Raises UserError for a runtime that is not there, or another model than was traced.
    """
    return Predictor(graph, measured_data(model, graph, program(runtime), seconds, cache, progress))


def program(runtime: str | Runtime) -> Runtime:
    """The runtime of that name; UserError if there is none, or it cannot run here."""
    if isinstance(runtime, Runtime):
        return runtime
    if runtime not in RUNTIMES:
        raise unknown("runtime", runtime, RUNTIMES)
    if runtime == "onnxruntime" and (missing := programs.missing_for_onnx()):
        raise UserError(f"onnxruntime cannot run here: {missing}.")
    return RUNTIMES[runtime]()


def measured_data(
    model: nn.Module,
    graph: Graph,
    runtime: Runtime,
    seconds: float,
    cache: str | Path | None,
    progress: Callable,
) -> dict:
    """All that a Predictor is made from, as plain values."""
    whole = surgery.shrink(model, graph, {}, verify="off").eval()
    like, begun = Like.of(whole), time.monotonic()
    timings = Timings(Path(cache or cache_folder()), circumstances(runtime.name, like))
    groups = {key: group[0] for key, group in grouped(graph).items()}
    if not groups:
        raise UserError("no operator of this model depends on widths, so none of its time can be saved.")
    count = _time_points(timings, runtime, like, [(op, op.full) for op in groups.values()], 0, silent)
    took = time.monotonic() - begun if count else 0.0
    known = {key: op for key, op in groups.items() if timings.get(op, op.full) is not None}
    networks = timings.networks.get(_code(graph))
    if networks and any(len(each["widths"]) != len(graph.axes) for each in networks["samples"]):
        networks = None
    if networks:
        level = networks["level"]
    else:
        level = _affordable(timings, runtime, known.values(), OPERATORS * seconds, took)
    wanted = {key: optables.points(op, level) for key, op in known.items()}
    missing = [(op, sizes) for key, op in known.items() for sizes in wanted[key]]
    count += _time_points(timings, runtime, like, missing, OPERATORS * seconds, progress)
    points = {key: [[list(s), timings.get(op, s)] for s in wanted[key]] for key, op in known.items()}
    whole_tables = {key: of for key, of in points.items() if all(ms is not None for _, ms in of)}
    left = seconds - (time.monotonic() - begun)
    if networks is None:
        networks = _random_networks(runtime, whole, graph, max(left, seconds / 4), progress)
        networks["level"] = level
        timings.networks[_code(graph)] = networks
    timings.write()
    return {
        "circumstances": timings.given,
        "tables": [
            {"key": key, "full": list(full), "points": of} for (key, full), of in whole_tables.items()
        ],
        "left_out": sorted({str(op.op) for key, op in groups.items() if key not in whole_tables}),
        "measured": count,
        "seconds": time.monotonic() - begun,
        **networks,
    }


def _time_points(
    timings: Timings,
    runtime: Runtime,
    like: Like,
    wanted: Sequence[tuple[Operator, optables.Sizes]],
    seconds: float,
    progress: Callable,
) -> int:
    """Measure what is not known yet; how many that were."""
    missing = {(op.key, sizes): (op, sizes) for op, sizes in wanted if not timings.has(op, sizes)}
    if missing:
        with progress(f"timing {len(missing)} operators in {runtime.name}", round(seconds)) as step:
            times = runtime.operators(list(missing.values()), like, seconds, step)
        for (op, sizes), ms in zip(missing.values(), times, strict=True):
            timings.put(op, sizes, ms)
    return len(missing)


def _affordable(
    timings: Timings, runtime: Runtime, known: Collection[Operator], seconds: float, took: float
) -> str:
    """The finest grid that can be measured in time. took: seconds that the whole model's sizes did, if measured."""
    slower = min(max(1.0, took / _expected_s(timings, runtime, known, None)), MOST_SLOWER)
    levels = list(optables.GRIDS)
    fit = [level for level in levels if slower * _expected_s(timings, runtime, known, level) <= seconds]
    return (fit or levels[-1:])[0]


def _expected_s(timings: Timings, runtime: Runtime, known: Iterable[Operator], level: str | None) -> float:
    """How long a grid (None: the whole model's sizes alone) takes, by what operators take in the whole model."""
    expected = 0.0
    for op in known:
        ms = timings.get(op, op.full)
        for sizes in optables.points(op, level) if level else [op.full]:
            share = prod(n / most for n, most in zip(sizes, op.full, strict=True))
            expected += runtime.seconds_a_point + runtime.rounds * ms * share / 1e3
    return expected


def _code(graph: Graph) -> str:
    """Under which a model's networks are known: the same for models whose operators are the same."""
    described = [
        [(name, axis.size) for name, axis in graph.axes.items()],
        sorted(operator.key for operator in optables.operators(graph)),
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]


def _random_networks(
    runtime: Runtime, whole: nn.Module, graph: Graph, seconds: float, progress: Callable
) -> dict:
    """Times of random sub-networks as shares of the whole model's: {original_ms, samples: [{widths, share}]}."""
    begun, calls, widths = time.monotonic(), [runtime.ready(whole, graph.example)], []
    weights = 0
    for each in random_widths(graph, NETWORKS):
        if len(widths) >= LEAST_NETWORKS and (
            time.monotonic() - begun > seconds / 2 or weights > MOST_WEIGHTS
        ):
            break
        small = surgery.shrink(whole, graph, first_units(graph, each), verify="off").eval()
        weights += sum(map(Tensor.numel, small.parameters()))
        calls.append(runtime.ready(small, graph.example))
        widths.append(each)
    left = max(seconds - (time.monotonic() - begun), 1.0)
    with progress(f"timing {len(widths)} random sub-networks in {runtime.name}", round(left)) as step:
        rounds = runtime.race(calls, left, step)
    samples = [{"widths": each, "share": share} for each, share in zip(widths, shares(rounds), strict=True)]
    return {"original_ms": statistics.median(rounds[0]), "samples": samples}


def random_widths(graph: Graph, number: int) -> list[list[int]]:
    """Widths (A,) of sub-networks from narrow to whole, in an order without a trend, axes differing at random.

    Every other one in the multiples that selection likes best, the others in finer ones.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([axis.size for axis in graph.axes.values()])
    steps = [blocks(graph, grid, halve=True) for grid in (16, 4)]
    level = FLOOR + (1 - FLOOR) * (torch.randperm(number, generator=generator) + 0.5) / number
    found = []
    for i, each in enumerate(level):
        step = steps[i % 2]
        share = (each * (0.3 + 1.4 * torch.rand(len(sizes), generator=generator))).clamp(FLOOR, 1)
        widths = ((share * sizes / step).round() * step).long()
        found.append(torch.minimum(torch.maximum(widths, torch.minimum(step, sizes)), sizes).tolist())
    return found


def first_units(graph: Graph, widths: Sequence[int]) -> dict[str, list[int]]:
    """The keep of so many units an axis: which ones makes no difference to time."""
    return {name: list(range(width)) for name, width in zip(graph.axes, widths, strict=True)}


def shares(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Of the first's time, what each of the others takes: the median over rounds of the ratio within a round."""
    return [statistics.median(a / b for a, b in zip(each, rounds[0], strict=True)) for each in rounds[1:]]
