"""A finished run, ready to use: the smaller model, the names of its classes, and how it reads an image.

saved = prunus.load("run/")
image = saved.read("new.jpg")                          # (1, 3, 224, 224)
print(saved.class_names[saved.model(image).argmax()])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from prunus import report
from prunus.data import Data, Fingerprint, Preprocessing
from prunus.errors import FileError, UserError
from prunus.export import store
from prunus.files import expand_home
from prunus.run.provenance import SAME_FOR_EVERY_SEED, fingerprint_of, read_fingerprint
from prunus.tasks import DEFAULT, kinds, logits
from prunus.zoo import load_model

BATCH = 64  # images


@dataclass(frozen=True)
class Prediction:
    """A class and its probability, 0 to 1."""

    class_name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A finished run.

    Args:
        folder: Its folder.
        model: The smaller model, in evaluation mode, on the processor.
        class_names: The names of the classes in the order of the model's outputs; their numbers where the data set
            states no names.
        preprocessing: How an image is read; None for runs of version 0.1.0, and where a user has prepared tensors.
        fingerprint: What the run's data were; None for runs of version 0.1.0.
    """

    folder: Path
    model: nn.Module
    class_names: tuple[str, ...]
    preprocessing: Preprocessing | None
    fingerprint: Fingerprint | None

    def read(self, image: str | Path | bytes | Image.Image) -> Tensor:
        """Read one image as the run read its own.

        Args:
            image: A file, the bytes of one, or an open image.

        Returns:
            The image, float32 (1, C, H, W).

        Raises:
            UserError: The image is missing or damaged, or the run does not say how an image is read.
        """
        if self.preprocessing is None:
            raise UserError(
                f"{self.folder} does not say how an image is read: its data were tensors or texts, or it is a run of "
                "version 0.1.0. Prepare the tensor yourself, and call the model with it."
            )
        return self.preprocessing.read(image)

    def predict(self, images: Sequence[str | Path], top: int = 1) -> list[list[Prediction]]:
        """Classify images.

        Args:
            images: The files.
            top: How many classes to name for each, the likeliest first.

        Returns:
            For each image its likeliest classes.

        Raises:
            UserError: Images cannot be read; all are named.
        """
        found: list[list[Prediction]] = []
        broken: list[str] = []
        for start in range(0, len(images), BATCH):
            batch: list[Tensor] = []
            for image in images[start : start + BATCH]:
                try:
                    batch.append(self.read(image))
                except UserError as error:
                    broken.append(str(error))
            if not broken:
                found += self._classify(torch.cat(batch), top)
        if broken:
            raise UserError("\n".join(broken))
        return found

    @torch.no_grad()
    def _classify(self, x: Tensor, top: int) -> list[list[Prediction]]:
        shares, order = logits(self.model(x)).float().softmax(1).sort(1, descending=True)
        return [
            [Prediction(self.class_names[label], share) for label, share in zip(*row, strict=True)]
            for row in zip(order[:, :top].tolist(), shares[:, :top].tolist(), strict=True)
        ]

    def check(self, data: Data) -> None:
        """Raise UserError, saying what differs, unless `data` are the run's own, whatever their seed."""
        if self.fingerprint is None:
            raise UserError(f"{self.folder} says nothing about its data, so they cannot be compared.")
        if changes := self.fingerprint.differences(fingerprint_of(data), SAME_FOR_EVERY_SEED):
            raise UserError(f"{data.name} is not what {self.folder} was made with: {'; '.join(changes)}.")


def load_run(folder: str | Path, model: nn.Module | None = None) -> Saved:
    """Load a finished run.

    Args:
        folder: Its folder.
        model: The original class at its original size; None: it is built from the SPEC that the run stores.

    Returns:
        The smaller model, with its classes and how it reads an image.

    Raises:
        UserError: The folder holds no finished run, or one of another task than classification, or its model was not
            given by a SPEC.
        FileError: A file is missing or damaged.
    """
    folder = expand_home(folder)
    result = read_result(folder)
    if (task := result["settings"].get("task", DEFAULT)) in kinds() and task != DEFAULT:
        raise UserError(
            f"{folder} is a run of the task {task}; only classifiers are loaded with their classes. Build the original "
            "model and call prunus.load(folder, model): it returns the smaller one."
        )
    small = store.load(folder, original_model(result) if model is None else model).eval()
    data = result.get("data") or {}  # runs of version 0.1.0 have none
    how, file = data.get("preprocessing"), folder / "result.json"
    try:
        names = data.get("class_names") or [str(number) for number in range(result["input"]["classes"])]
    except (KeyError, TypeError) as error:
        raise FileError(
            f"{file} does not say how many classes there are; only classifiers are loaded so."
        ) from error
    return Saved(
        folder=folder,
        model=small,
        class_names=tuple(names),
        preprocessing=how and Preprocessing.from_json(how, file),
        fingerprint=read_fingerprint(folder),
    )


def original_model(
    result: dict[str, Any], instead: str = "call prunus.run.load_run(folder, model) with the model"
) -> nn.Module:
    """Build the original model of a finished run from its SPEC.

    Args:
        result: The run's result.json.
        instead: What to do if the model was not given by a SPEC.

    Returns:
        The model, freshly initialised.

    Raises:
        UserError: The model was not given by a SPEC.
    """
    spec = result["settings"]["model"]
    if ":" not in spec:
        raise UserError(f"{spec} cannot be built from its name; {instead}.")
    asked = dict(result["input"])
    shape, _ = asked.pop("shape", None), asked.pop("shapes", None)  # several tensors: a model of text
    return load_model(spec, in_shape=shape and tuple(shape), **asked)


def single_shape(result: dict[str, Any], what: str) -> tuple[int, ...]:
    """Return the shape of the one tensor that a finished run's model reads; UserError if it reads several by name.

    what: what has been asked for, in words.
    """
    shape = result["input"].get("shape")
    if shape is None:
        raise UserError(
            f"{what} is for models that read one tensor, but this one reads several, or reads them by name; "
            "prunus.load(folder, model) gives the smaller model."
        )
    return tuple(shape)


def read_result(folder: Path) -> dict[str, Any]:
    """Read the result.json of a run; UserError if the run is not finished."""
    if not (folder / "result.json").exists():
        if (folder / "settings.json").exists():
            found = "an unfinished run; continue it with --resume"
        elif (folder / "keep.json").exists():
            found = "a model without its run; build the original and call prunus.load(folder, model)"
        else:
            found = "no run; begin one with `prunus run`"
        raise UserError(f"{folder} holds {found}.")
    return report.read_result(folder / "result.json")
