"""Milliseconds that a whole model takes, measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunus.export import programs
from prunus.latency import clock
from prunus.latency.operator_timing import Runtime
from prunus.latency.profiling import program
from prunus.progress import silent


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass: the median, and the spread between the quartiles."""

    median_ms: float
    spread_ms: float
    repeats: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Latency:
        """Of at least two measurements."""
        low, median, high = statistics.quantiles(times, n=4)
        return cls(median, high - low, len(times))


def latency_ms(model: nn.Module, example: Any, *, repeats: int = 20, warmup: int = 3) -> Latency:
    """Measure one forward pass of `model` on `example`, in evaluation mode, on the device it is on.

    The mode is restored. Compare two models in one run, interleaved: machines are noisy.
    """
    call = programs.prepare_torch(model, example)
    with clock.evaluating(model):
        times = [clock.milliseconds(call) for _ in range(warmup + repeats)]
    return Latency.of(times[warmup:])


RACE_S = 2.0  # for each proposal


def measure(
    models: Mapping[str, nn.Module],
    example: Any,
    *,
    runtime: str | Runtime = "torch",
    seconds: float = RACE_S,
    progress: Callable = silent,
) -> dict[str, Latency]:
    """Milliseconds of one forward pass of each model on `example`, by name, measured in turns in evaluation mode.

    runtime: torch, where the models are, or onnxruntime, on the processor. Raises UserError as `tables` does.
    """
    runtime = program(runtime)
    with clock.evaluating(*models.values()):
        calls = [runtime.ready(model, example) for model in models.values()]
        with progress(f"measuring in {runtime.name}", round(seconds)) as step:
            rounds = runtime.race(calls, seconds, step)
    return {name: Latency.of(times) for name, times in zip(models, rounds, strict=True)}
