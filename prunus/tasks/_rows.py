"""What regression and multi-label classification share: several numbers for each row of a table, or each image."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.data import Columns, Data, Examples, Features, ReadTargets, Split, load_rows
from prunus.errors import UserError
from prunus.inputs import call, model_device, move
from prunus.tasks import _contract
from prunus.tasks._contract import Given, Task
from prunus.tasks.classification import logits
from prunus.train import Recipe, in_mode

EVALUATION_BATCH = 256  # rows


@dataclass(frozen=True, kw_only=True)
class Options(_contract.Options):
    """The options that both tasks have.

    Args:
        image_column: The column of images; None: image, img, file, file_name, filename or path, if there is one.
        features: The columns of numbers that are the input, instead of images; empty: all that are no targets.
    """

    image_column: str | None = None
    features: tuple[str, ...] = ()


def load_given(given: Given, read_targets: ReadTargets, options: Options, *, augment: bool) -> Data:
    """Load the rows that a user's SPEC names, or return the data that were given as an object."""
    data = given.data
    if isinstance(data, str):
        data = load_rows(
            data,
            read_targets,
            Columns(image=options.image_column, features=options.features),
            augment=augment,
            seed=given.seed,
            image_size=given.image_size,
            skip_broken=given.skip_broken,
        )
    return data if given.example is None else replace(data, example=given.example)


def build_given(given: Given, data: Data) -> nn.Module:
    """Build the model with an output for each target, or return the one that was given."""
    _, targets = next(data.train.batches(1))
    return given.build_model(classes=targets.shape[1], in_shape=tuple(data.example.shape[1:]))


def targets_of(split: Examples) -> Tensor:
    """Return the targets of a split, float32 (N, targets), without reading the inputs if possible."""
    if isinstance(split, Split):
        return torch.from_numpy(split.labels)
    return torch.cat([target for _, target in split.batches(EVALUATION_BATCH)])


class Rows(Task):
    """Inputs, such as rows of a table or images, to numbers (B, targets).

    Args:
        model: The model; methods leave it unchanged.
        data: The inputs, and their targets float32 (N, targets).
        recipe_fields: Fields that replace the advised ones in every recipe of this task.
    """

    def __init__(self, model: nn.Module, data: Data, recipe_fields: dict[str, Any] | None = None):
        super().__init__(model, data, recipe_fields)
        _, targets = next(data.train.batches(1))
        named = data.fingerprint and data.fingerprint.class_names
        self.names = named or tuple(f"target {number}" for number in range(targets.shape[1]))

    @abstractmethod
    def judge(self, output: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Return the metrics of outputs for targets, both float64 (N, targets)."""

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Examples) -> dict[str, float]:
        """Return the metrics of `judge` and the loss, over all of `split` at once, in full precision."""
        device = model_device(model)
        outputs: list[Tensor] = []
        targets: list[Tensor] = []
        with in_mode(model, False):
            for x, y in split.batches(EVALUATION_BATCH):
                outputs.append(self.numbers(call(model, move(x, device))).cpu())
                targets.append(y)
        output, target = torch.cat(outputs), torch.cat(targets)
        loss = float(self.loss(output, target))
        return self.judge(output.double().numpy(), target.double().numpy()) | {"loss": loss}

    def numbers(self, output: Any) -> Tensor:
        """Return an output as float32 (B, targets); a model with one output may leave the second dimension out."""
        found = logits(output).float()
        return found[:, None] if found.dim() == 1 else found

    def recipe(self, purpose: str) -> Recipe:
        """Return AdamW in full precision, with many epochs, because tables are small; recovery distils."""
        return replace(RECIPES[purpose], **self.recipe_fields)

    def check(self, model: nn.Module) -> None:
        """Raise UserError if the model cannot read an input, or has outputs for another number of targets."""
        example, count = move(self.example, model_device(model)), len(self.names)
        try:
            with in_mode(model, False), torch.no_grad():
                shape = tuple(self.numbers(call(model, example)).shape)
        except RuntimeError as error:
            raise UserError(
                f"the model cannot read inputs of shape {tuple(example.shape)} ({self.data.name}): {error}. Build it "
                "for them; zoo:mlp reads rows of numbers."
            ) from error
        if shape != (1, count):
            raise UserError(
                f"the model's output for one input has shape {shape}, but {self.data.name} has {count} targets "
                f"({', '.join(self.names[:5])}{', ...' * (count > 5)}): expected (1, {count}). Build the model for "
                f"{count} outputs."
            )

    def asked_of_model(self) -> dict[str, Any]:
        """Return the number of outputs, as `classes`, and the shape of an input."""
        return {"classes": len(self.names), "in_shape": list(self.example.shape[1:])}

    def conventions(self) -> dict[str, Any]:
        """Return the names of the targets, and how columns of numbers are standardised before the model reads them."""
        train = self.data.train
        source = train.source if isinstance(train, Split) else None
        if not isinstance(source, Features):
            return {"targets": list(self.names)}
        scale = {"feature_mean": source.mean.tolist(), "feature_std": source.std.tolist()}
        return {"targets": list(self.names), "features": list(source.names), **scale}


RECIPES = {
    "scratch": Recipe(
        epochs=100,
        batch_size=64,
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-3,
        warmup_epochs=2,
        precision="no",
    ),
    "tune": Recipe(
        epochs=10,
        batch_size=64,
        optimizer="adamw",
        lr=5e-4,
        weight_decay=1e-3,
        warmup_epochs=1,
        precision="no",
    ),
    "recover": Recipe(
        epochs=40,
        batch_size=64,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=1e-3,
        warmup_epochs=1,
        precision="no",
        distill_weight=0.5,
    ),
}
