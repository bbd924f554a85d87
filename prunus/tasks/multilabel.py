"""Multi-label classification: which labels are true of an image, or of a row of a table, several at once.

    prunus run --task multilabel --labels tags --model zoo:resnet20 --data csv:photos/ --out runs/tags
    prunus run --task multilabel --labels rain,wind --model zoo:mlp --data parquet:days.parquet --out runs/weather

The loss is binary cross-entropy. The metric is mean average precision, the mean over labels, from scikit-learn; F1 is
that of all decisions together, at a probability of one half. Images are augmented as in classification.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.data import read_labels
from prunus.errors import UserError
from prunus.metrics import Metric
from prunus.tasks import _rows
from prunus.tasks._answers import Answer, ranking
from prunus.tasks._contract import Given
from prunus.tasks._rows import Rows, build_given, load_given, targets_of


@dataclass(frozen=True, kw_only=True)
class Options(_rows.Options):
    """The options of multi-label classification.

    Args:
        labels: One column that lists the labels of each row, as a list or a text like cat;dog; or a column of 0 and 1
            for each label.
        image_column: The column of images; None: image, img, file, file_name, filename or path, if there is one.
        features: The columns of numbers that are the input, instead of images; empty: all that are no targets.
    """

    labels: tuple[str, ...] = ("labels",)


def make(given: Given, options: Options) -> "MultiLabel":
    """Make the task of finding all labels that are true."""
    data = load_given(given, partial(read_labels, columns=options.labels), options, augment=True)
    return MultiLabel(build_given(given, data), data)


class MultiLabel(Rows):
    """Inputs to a logit for each label (B, labels).

    Args:
        model: The model; methods leave it unchanged.
        data: The inputs, and 0 or 1 for each label, float32 (N, labels).
        recipe_fields: Fields that replace the advised ones in every recipe of this task.
    """

    metric = Metric(key="mean_average_precision", unit="%", factor=100.0)
    further_metrics = (Metric(key="f1", unit="%", factor=100.0),)

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Return the mean binary cross-entropy in nats."""
        return F.binary_cross_entropy_with_logits(self.numbers(output), target)

    def distil(self, output: Any, teacher_output: Any, temperature: float, target: Any = None) -> Tensor:
        """Return the cross-entropy with the teacher's softened probabilities, times the temperature squared."""
        student, teacher = (self.numbers(each) / temperature for each in (output, teacher_output))
        return F.binary_cross_entropy_with_logits(student, teacher.sigmoid()) * temperature**2

    def judge(self, output: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Return the mean average precision over the labels that are true somewhere, and F1 of all decisions."""
        from sklearn.metrics import average_precision_score  # slow to import, needed here only

        there = np.flatnonzero(target.any(0))  # without a positive, precision has no average
        precisions = [average_precision_score(target[:, each], output[:, each]) for each in there]
        decided = output > 0
        hits, either = float(target[decided].sum()), float(decided.sum() + target.sum())
        return {
            "mean_average_precision": float(np.mean(precisions)) if precisions else float("nan"),
            "f1": 2 * hits / either if either else float("nan"),
        }

    def answer(self, output: Any, most: int) -> Answer:
        """Return the likeliest labels, each with its own probability."""
        return ranking(self.numbers(output)[0].sigmoid(), self.names, most)

    def check(self, model: nn.Module) -> None:
        """Raise UserError if the model does not fit, or no label is true in val or test."""
        super().check(model)
        for name, split in self.data.splits.items():
            if not targets_of(split).any():
                raise UserError(
                    f"{self.data.name}: no label is true in the {len(split)} rows of {name!r}, so nothing can be "
                    "judged; give examples of them."
                )
