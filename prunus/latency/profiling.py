"""Measuring the operators and random sub-networks of a model for a prediction of milliseconds."""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus import surgery
from prunus.errors import UserError, unknown
from prunus.export import programs
from prunus.graph import Graph
from prunus.latency import operators, table
from prunus.latency.cache import Timings, cache_folder, circumstances
from prunus.latency.operator_timing import RUNTIMES, Like, Runtime
from prunus.latency.operators import Operator
from prunus.latency.predictor import Predictor, first_units, grouped, shares
from prunus.progress import silent
from prunus.selection import FLOOR, blocks

SECONDS = 60.0  # for a table
NETWORKS, LEAST_NETWORKS = 21, 12  # random ones; of three, two are fitted on and one is held out
OPERATORS = 0.4  # of the time, for single operators; the rest is for networks
MOST_WEIGHTS = 10**9  # of all of them together
MOST_SLOWER = 2.0  # than expected: beginning takes time, too


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
    wanted = {key: table.points(op, level) for key, op in known.items()}
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
    wanted: Sequence[tuple[Operator, operators.Sizes]],
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
    levels = list(table.GRIDS)
    fit = [level for level in levels if slower * _expected_s(timings, runtime, known, level) <= seconds]
    return (fit or levels[-1:])[0]


def _expected_s(timings: Timings, runtime: Runtime, known: Iterable[Operator], level: str | None) -> float:
    """How long a grid (None: the whole model's sizes alone) takes, by what operators take in the whole model."""
    expected = 0.0
    for op in known:
        ms = timings.get(op, op.full)
        assert ms is not None  # those that do not run by themselves are not among `known`
        for sizes in table.points(op, level) if level else [op.full]:
            share = prod(n / most for n, most in zip(sizes, op.full, strict=True))
            expected += runtime.seconds_a_point + runtime.rounds * ms * share / 1e3
    return expected


def _code(graph: Graph) -> str:
    """Under which a model's networks are known: the same for models whose operators are the same."""
    described = [
        [(name, axis.size) for name, axis in graph.axes.items()],
        sorted(operator.key for operator in operators.operators(graph)),
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
