"""A run's folder: its settings, the records of its finished stages, and its log.

    settings.json       the settings; a run resumes only with the same ones
    stages/NAME.json    the record of stage NAME; written last, so it marks a finished stage
    log.jsonl           one JSON line for each event
    NAME/               the checkpoints of stage NAME

A stage starts from files and the run's seed alone, never from what an earlier stage left in memory. So a run that was
killed and resumed computes the same as an uninterrupted one.
"""

import datetime
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, set_seed

from prunus.errors import PrunusError, UserError
from prunus.files import read_json, shorten, write_json
from prunus.progress import silent

SETTINGS = "settings.json"
T = TypeVar("T")
SHOWN = 3  # differences named in an error


class RunFolder:
    """A run's folder, and the `Run` that methods are called with. Nothing is written before `begin`.

    Args:
        path: The folder.
        settings: The settings, plain JSON, with a "seed".
        resume: Whether to continue the run that the folder holds.
        progress: How to show the progress of long stages; such as `prunus.progress.bar`.

    Raises:
        UserError: The folder is not empty and `resume` is off, or its run was begun with other settings.
    """

    def __init__(
        self,
        path: Path | str,
        settings: dict[str, Any],
        *,
        resume: bool = False,
        progress: Callable[..., Any] = silent,
    ):
        self.path = Path(path)
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.seed: int = settings["seed"]
        # On a machine without an accelerator, Accelerate joins processes only if this is requested.
        self.processes = PartialState(cpu=not torch.accelerator.is_available())
        self.progress = progress if self.processes.is_main_process else silent
        self.write(lambda: check_folder(self.path, self.settings, resume))

    @property
    def device(self) -> torch.device:
        """The device that trains."""
        device = self.processes.device
        assert device is not None  # set by PartialState's constructor
        return device

    def begin(self) -> None:
        """Write the settings: the folder now belongs to this run."""
        self.write(lambda: remove_torn(self.path))
        self.write(lambda: write_json(self.path / SETTINGS, self.settings))

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a stage, unless it is finished.

        Args:
            name: The stage's name.
            work: Computes the stage's record, plain JSON.

        Returns:
            The record, and the "seconds" that `work` took in the process that finished it.
        """
        record = self.path / "stages" / f"{name}.json"
        if self.is_finished(name):
            return read_json(record)
        set_seed(self.seed)
        self.log("begin", stage=name)
        began = time.perf_counter()
        values = work()
        seconds = time.perf_counter() - began
        self.write(lambda: write_json(record, replace_nonfinite(values) | {"seconds": seconds}))
        self.log("end", stage=name, seconds=seconds)
        return read_json(record)

    def write(self, action: Callable[[], object]) -> None:
        """Call `action`, which writes files, in one process only, while the others wait."""
        if self.processes.is_main_process:
            action()
        self.processes.wait_for_everyone()

    def is_finished(self, name: str) -> bool:
        """Return whether stage `name` is finished."""
        return (self.path / "stages" / f"{name}.json").exists()

    def compute_once(self, action: Callable[[], T]) -> T:
        """Return the result of `action`, computed in one process and sent to all.

        It serves for results that differ between processes, such as times. What `action` raises is raised in all.
        """
        if self.processes.num_processes == 1:
            return action()
        outcome: list[Any] = [None]
        if self.processes.is_main_process:
            try:
                outcome = [(action(), None)]
            except PrunusError as error:
                outcome = [(None, error)]
        ((value, error),) = broadcast_object_list(outcome)
        if error is not None:
            raise error
        return value

    def folder(self, name: str) -> Path:
        """Return the folder for the checkpoints of stage `name`, made if it is not there."""
        path = self.path / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def log(self, event: str, **values: object) -> None:
        """Append a line to log.jsonl: the time, the event, and values, plain JSON."""
        if not self.processes.is_main_process:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps(replace_nonfinite({"time": now, "event": event, **values})) + "\n"
        try:
            with (self.path / "log.jsonl").open("a") as file:
                file.write(line)
        except OSError as error:
            raise PrunusError(
                f"could not write {self.path}/log.jsonl: {error}. Make it writable, then resume."
            ) from error


def check_folder(path: Path, settings: dict[str, Any], resume: bool) -> None:
    """Raise UserError unless the folder is free, or holds a run with the same settings and `resume` is on."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, but --out needs a folder; choose another path.")
    there = path.exists() and any(not entry.name.startswith(".") for entry in path.iterdir())
    if there and not resume:
        raise UserError(
            f"{path} is not empty. Continue the run in it by adding --resume, or choose another folder."
        )
    if not there:
        return
    if not (path / SETTINGS).exists():
        raise UserError(f"{path} holds no run to resume (no {SETTINGS}); choose another folder.")
    different = list_differences(read_json(path / SETTINGS), settings)
    if different:
        more = f", and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise UserError(
            f"{path} was begun with other settings: {'; '.join(different[:SHOWN])}{more}. "
            "Resume with the same ones, or choose another folder."
        )


def list_differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the places where two nested settings differ, in words."""
    found: list[str] = []
    for key in [*before, *(key for key in now if key not in before)]:
        was, new = before.get(key), now.get(key)
        if isinstance(was, dict) and isinstance(new, dict):
            found += list_differences(was, new, f"{prefix}{key}.")
        elif was != new:
            found.append(f"{prefix}{key} was {shorten(was)}, is now {shorten(new)}")
    return found


def remove_torn(path: Path) -> None:
    """Remove what a kill left half-written: temporary files of atomic writes, and an incomplete line of the log."""
    for pattern in (".*.json.????????", ".*.safetensors.????????"):
        for file in path.rglob(pattern):
            file.unlink()
    log = path / "log.jsonl"
    if log.exists():
        whole, newline, torn = log.read_bytes().rpartition(b"\n")
        if torn:
            log.write_bytes(whole + newline)


def replace_nonfinite(value: Any) -> Any:
    """Return `value` with None for numbers that JSON cannot hold: a damaged network's loss may be infinite."""
    if isinstance(value, dict):
        return {key: replace_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
