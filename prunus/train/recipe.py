"""A recipe: the settings of a training."""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

import torch
from torch.optim import Optimizer

from prunus.options import Checked, Count, Range, Rate, Share

NotNegative = Annotated[float, Range(0)]


def choose_precision() -> Literal["bf16", "no"]:
    """Choose the faster precision on this machine: "bf16" if the hardware computes in it, otherwise "no".

    A processor without bf16 instructions emulates them: on one with AVX2 alone a step under autocast takes 8 to 12
    times as long as in full precision (benchmarks/precision.py).
    """
    if torch.accelerator.is_available():
        return "bf16"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no"


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """The settings of a training.

    Args:
        epochs: How often every example is shown; a fraction counts exactly, to the nearest step of the optimiser.
        batch_size: The number of examples per step, of all processes together.
        optimizer: "sgd", with Nesterov's momentum, or "adamw".
        lr: The highest learning rate, reached after the warm-up.
        momentum: The momentum of sgd; adamw has none.
        weight_decay: The decay of weights; biases and the scales of norms have none.
        warmup_epochs: Epochs in which the learning rate rises from about 0.
        schedule: How the learning rate goes on after the warm-up: "cosine" and "linear" fall to 0, "constant" stays.
        label_smoothing: The share of the target that all classes get alike, in tasks with classes.
        ema_decay: The decay of the moving average of the weights, with which the training ends; 0: no average.
        clip_norm: The largest norm of the gradient; None: any.
        precision: "bf16", by autocast, or "no", full precision.
        channels_last: Whether convolutions compute in the memory layout channels-last.
        distill_weight: The share of the distance to the teacher's answers in the loss, if there is a teacher.
        distill_temperature: The temperature that softens these answers.

    Raises:
        UserError: A word is unknown, or a number is out of its range.
    """

    epochs: NotNegative
    batch_size: Count = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Rate = 0.1
    momentum: Share = 0.9
    weight_decay: NotNegative = 5e-4
    warmup_epochs: NotNegative = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    label_smoothing: Share = 0.0
    ema_decay: Share = 0.0
    clip_norm: NotNegative | None = None
    precision: Literal["bf16", "no"] = field(default_factory=choose_precision)
    channels_last: bool = True
    distill_weight: Share = 0.0
    distill_temperature: NotNegative = 4.0

    def adapt(self, epochs: float | None = None, **fields: Any) -> Self:
        """Return the recipe with other fields; fewer epochs have a shorter warm-up, unless that is given too.

        A warm-up of W of E epochs becomes W e / E of e epochs. Otherwise a training of few epochs would end in it.

        Args:
            epochs: The number of epochs; None: as many as now.
            fields: Other fields, by name.

        Returns:
            The new recipe.
        """
        if epochs is None:
            return replace(self, **fields)
        share = min(1.0, epochs / self.epochs) if self.epochs else 1.0
        return replace(self, **{"warmup_epochs": self.warmup_epochs * share, **fields, "epochs": epochs})

    def count_steps(self, steps_per_epoch: int) -> int:
        """Count the steps of the optimiser in the whole training.

        Args:
            steps_per_epoch: The number of batches in the training set.

        Returns:
            The number of steps, at least 1 unless there are no epochs.
        """
        return max(1, round(self.epochs * steps_per_epoch)) if self.epochs else 0


def sgd(groups: list[dict[str, Any]], recipe: Recipe) -> Optimizer:
    """Make the optimiser SGD, stochastic gradient descent with Nesterov's momentum."""
    return torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.momentum > 0)


def adamw(groups: list[dict[str, Any]], recipe: Recipe) -> Optimizer:
    """Make the optimiser AdamW, Adam with decoupled weight decay; one kernel computes a whole step."""
    return torch.optim.AdamW(groups, recipe.lr, fused=True)


OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """The learning rate `epoch` epochs after the start: a straight rise, then as the schedule says."""
    if epoch < recipe.warmup_epochs:
        return recipe.lr * (epoch + 1e-2) / (recipe.warmup_epochs + 1e-2)
    since, left = epoch - recipe.warmup_epochs, max(recipe.epochs - recipe.warmup_epochs, 1e-9)
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "linear":
        return recipe.lr * max(0.0, 1 - since / left)
    return recipe.lr * (1 + math.cos(math.pi * since / left)) / 2
