"""Timing whole models."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunus.export import programs
from prunus.graph import evaluation_mode
from prunus.latency import clock
from prunus.latency.operator_timing import Runtime
from prunus.latency.profiling import find_runtime
from prunus.progress import silent


@dataclass(frozen=True)
class Latency:
    """The time of one forward pass.

    Args:
        median_ms: The median in milliseconds.
        spread_ms: The difference between the quartiles in milliseconds.
        repeats: The number of measurements.
    """

    median_ms: float
    spread_ms: float
    repeats: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Latency:
        """Summarise at least two measurements in milliseconds."""
        low, median, high = statistics.quantiles(times, n=4)
        return cls(median, high - low, len(times))


def latency_ms(model: nn.Module, example: Any, *, repeats: int = 20, warmup: int = 3) -> Latency:
    """Time a forward pass in torch, in evaluation mode, on the model's device; the mode is restored.

    Machines are noisy: to compare models, time them in turns with `latency.measure`.

    Args:
        model: The model.
        example: Its input: a tensor, a tuple or a dict of arguments.
        repeats: The number of timed passes, at least 2.
        warmup: The number of passes before them.

    Returns:
        The latency in milliseconds.
    """
    call = programs.prepare_torch(model, example)
    with evaluation_mode(model):
        times = [clock.milliseconds(call) for _ in range(warmup + repeats)]
    return Latency.of(times[warmup:])


RACE_S = 2.0  # seconds of measuring


def measure(
    models: Mapping[str, nn.Module],
    example: Any,
    *,
    runtime: str | Runtime = "torch",
    seconds: float = RACE_S,
    progress: Callable = silent,
) -> dict[str, Latency]:
    """Time a forward pass of several models, in turns and in evaluation mode; their modes are restored.

    Args:
        models: The models by name.
        example: Their input: a tensor, a tuple or a dict of arguments.
        runtime: "torch", on the models' device, or "onnxruntime", on the processor.
        seconds: How long to measure, all models together.
        progress: How to show the progress.

    Returns:
        The latency of each model in milliseconds, by name.

    Raises:
        UserError: The runtime is unknown or not installed.
    """
    runtime = find_runtime(runtime)
    with evaluation_mode(*models.values()):
        calls = [runtime.prepare(model, example) for model in models.values()]
        with progress(f"measuring in {runtime.name}", round(seconds)) as step:
            rounds = runtime.race(calls, seconds, step)
    return {name: Latency.of(times) for name, times in zip(models, rounds, strict=True)}
