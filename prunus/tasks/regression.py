"""Regression: numbers of rows of a table, or of images, judged in their own unit.

    prunus run --task regression --target price --unit EUR --model zoo:mlp --data csv:houses.csv --out runs/houses
    prunus run --task regression --target age --unit years --model zoo:resnet20 --data csv:faces/ --out runs/age

The model is trained on targets that are standardised by the rows of train, and so are its answers; the metric is of the
targets themselves. result.json holds the means and deviations (conventions). Images are not augmented, because nothing
says whether a mirror or a crop leaves the number as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.data import Data, read_numbers
from prunus.errors import UserError
from prunus.metrics import Metric
from prunus.tasks import _rows
from prunus.tasks._answers import Answer, plain
from prunus.tasks._contract import Given
from prunus.tasks._rows import Rows, build_given, load_given, targets_of

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,  # squared up to one standard deviation, then absolute
}
LEAST_ROWS = 2  # for R2

LossName = Literal["mse", "l1", "huber"]
ErrorName = Literal["rmse", "mae"]


@dataclass(frozen=True, kw_only=True)
class Options(_rows.Options):
    """The options of regression.

    Args:
        target: The columns of the numbers to predict.
        image_column: The column of images; None: image, img, file, file_name, filename or path, if there is one.
        features: The columns of numbers that are the input, instead of images; empty: all that are no targets.
        loss: The loss of the standardised targets: squared, absolute, or Huber's, absolute beyond one deviation.
        error: The metric: the root mean squared error, or the mean absolute error.
        unit: The unit of the targets, for the log and the report.
    """

    target: tuple[str, ...] = ("target",)
    loss: LossName = "mse"
    error: ErrorName = "rmse"
    unit: str = ""


def make(given: Given, options: Options) -> "Regression":
    """Make the task of predicting numbers."""
    data = load_given(given, partial(read_numbers, columns=options.target), options, augment=False)
    return Regression(
        build_given(given, data), data, loss=options.loss, error=options.error, unit=options.unit
    )


class Regression(Rows):
    """Inputs to standardised numbers (B, targets).

    Args:
        model: The model; methods leave it unchanged.
        data: The inputs, and the numbers float32 (N, targets) in their own unit.
        recipe_fields: Fields that replace the advised ones in every recipe of this task.
        loss: "mse", "l1" or "huber", of the standardised targets.
        error: The metric, "rmse" or "mae", a mean over targets.
        unit: The unit of the targets.

    Raises:
        UserError: A target is the same in all of train, or is not finite.
    """

    further_metrics = (Metric(key="r2", digits=4),)

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        recipe_fields: dict[str, Any] | None = None,
        *,
        loss: LossName = "mse",
        error: ErrorName = "rmse",
        unit: str = "",
    ):
        super().__init__(model, data, recipe_fields)
        self.metric = Metric(key=error, unit=unit, higher_is_better=False, digits=4)
        self.plain_loss, self.unit = LOSSES[loss], unit
        self.mean, self.std = scale_of(data, self.names)

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Return the loss of the answers and the standardised targets."""
        return self.plain_loss(self.numbers(output), (target - self.mean.to(target)) / self.std.to(target))

    def judge(self, output: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Return the error in the targets' unit, and R2, the mean over targets; NaN for a single row."""
        from sklearn import metrics  # slow to import, needed here only

        answer = output * self.std.double().numpy() + self.mean.double().numpy()
        errors = {"rmse": metrics.root_mean_squared_error, "mae": metrics.mean_absolute_error}
        r2 = metrics.r2_score(target, answer) if len(target) >= LEAST_ROWS else float("nan")
        return {self.metric.key: float(errors[self.metric.key](target, answer)), "r2": float(r2)}

    def conventions(self) -> dict[str, Any]:
        """Return names, unit and scales: a target is the model's answer times its deviation, plus its mean."""
        scale = {"target_mean": self.mean.tolist(), "target_std": self.std.tolist()}
        return super().conventions() | {"unit": self.unit, **scale}

    def restore(self, conventions: dict[str, Any]) -> None:
        """Take over the scales of features and targets."""
        super().restore(conventions)
        self.mean, self.std = (torch.tensor(conventions[name]) for name in ("target_mean", "target_std"))
        if not self.mean.shape == self.std.shape == (len(self.names),):
            raise ValueError("a mean and a deviation for each target")

    def answer(self, output: Any, most: int) -> Answer:
        """Return the numbers by the names of their targets, in their own unit."""
        numbers = (self.numbers(output)[0].cpu() * self.std + self.mean).tolist()
        return plain(dict(zip(self.names, numbers, strict=True)))


def scale_of(data: Data, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Compute the mean and standard deviation of each target of train; UserError unless they vary and are finite."""
    if not len(data.train):  # of a finished run, which says them itself
        return torch.zeros(len(names)), torch.ones(len(names))
    targets = targets_of(data.train).double()
    mean, std = targets.mean(0), targets.std(0, correction=0)
    for name, center, spread in zip(names, mean.tolist(), std.tolist(), strict=True):
        if not np.isfinite(spread):
            raise UserError(
                f"{data.name}: {name} of train holds numbers that are not finite; remove these rows."
            )
        if not spread > 1e-9 * abs(center):
            raise UserError(
                f"{data.name}: {name} is {center:g} in all {len(targets)} rows of train, so there is nothing to learn; "
                "name another target, or give rows in which it varies."
            )
    return mean.float(), std.float()
