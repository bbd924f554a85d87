"""The metric of a user's own task: a function of a batch that is averaged, or a torchmetrics.Metric."""

import copy
import math
import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from prunus.errors import UserError
from prunus.inputs import in_words
from prunus.metrics import Metric

# Names that stand beside the metric in the log and in result.json.
TAKEN = (
    *("epoch", "loss", "lr", "seconds", "macs", "params", "memory_mb", "latency_ms", "latency_spread_ms"),
    *("weights_mb", "cache_mb", "file_mb", "sparsity", "packed_mb", "compressed_mb"),
)


class Measure(Protocol):
    """The metric over a split, batch by batch."""

    def add(self, output: Any, target: Any, count: int) -> None:
        """Add a batch of `count` examples."""

    def value(self) -> float:
        """Return the metric over all batches."""
        ...


class Average:
    """The mean over examples of a function (output, target) -> number that is computed batch by batch."""

    def __init__(self, function: Callable[[Any, Any], Any]):
        self.function, self.sum, self.count = function, 0.0, 0

    def add(self, output: Any, target: Any, count: int) -> None:
        """Add a batch of `count` examples."""
        self.sum += to_number(self.function(output, target)) * count
        self.count += count

    def value(self) -> float:
        """Return the mean."""
        return self.sum / self.count


class Torchmetric:
    """A copy of a torchmetrics.Metric, which every process computes over all batches by itself."""

    def __init__(self, metric: Any, prediction: Callable[[Any], Any], device: torch.device):
        self.metric, self.prediction = copy.deepcopy(metric).to(device), prediction
        self.metric.sync_on_compute = False
        self.metric.reset()

    def add(self, output: Any, target: Any, count: int) -> None:
        """Add a batch."""
        self.metric.update(self.prediction(output), target)

    def value(self) -> float:
        """Return the metric over all batches."""
        return to_number(self.metric.compute())


def is_torchmetric(metric: Any) -> bool:
    """Return whether a metric is a torchmetrics.Metric; the package is not imported for that."""
    package = sys.modules.get("torchmetrics")
    return package is not None and isinstance(metric, package.Metric)


def to_number(value: Any) -> float:
    """Return a metric's value as a float; UserError if it is not one number."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the metric should be one number, but is {in_words(value)}. Reduce it, or give another: for a function, "
            "metric=fn(output, target) -> number."
        ) from error


def is_higher_better(metric: Any) -> bool | None:
    """Return whether a higher value of a user's metric is better: True for a function; None if it does not say."""
    return metric.higher_is_better if is_torchmetric(metric) else metric is not None


def check_number(name: str, value: float, at: str) -> None:
    """Raise UserError if a metric's value over a batch, such as "the first batch of val", is NaN."""
    if math.isnan(value):
        raise UserError(
            f"{name} is NaN on {at}, not a number. Check the metric on a batch of its size, and the outputs."
        )


def describe_metric(
    metric: Any, name: str | None, unit: str, higher_is_better: bool | None, digits: int | None
) -> Metric:
    """Describe a user's metric for log and report.

    Args:
        metric: A function, a torchmetrics.Metric, or None for the loss.
        name: Its name; None: the name of the function or class.
        unit: Its unit; empty for a plain number.
        higher_is_better: None: what the torchmetrics.Metric says; True for a function, False for the loss.
        digits: How many digits to show; None: 2 with a unit, 4 without one.

    Returns:
        The description.

    Raises:
        UserError: The metric is neither, its name is taken, or nothing says whether higher is better.
    """
    if metric is not None and not callable(metric):
        raise UserError(
            f"metric: expected a function (output, target) or a torchmetrics.Metric, got {metric!r}."
        )
    if isinstance(metric, dict) or type(metric).__name__ == "MetricCollection":
        raise UserError("metric: a model is judged by one metric; give one of the collection.")
    usual = "mean_loss" if metric is None else str(getattr(metric, "__name__", type(metric).__name__)).lower()
    name = name or usual.replace("<lambda>", "metric")
    if name in TAKEN:
        raise UserError(f"metric_name={name!r} is the name of something else in the results; choose another.")
    if higher_is_better is None:
        higher_is_better = is_higher_better(metric)
    if higher_is_better is None:
        raise UserError(f"{name} does not say whether higher is better; give higher_is_better=True or False.")
    digits = (2 if unit else 4) if digits is None else digits
    return Metric(key=name, unit=unit, higher_is_better=higher_is_better, digits=digits)
