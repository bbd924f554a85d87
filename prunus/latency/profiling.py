"""Measuring the operators and random sub-networks of a model, to predict milliseconds."""

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
from prunus.latency.predictor import Predictor, first_units, group_operators, shares
from prunus.progress import silent
from prunus.selection import FLOOR, blocks

SECONDS = 60.0  # for all measurements of a model
NETWORKS, LEAST_NETWORKS = 21, 12  # random sub-networks; two of every three are fitted on, one is held out
# What is cut of the networks in turn, if there are blocks; five, so that each is fitted on, held out, and on both grids
CUTS = ("both", "widths", "blocks", "both", "widths")
OPERATORS = 0.4  # share of the time for single operators; the rest is for networks
MOST_WEIGHTS = 10**9  # of all random sub-networks together
MOST_SLOWER = 2.0  # highest factor on the expected time: starting takes time, too


def measure_tables(
    model: nn.Module,
    graph: Graph,
    *,
    runtime: str | Runtime = "torch",
    seconds: float = SECONDS,
    cache: str | Path | None = None,
    progress: Callable = silent,
) -> Predictor:
    """Measure a model's operators and random sub-networks, on the traced example and torch's number of threads.

    Args:
        model: The model.
        graph: Its graph.
        runtime: "torch", on the model's device, or "onnxruntime", on the processor.
        seconds: How long it may take. To stay within it, grids get coarser and rounds fewer; large models take longer.
        cache: The folder for times; None: the user's cache folder. Times that it holds are not measured again.
        progress: How to show the progress.

    Returns:
        The predictor of milliseconds at any widths.

    Raises:
        UserError: The runtime is unknown or not installed, or the model is not the traced one.
    """
    return Predictor(graph, measure_data(model, graph, find_runtime(runtime), seconds, cache, progress))


def find_runtime(runtime: str | Runtime) -> Runtime:
    """Find a runtime by its name; UserError if it is unknown or cannot run here."""
    if isinstance(runtime, Runtime):
        return runtime
    if runtime not in RUNTIMES:
        raise unknown("runtime", runtime, RUNTIMES)
    if runtime == "onnxruntime" and (missing := programs.missing_for_onnx()):
        raise UserError(f"onnxruntime cannot run here: {missing}.")
    return RUNTIMES[runtime]()


