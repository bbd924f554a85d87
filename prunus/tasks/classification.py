"""Which class is on a picture: cross-entropy, top-1 accuracy, and distillation from another model's answers."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.data import Data
from prunus.errors import UserError
from prunus.train import Recipe, in_mode

EVALUATION_BATCH = 256  # pictures
SMALL_SET = 5_000  # pictures; below, an epoch is so short that many are affordable and needed


class Classification:
    """Classify the pictures of `data` with `model`, which maps (B, C, H, W) to logits (B, data.classes).

    settled: fields that every recipe has, whatever it is for, in place of what is advised.
    Raises UserError if the model cannot read the pictures or answers for another number of classes.
    """

    metric = "accuracy"
    higher_is_better = True

    def __init__(self, model: nn.Module, data: Data, settled: dict | None = None):
        self.model, self.data, self.example = model, data, data.example
        self.settled = settled or {}
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        try:
            with in_mode(model, False), torch.no_grad():
                shape = tuple(logits(model(data.example.to(device))).shape)
        except RuntimeError as error:
            seen = tuple(data.example.shape)
            words = f"the model cannot read pictures of shape {seen} ({data.name}): {error}"
            raise UserError(words) from error
        if shape != (1, data.classes):
            raise UserError(
                f"the model's output for one picture has shape {shape}, but {data.name} has {data.classes} "
                f"classes: expected (1, {data.classes}). Build the model for {data.classes} classes."
            )

    def loss(self, output: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy in nats of output (B, classes) against y int64 (B,)."""
        return F.cross_entropy(logits(output).float(), y, label_smoothing=smoothing)

    def right(self, output: Tensor, y: Tensor) -> Tensor:
        """Of each picture whether the class that output (B, classes) holds likeliest is its own: bool (B,)."""
        return logits(output).argmax(1) == y

    def distill_loss(self, output: Tensor, teacher_output: Tensor, temperature: float) -> Tensor:
        """How far the softened answers are from the teacher's: KL divergence times temperature squared.

        Hinton et al., arXiv:1503.02531, section 2; the factor keeps gradients' size as the temperature varies.
        """
        outputs = output, teacher_output
        student, teacher = (F.log_softmax(logits(o).float() / temperature, 1) for o in outputs)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split) -> dict[str, float]:
        """{"accuracy": 0..1, "loss": nats} over all of `split`, in evaluation mode and full precision."""
        device = next(model.parameters()).device
        correct, loss_sum = 0, 0.0
        with in_mode(model, False):
            for x, y in split.batches(EVALUATION_BATCH):
                output, y = logits(model(x.to(device))).float(), y.to(device)
                correct += int((output.argmax(1) == y).sum())
                loss_sum += float(F.cross_entropy(output, y, reduction="sum"))
        return {"accuracy": correct / len(split), "loss": loss_sum / len(split)}

    def recipe(self, purpose: str) -> Recipe:
        """A recipe to begin with, for "scratch", "tune" (weights trained on like data) or "recover" (pruned).

        Sets below 5,000 pictures get small batches and many of their short epochs.
        """
        small = len(self.data.train) < SMALL_SET
        return replace((SMALL_RECIPES if small else RECIPES)[purpose], **self.settled)


RECIPES = {
    "scratch": Recipe(epochs=100, lr=0.1, weight_decay=5e-4, warmup_epochs=2),
    "tune": Recipe(epochs=3, lr=0.02, weight_decay=5e-4, warmup_epochs=0.2),
    "recover": Recipe(epochs=5, lr=0.05, weight_decay=5e-4, warmup_epochs=0.2, distill_weight=0.7),
}
SMALL_RECIPES = {
    "scratch": Recipe(epochs=30, batch_size=64, lr=0.1, weight_decay=5e-4, warmup_epochs=2),
    "tune": Recipe(epochs=10, batch_size=64, lr=0.02, weight_decay=5e-4, warmup_epochs=1),
    "recover": Recipe(
        epochs=20, batch_size=64, lr=0.05, weight_decay=5e-4, warmup_epochs=1, distill_weight=0.7
    ),
}


def logits(output: object) -> Tensor:
    """The logits in what a model returned: itself, or its `.logits` (transformers, GoogLeNet in training)."""
    return output if isinstance(output, Tensor) else output.logits
