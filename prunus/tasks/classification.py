"""Image classification: cross-entropy, top-1 accuracy, and distillation from a teacher's outputs."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.data import Examples
from prunus.errors import UserError
from prunus.inputs import call, model_device, move
from prunus.metrics import ACCURACY
from prunus.tasks import _contract
from prunus.tasks._answers import Answer, ranking
from prunus.tasks._contract import File, Given, Task
from prunus.tasks._transformers import for_transformers, is_transformer
from prunus.train import Recipe, in_mode

EVALUATION_BATCH = 256  # images
SMALL_SET = 5_000  # images; with fewer, an epoch is so short that many are affordable and needed


@dataclass(frozen=True, kw_only=True)
class Options(_contract.Options):
    """Image classification has no options of its own."""


def make(given: Given, options: Options) -> "Classification":
    """Make the task of classifying labelled images."""
    data = given.load_data()
    if data.classes is None and isinstance(given.model, str):
        raise UserError(
            f"{data.name} has no classes, so {given.model} cannot be built to classify it. Give a task with a model of "
            "its own."
        )
    return Classification(
        given.build_model(classes=data.classes, in_shape=tuple(data.example.shape[1:])), data
    )


class Classification(Task):
    """Image classification by a model that maps images (B, C, H, W) to logits (B, data.classes).

    The loss is cross-entropy, the metric top-1 accuracy. Source of distillation: Hinton et al., arXiv:1503.02531.

    Args:
        model: The model; methods leave it unchanged.
        data: The images and their classes.
        recipe_fields: Fields that replace the advised ones in every recipe of this task.
    """

    metric = ACCURACY
    judges_examples = True

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats of output (B, classes) against the classes int64 (B,)."""
        return F.cross_entropy(logits(output).float(), target)

    def training_loss(self, output: Any, target: Tensor, recipe: Recipe) -> Tensor:
        """Return the mean cross-entropy in nats with the recipe's label smoothing."""
        return F.cross_entropy(logits(output).float(), target, label_smoothing=recipe.label_smoothing)

    def distil(self, output: Any, teacher_output: Any, temperature: float, target: Any = None) -> Tensor:
        """Return the KL divergence of the softened outputs from the teacher's, times the temperature squared.

        Hinton et al., arXiv:1503.02531, section 2; the factor keeps the gradients' size as the temperature varies.
        """
        outputs = output, teacher_output
        student, teacher = (F.log_softmax(logits(o).float() / temperature, 1) for o in outputs)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Examples) -> dict[str, float]:
        """Return {"accuracy": 0..1, "loss": nats} over all of `split`, in evaluation mode and full precision."""
        device = model_device(model)
        correct, loss_sum = 0, 0.0
        with in_mode(model, False):
            for x, y in split.batches(EVALUATION_BATCH):
                x, y = move((x, y), device)
                output = logits(call(model, x)).float()
                correct += int(self.verdicts(output, y).sum())
                loss_sum += float(F.cross_entropy(output, y, reduction="sum"))
        return {self.metric.key: correct / len(split), "loss": loss_sum / len(split)}

    def verdicts(self, output: Any, target: Tensor) -> Tensor:
        """Return whether the top-1 prediction is correct, per image: bool (B,)."""
        return logits(output).argmax(1) == target

    def read_file(self, file: File) -> Tensor:
        """Read an image as the run read its own, float32 (1, C, H, W)."""
        known = self.data.fingerprint
        if known is None or known.preprocessing is None:
            raise UserError(
                f"{self.data.name} does not say how an image is read: its data were tensors, or it is a run of version "
                "0.1.0. Prepare the tensor yourself, and call the model with it."
            )
        return known.preprocessing.read(file)

    def answer(self, output: Any, most: int) -> Answer:
        """Return the likeliest classes with their probabilities."""
        names = self.data.fingerprint and self.data.fingerprint.class_names
        shares = logits(output)[0].float().softmax(0)
        return ranking(shares, names or tuple(map(str, range(len(shares)))), most)

    def recipe(self, purpose: str) -> Recipe:
        """Return a recipe to begin with; data sets below 5,000 images get a small batch size and many short epochs,
        transformers AdamW."""
        small = len(self.data.train) < SMALL_SET
        advised = (SMALL_RECIPES if small else RECIPES)[purpose]
        advised = for_transformers(advised, purpose) if is_transformer(self.model) else advised
        return advised.adapt(**self.recipe_fields)

    def check(self, model: nn.Module) -> None:
        """Raise UserError if the model cannot read the images, or has outputs for another number of classes."""
        data = self.data
        example = move(data.example, model_device(model))
        try:
            with in_mode(model, False), torch.no_grad():
                shape = tuple(logits(call(model, example)).shape)
        except RuntimeError as error:
            seen = tuple(data.example.shape)
            raise UserError(
                f"the model cannot read images of shape {seen} ({data.name}): {error}. Build it for such images."
            ) from error
        if shape != (1, data.classes):
            raise UserError(
                f"the model's output for one image has shape {shape}, but {data.name} has {data.classes} "
                f"classes: expected (1, {data.classes}). Build the model for {data.classes} classes."
            )

    def asked_of_model(self) -> dict[str, Any]:
        """Return the number of classes, and the images' shape (C, H, W)."""
        return {"classes": self.data.classes, "in_shape": list(self.data.example.shape[1:])}


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


def logits(output: Any) -> Tensor:
    """Return the logits of an output: itself, or its `.logits` (transformers, GoogLeNet in training)."""
    return output if isinstance(output, Tensor) else output.logits
