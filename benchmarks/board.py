"""What boards share: rows kept in a file after every run, so that a killed board goes on where it was; one trained
network that all arms begin with; what is measured once units are gone."""

import argparse
import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import prunus
from prunus import zoo
from prunus.data import Data
from prunus.files import write_json
from prunus.recover import calibration_batches, recover, renew_norms
from prunus.tasks import Classification
from prunus.train import fit
from prunus.zoo import load_weights


def arguments(description: str, folder: str, digits: bool = False) -> argparse.ArgumentParser:
    """What all boards of one network on one data set are asked with.

    folder: where theirs is kept, if not told. digits: if not told otherwise, the small network on scikit-learn's
    digits, trained from scratch, so that every machine can run it.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--network", default="digits_resnet" if digits else "resnet20")
    parser.add_argument("--data", required=not digits, default="digits")
    parser.add_argument("--weights", required=not digits, help="none: the base is trained from scratch")
    parser.add_argument(
        "--base-epochs", type=int, default=None if digits else 3, help="3 to tune, 10 from scratch"
    )
    parser.add_argument("--round-to", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(folder), help="for what the arms keep")
    parser.add_argument("--base", type=Path, help="the folder of the base, tuned once; boards can share one")
    parser.add_argument("--out", type=Path)
    return parser


class Board:
    """The rows of one board, in `path`, all made with the same `setup`."""

    def __init__(self, path: Path, setup: dict):
        self.path, self.setup, self.rows = path, json.loads(json.dumps(setup)), []
        self._read()

    def _read(self) -> None:
        """Read the rows that are there, of other processes too."""
        if self.path.exists():
            held = json.loads(self.path.read_text())
            if held["setup"] != self.setup:
                raise SystemExit(f"{self.path} holds another setup, {held['setup']}; move it away first.")
            self.rows = held["rows"]

    def has(self, **of: object) -> bool:
        """Whether there is a row of these values."""
        self._read()
        return any(all(row.get(key) == value for key, value in of.items()) for row in self.rows)

    def add(self, row: dict) -> None:
        """Keep a row, beside those that other processes have added meanwhile."""
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "prunus": prunus.__version__,
        }
        machine = {"cores": os.cpu_count(), "machine": platform.machine()}
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # until it is closed
            self._read()
            self.rows.append(row)
            held = {"setup": self.setup, "versions": versions, "machine": machine, "rows": self.rows}
            write_json(self.path, held)
        finally:
            os.close(folder)
        print(json.dumps(row), flush=True)

    def fill(self, arms: Iterable[str], seeds: Iterable[int], make: Callable[[str, int], dict]) -> None:
        """Make the rows that are not there yet: make(arm, seed) returns what was measured."""
        for seed in seeds:
            for arm in arms:
                if not self.has(arm=arm, seed=seed):
                    self.add({"arm": arm, "seed": seed} | make(arm, seed))


def tuned(asked: argparse.Namespace, data: Data) -> nn.Module:
    """The network asked for, tuned to the data from the weights of a file, or trained from scratch; once, then read
    from its folder."""
    torch.manual_seed(0)
    base = zoo.build(asked.network, data.classes, tuple(data.example.shape[1:]))
    if asked.weights:
        load_weights(base, asked.weights)
    task = Classification(base, data)
    recipe = task.recipe("tune" if asked.weights else "scratch").adapt(
        epochs=asked.base_epochs or (3 if asked.weights else 10)
    )
    fit(base, task, recipe, folder=asked.base or asked.folder / "base")
    return base


def recovered(small: nn.Module, data: Data, epochs: float, teacher: nn.Module | None, seed: int) -> dict:
    """Recover `small` in place. Accuracy on test as it is, with its norms renewed, and after the last epoch."""
    task = Classification(small, data)

    def tested() -> float:
        return task.evaluate(small, data.test)["accuracy"]

    row = {"after": tested()}
    renew_norms(small, calibration_batches(data.train, seed))
    row["renewed"] = tested()
    recover(small, task, replace(task.recipe("recover"), epochs=epochs), teacher=teacher, seed=seed)
    return row | {"recovered": tested()}
