"""What comparisons are tried on: a few digits by name, and methods that fail."""

import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunus.data import Data, load_data
from prunus.errors import PruningError
from prunus.methods import Pruned, Units
from prunus.run import Settings

MODEL, DATA = "zoo:digits_resnet", "tests.lib.boards:few_digits"
SETTINGS = Settings(base_epochs=1, total_epochs=2, threads=1)
ARMS = ("taylor:batches=2", "magnitude:how=uniform", "scratch")


def few_digits() -> Data:
    """192 digits to train on, 60 to choose with, 120 to judge by."""
    digits = load_data("digits")
    parts = {"train": 192, "val": 60, "test": 120}
    few = {name: split.take(np.arange(parts[name])) for name, split in digits.splits.items()}
    return replace(digits, name=DATA, fingerprint=None, **few)


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """The options of methods that fail."""


def fail(*_: Any) -> Pruned:
    """A method that says why it cannot go on."""
    raise PruningError("there is nothing\nto be seen here.")


def die(*_: Any) -> Pruned:
    """A method whose process the system kills, as it does where memory ends."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def fault(*_: Any) -> Pruned:
    """A method with a fault of its own."""
    raise ZeroDivisionError("a fault")


def interrupted(after: int) -> Callable[..., Any]:
    """A display of progress that ends everything, as Ctrl-C does, at its step of this number."""
    left = [after]

    @contextmanager
    def progress(label: str, total: int):
        def step(done: int = 1, note: str = "") -> None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        yield step

    return progress


def models(folder: Path) -> dict[str, bytes]:
    """The bytes of the smaller model of every arm of a comparison."""
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("runs/*/model.safetensors"))}
