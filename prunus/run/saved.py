"""A finished run, ready to use: the smaller model, how it reads a file, and what it answers.

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
from torch import nn

from prunus import report
from prunus.data import Data, Fingerprint, Preprocessing
from prunus.errors import UserError
from prunus.export import store
from prunus.files import expand_home
from prunus.run.provenance import SAME_FOR_EVERY_SEED, fingerprint_of, read_fingerprint
from prunus.run.reopen import reopen_task
from prunus.tasks import Answer, Task
from prunus.train import in_mode

ALTERNATIVES = 1  # that an answer names


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A finished run.

    Args:
        folder: Its folder.
        task: Its task with the smaller model, without its data.
        class_names: The names of the classes in the order of the model's outputs; their numbers where the data set
            states no names; empty where the task has no classes.
        preprocessing: How an image is read; None for runs of version 0.1.0, and for other data than images that are
            classified.
        fingerprint: What the run's data were; None for runs of version 0.1.0.
    """

    folder: Path
    task: Task
    class_names: tuple[str, ...]
    preprocessing: Preprocessing | None
    fingerprint: Fingerprint | None

    @property
    def model(self) -> nn.Module:
        """The smaller model, in evaluation mode, on the processor."""
        return self.task.model

    def read(self, file: str | Path | bytes | Image.Image) -> Any:
        """Read one file as the run's task does, such as an image as the run read its own.

        Args:
            file: A file, the bytes of one, or an open image.

        Returns:
            The input of the model, with a batch dimension of 1: of an image float32 (1, C, H, W).

        Raises:
            UserError: The file is missing or damaged, or the run does not say how one is read.
        """
        return self.task.read_file(file)

    def predict(self, files: Sequence[str | Path], top: int = ALTERNATIVES) -> list[Any]:
        """Answer files.

        Args:
            files: The files.
            top: How many classes to name for each at most, the likeliest first.

        Returns:
            For each file its answer: of a classifier a list of `Prediction`, of restoration a PIL image.

        Raises:
            UserError: Files cannot be read, of which all are named, or the task answers none.
        """
        return [answer.value for answer in self.answers(files, top)]

    @torch.no_grad()
    def answers(self, files: Sequence[str | Path], top: int = ALTERNATIVES) -> list[Answer]:
        """Answer files; like `predict`, with what is printed and written of each answer."""
        found: list[Answer] = []
        broken: list[str] = []
        with in_mode(self.model, False):
            for file in files:
                try:
                    inputs = self.read(file)
                except UserError as error:
                    broken.append(str(error))
                    continue
                if not broken:
                    found.append(self.task.answer(self.task.respond(inputs), top))
        if broken:
            raise UserError("\n".join(dict.fromkeys(broken)))
        return found

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
        The smaller model, with its classes, how it reads a file and what it answers.

    Raises:
        UserError: The folder holds no finished run, or one whose model or task was not given by a SPEC.
        FileError: A file is missing or damaged.
    """
    folder = expand_home(folder)
    result = read_result(folder)
    task = reopen_task(folder, result, model)
    known, number = task.data.fingerprint, task.data.classes or 0
    names = None if known is None else known.class_names
    return Saved(
        folder=folder,
        task=task.on(store.load(folder, task.model).eval()),
        class_names=names or tuple(map(str, range(number))),
        preprocessing=None if known is None else known.preprocessing,
        fingerprint=read_fingerprint(folder),
    )


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
