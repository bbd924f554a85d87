"""A recipe: the settings of a training."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch.optim import Optimizer

from prunus.errors import unknown
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

    Raises:
        UserError: An optimiser or precision is unknown, or a number is out of its range.
    """

    epochs: NotNegative  # begun ones count as whole; a search that ends by itself may have a part
    batch_size: Count = 128  # over all processes together
    optimizer: str = "sgd"  # or "adamw"
    lr: Rate = 0.1  # the highest, reached after the warm-up, from which a cosine leads to 0
    momentum: Share = 0.9  # Nesterov's; of sgd
    weight_decay: NotNegative = 5e-4  # of weights, not of biases and norms
    warmup_epochs: NotNegative = 0.0
    label_smoothing: Share = 0.0
    ema_decay: Share = 0.0  # the weights end as their moving average with this decay; 0 is off
    clip_norm: NotNegative | None = None  # largest norm of the gradient
    precision: Literal["bf16", "no"] = field(default_factory=choose_precision)  # autocast, or full precision
    channels_last: bool = True  # memory layout
    distill_weight: Share = (
        0.0  # share of the distance to the teacher's answers in the loss, if there is a teacher
    )
    distill_temperature: NotNegative = 4.0

    def __post_init__(self):
        super().__post_init__()
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)


def sgd(groups: list[dict[str, Any]], recipe: Recipe) -> Optimizer:
    """Make the optimiser SGD, stochastic gradient descent with Nesterov's momentum."""
    return torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.momentum > 0)


def adamw(groups: list[dict[str, Any]], recipe: Recipe) -> Optimizer:
    """Make the optimiser AdamW, Adam with decoupled weight decay; one kernel computes a whole step."""
    return torch.optim.AdamW(groups, recipe.lr, fused=True)


OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """The learning rate `epoch` epochs after the start: a straight rise, then half a cosine down to 0."""
    if epoch < recipe.warmup_epochs:
        return recipe.lr * (epoch + 1e-2) / (recipe.warmup_epochs + 1e-2)
    left = max(recipe.epochs - recipe.warmup_epochs, 1e-9)
    return recipe.lr * (1 + math.cos(math.pi * (epoch - recipe.warmup_epochs) / left)) / 2