def measure_data(
    model: nn.Module,
    graph: Graph,
    runtime: Runtime,
    seconds: float,
    cache: str | Path | None,
    progress: Callable,
) -> dict:
    """Measure everything that a Predictor needs, as plain values."""
    whole = surgery.shrink(model, graph, {}, verify="off").eval()
    like, begun = Like.of(whole), time.monotonic()
    timings = Timings(Path(cache or cache_folder()), circumstances(runtime.name, like))
    groups = {key: group[0] for key, group in group_operators(graph).items()}
    if not groups:
        raise UserError("no operator of this model depends on widths, so none of its time can be saved.")
    count = _time_points(timings, runtime, like, [(op, op.full) for op in groups.values()], 0, silent)
    took = time.monotonic() - begun if count else 0.0
    known = {key: op for key, op in groups.items() if timings.get(op, op.full) is not None}
    networks = timings.networks.get(_fingerprint(graph))
    if networks and any(len(each["widths"]) != len(graph.axes) for each in networks["samples"]):
        networks = None
    if networks:
        level = networks["level"]
    else:
        level = _choose_grid(timings, runtime, known.values(), OPERATORS * seconds, took)
    wanted = {key: table.points(op, level) for key, op in known.items()}
    missing = [(op, sizes) for key, op in known.items() for sizes in wanted[key]]
    count += _time_points(timings, runtime, like, missing, OPERATORS * seconds, progress)
    points = {key: [[list(s), timings.get(op, s)] for s in wanted[key]] for key, op in known.items()}
    complete = {key: grid for key, grid in points.items() if all(ms is not None for _, ms in grid)}
    left = seconds - (time.monotonic() - begun)
    if networks is None:
        networks = _measure_networks(runtime, whole, graph, max(left, seconds / 4), progress)
        networks["level"] = level
        timings.networks[_fingerprint(graph)] = networks
    timings.write()
    return {
        "circumstances": timings.given,
        "tables": [
            {"key": key, "full": list(full), "points": grid} for (key, full), grid in complete.items()
        ],
        "left_out": sorted({str(op.op) for key, op in groups.items() if key not in complete}),
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
    """Measure the operators whose times are not known; returns their number."""
    missing = {(op.key, sizes): (op, sizes) for op, sizes in wanted if not timings.has(op, sizes)}
    if missing:
        with progress(f"timing {len(missing)} operators in {runtime.name}", round(seconds)) as step:
            times = runtime.operators(list(missing.values()), like, seconds, step)
        for (op, sizes), ms in zip(missing.values(), times, strict=True):
            timings.put(op, sizes, ms)
    return len(missing)


def _choose_grid(
    timings: Timings, runtime: Runtime, known: Collection[Operator], seconds: float, took: float
) -> str:
    """The finest grid that can be measured within `seconds`. took: seconds that the full sizes took, if measured."""
    slower = min(max(1.0, took / _expected_s(timings, runtime, known, None)), MOST_SLOWER)
    levels = list(table.GRIDS)
    fit = [level for level in levels if slower * _expected_s(timings, runtime, known, level) <= seconds]
    return (fit or levels[-1:])[0]


def _expected_s(timings: Timings, runtime: Runtime, known: Iterable[Operator], level: str | None) -> float:
    """Estimate the seconds for a grid (None: the full sizes alone) from the operators' times at full size."""
    expected = 0.0
    for op in known:
        ms = timings.get(op, op.full)
        assert ms is not None  # those that do not run by themselves are not among `known`
        for sizes in table.points(op, level) if level else [op.full]:
            share = prod(n / most for n, most in zip(sizes, op.full, strict=True))
            expected += runtime.seconds_per_point + runtime.rounds * ms * share / 1e3
    return expected


def _fingerprint(graph: Graph) -> str:
    """The key of a model's networks in the cache; equal for models with the same operators."""
    described = [
        [(name, axis.size) for name, axis in graph.axes.items()],
        sorted(" in ".join([operator.key, *operator.blocks]) for operator in operators.operators(graph)),
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]


def _measure_networks(
    runtime: Runtime, whole: nn.Module, graph: Graph, seconds: float, progress: Callable
) -> dict:
    """Measure random sub-networks as shares of the whole model: {original_ms, samples: [{widths, share}]}."""
    begun, calls, widths = time.monotonic(), [runtime.prepare(whole, graph.example)], []
    weights = 0
    for each in random_widths(graph, NETWORKS):
        if len(widths) >= LEAST_NETWORKS and (
            time.monotonic() - begun > seconds / 2 or weights > MOST_WEIGHTS
        ):
            break
        small = surgery.shrink(whole, graph, first_units(graph, each), verify="off").eval()
        weights += sum(map(Tensor.numel, small.parameters()))
        calls.append(runtime.prepare(small, graph.example))
        widths.append(each)
    left = max(seconds - (time.monotonic() - begun), 1.0)
    with progress(f"timing {len(widths)} random sub-networks in {runtime.name}", round(left)) as step:
        rounds = runtime.race(calls, left, step)
    samples = [{"widths": each, "share": share} for each, share in zip(widths, shares(rounds), strict=True)]
    return {"original_ms": statistics.median(rounds[0]), "samples": samples}


def random_widths(graph: Graph, number: int) -> list[list[int]]:
    """Sample widths (A,) of sub-networks from narrow to whole, in an order without a trend, axes differing at random.

    Every other one has widths that are multiples as selection prefers them, the others have finer ones. If the axes
    include blocks, some networks are narrow, some skip blocks, and some do both (see `CUTS`); protected blocks stay.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([axis.size for axis in graph.axes.values()])
    skippable = torch.tensor(
        [
            place
            for place, (name, axis) in enumerate(graph.axes.items())
            if axis.kind == "depth" and not graph.blocks[name].protected
        ]
    )
    steps = [blocks(graph, grid, halve=True) for grid in (16, 4)]
    level = FLOOR + (1 - FLOOR) * (torch.randperm(number, generator=generator) + 0.5) / number
    found = []
    for i, each in enumerate(level):
        step, cut = steps[i % 2], CUTS[i % len(CUTS)] if len(skippable) else "widths"
        each = each.sqrt() if cut == "both" else each
        share = (each * (0.3 + 1.4 * torch.rand(len(sizes), generator=generator))).clamp(FLOOR, 1)
        widths = ((share * sizes / step).round() * step).long()
        widths = torch.minimum(torch.maximum(widths, torch.minimum(step, sizes)), sizes)
        if cut != "widths":
            widths = sizes.clone() if cut == "blocks" else widths
            order = skippable[torch.randperm(len(skippable), generator=generator)]
            widths[order[: max(1, round(float(1 - each) * len(order)))]] = 0
        found.append(widths.tolist())
    return found
