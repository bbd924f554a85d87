"""A recipe: the settings of a training."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from prunus.errors import UserError, unknown


def choose_precision() -> str:
    """Choose the faster precision on this machine: "bf16" if the hardware computes in it, otherwise "no".

    A processor without bf16 instructions emulates them: on one with AVX2 alone a step under autocast takes 8 to 12
    times as long as in full precision (benchmarks/precision.py).
    """
    if torch.accelerator.is_available():
        return "bf16"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a training.

    Raises:
        UserError: An optimiser or precision is unknown, or a number is out of its range.
    """

    epochs: int
    batch_size: int = 128  # over all processes together
    optimizer: str = "sgd"  # or "adamw"
    lr: float = 0.1  # the highest, reached after the warm-up, from which a cosine leads to 0
    momentum: float = 0.9  # Nesterov's; of sgd
    weight_decay: float = 5e-4  # of weights, not of biases and norms
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    ema_decay: float = 0.0  # the weights end as their moving average with this decay; 0 is off
    clip_norm: float | None = None  # largest norm of the gradient
    precision: str = field(default_factory=choose_precision)  # "bf16" (autocast) or "no" (full precision)
    channels_last: bool = True  # memory layout
    distill_weight: float = (
        0.0  # share of the distance to the teacher's answers in the loss, if there is a teacher
    )
    distill_temperature: float = 4.0

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if self.precision not in ("bf16", "no"):
            raise unknown("precision", self.precision, ("bf16", "no"))
        most = {"ema_decay": 1, "label_smoothing": 1, "distill_weight": 1, "momentum": 1}
        for name, value in asdict(self).items():
            least = 1 if name == "batch_size" else 0
            if isinstance(value, int | float) and not least <= value <= most.get(name, math.inf):
                raise UserError(
                    f"recipe: {name} should lie in {least}..{most.get(name, '')}, but is {value}."
                )


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
