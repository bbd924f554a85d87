"""What regression and multi-label classification share: several numbers for each row of a table, or each image."""

import json
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
from prunus.tasks._contract import File, Given, Task, bytes_of, named
from prunus.tasks.classification import logits
from prunus.train import Recipe, in_mode
from prunus.zoo import expected_images

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
    if not isinstance(data, str):
        given.refuse_images("data that are given as an object say themselves how they are read")
    else:
        data = load_rows(
            data,
            read_targets,
            Columns(image=options.image_column, features=options.features),
            augment=augment,
            seed=given.seed,
            images=given.images,
            expected=None if given.images.transform else expected_images(given.model, given.weights),
            skip_broken=given.skip_broken,
        )
    return data if given.example is None else replace(data, example=given.example)


def build_given(given: Given, data: Data) -> nn.Module:
    """Build the model with an output for each target, or return the one that was given."""
    return given.build_model(classes=count_targets(data), in_shape=tuple(data.example.shape[1:]))


def count_targets(data: Data) -> int:
    """Return the number of targets; of a finished run that is opened without its data it is what that says."""
    if not len(data.train):
        return data.classes or 0
    _, targets = next(data.train.batches(1))
    return targets.shape[1]


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
        named = data.fingerprint and data.fingerprint.class_names
        self.names = named or tuple(f"target {number}" for number in range(count_targets(data)))
        source = data.train.source if isinstance(data.train, Split) else None
        self.features = (
            source if isinstance(source, Features) else None
        )  # None: inputs are no columns of numbers

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
        return RECIPES[purpose].adapt(**self.recipe_fields)

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
        if self.features is None:
            return {"targets": list(self.names)}
        scale = {"feature_mean": self.features.mean.tolist(), "feature_std": self.features.std.tolist()}
        return {"targets": list(self.names), "features": list(self.features.names), **scale}

    def restore(self, conventions: dict[str, Any]) -> None:
        """Take over how columns of numbers are standardised."""
        if names := conventions.get("features"):
            mean, std = (np.array(conventions[name], np.float64) for name in ("feature_mean", "feature_std"))
            if not len(names) == len(mean) == len(std):
                raise ValueError("as many means and deviations as features")
            self.features = Features(names, np.zeros((0, len(names))), mean, std)

    def read_file(self, file: File) -> Tensor:
        """Read an image as the run read its own, or from a JSON file the numbers of a row by their columns."""
        known = self.data.fingerprint
        if self.features is not None:
            return self._read_row(file, self.features)
        if known is None or known.preprocessing is None:
            raise UserError(
                f"{self.data.name} does not say how an input is read: its data were tensors. Prepare the tensor "
                "yourself, and call the model with it."
            )
        return known.preprocessing.read(file)

    def _read_row(self, file: File, features: Features) -> Tensor:
        """A row of numbers, standardised, float32 (1, features)."""
        names = list(features.names)
        try:
            found = json.loads(bytes_of(file))
            numbers = np.array([[found[name] for name in names]], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{named(file)}: expected a JSON object with a number for each of {', '.join(names)} ({error})."
            ) from error
        return features.standardise(numbers)


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
