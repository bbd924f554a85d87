"""A recipe: how a model is trained."""

import math
from dataclasses import asdict, dataclass, field

import torch
from torch.optim import Optimizer

from prunus.errors import UserError, unknown


def advised_precision() -> str:
    """The precision that trains fastest on this machine: "bf16" where the hardware computes in it, "no" otherwise.

    A processor without bf16 instructions emulates them: measured on one with AVX2 alone, a step under autocast takes
    eight times as long as in full precision.
    """
    if torch.accelerator.is_available():
        return "bf16"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. lr: the highest, reached after the warm-up, from where a cosine leads to 0.

    Batches are of all processes together. ema_decay: the weights end as their moving average; 0 is off.
    distill_weight: share of the loss that asks for a teacher's answers, where there is a teacher.
    """

    epochs: int
    batch_size: int = 128
    optimizer: str = "sgd"  # or "adamw"
    lr: float = 0.1
    momentum: float = 0.9  # Nesterov's; of sgd
    weight_decay: float = 5e-4  # of weights, not of biases and norms
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    clip_norm: float | None = None
    precision: str = field(default_factory=advised_precision)  # "bf16" (autocast) or "no" (full precision)
    channels_last: bool = True  # memory layout
    distill_weight: float = 0.0
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
                raise UserError(f"{name} should lie in {least}..{most.get(name, '')}, but is {value}.")


def sgd(groups: list[dict], recipe: Recipe) -> Optimizer:
    """Stochastic gradient descent with Nesterov's momentum."""
    return torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.momentum > 0)


def adamw(groups: list[dict], recipe: Recipe) -> Optimizer:
    """Adam with decoupled weight decay, a kernel for all of a step."""
    return torch.optim.AdamW(groups, recipe.lr, fused=True)


OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """The learning rate `epoch` epochs after the start: a straight rise, then half a cosine down to 0."""
    if epoch < recipe.warmup_epochs:
        return recipe.lr * (epoch + 1e-2) / (recipe.warmup_epochs + 1e-2)
    left = max(recipe.epochs - recipe.warmup_epochs, 1e-9)
    return recipe.lr * (1 + math.cos(math.pi * (epoch - recipe.warmup_epochs) / left)) / 2
