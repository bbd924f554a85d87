"""A run's folder: what was asked for, the stages that are finished, the log.

    settings.json       what was asked for; only the same may go on here
    stages/NAME.json    what stage NAME found; written last, so it stands for a finished stage
    log.jsonl           one JSON line for everything that happened
    NAME/               whatever stage NAME keeps to go on from (checkpoints)

A stage begins from files alone, never from what an earlier stage left in memory, and from the run's seed. So a
run that was killed and resumed computes what an undisturbed one does.
"""

import datetime
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, set_seed

from prunus.errors import PrunusError, UserError
from prunus.files import read_json, write_json
from prunus.progress import silent

SETTINGS = "settings.json"
T = TypeVar("T")
SHOWN = 3  # differences named in an error


class Run:
    """A run's folder. Methods use `folder(name)`, `log(...)`, `seed` and `progress` of it."""

    def __init__(self, path: Path, asked: dict, *, resume: bool = False, progress: Callable = silent):
        """See that `path` can hold a run with the settings `asked` (plain, holding "seed"); writes nothing yet.

        Raises UserError if the folder is not empty and `resume` is off, or was begun with other settings.
        """
        self.path = Path(path)
        self.asked = json.loads(json.dumps(asked))
        self.seed: int = asked["seed"]
        # Accelerate joins processes on a machine without an accelerator only if told that this is meant.
        self.processes = PartialState(cpu=not torch.accelerator.is_available())
        self.progress = progress if self.processes.is_main_process else silent
        self.write(lambda: admit(self.path, self.asked, resume))

    def begin(self) -> None:
        """Write down the settings: from here on the folder is this run's."""
        self.write(lambda: remove_torn(self.path))
        self.write(lambda: write_json(self.path / SETTINGS, self.asked))

    def stage(self, name: str, work: Callable[[], dict]) -> dict:
        """What `work` gave: now, or when an earlier process finished the stage; with the "seconds" it took.

        The seconds of a resumed stage are those of the process that finished it.
        """
        record = self.path / "stages" / f"{name}.json"
        if self.has(name):
            return read_json(record)
        set_seed(self.seed)
        self.log("begin", stage=name)
        began = time.perf_counter()
        values = work()
        seconds = time.perf_counter() - began
        self.write(lambda: write_json(record, finite(values) | {"seconds": seconds}))
        self.log("end", stage=name, seconds=seconds)
        return read_json(record)

    def write(self, action: Callable[[], object]) -> None:
        """Do what writes files in one process only, while the others wait."""
        if self.processes.is_main_process:
            action()
        self.processes.wait_for_everyone()

    def has(self, name: str) -> bool:
        """Whether stage NAME is finished."""
        return (self.path / "stages" / f"{name}.json").exists()

    def agreed(self, action: Callable[[], T]) -> T:
        """What `action` gives in one process, told to all: for what differs from process to process, such as times."""
        if self.processes.num_processes == 1:
            return action()
        outcome: list = [None]
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
        """A folder of one's own for checkpoints."""
        path = self.path / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def log(self, event: str, **values: object) -> None:
        """Append one line to log.jsonl: the time, the event, the values (plain JSON)."""
        if not self.processes.is_main_process:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps(finite({"time": now, "event": event, **values})) + "\n"
        try:
            with (self.path / "log.jsonl").open("a") as file:
                file.write(line)
        except OSError as error:
            raise PrunusError(f"could not write {self.path}/log.jsonl: {error}.") from error


def admit(path: Path, asked: dict, resume: bool) -> None:
    """Raise UserError unless the folder is free, or holds a run with the same settings and `resume` is on."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; --out needs a folder.")
    there = path.exists() and any(not entry.name.startswith(".") for entry in path.iterdir())
    if there and not resume:
        raise UserError(
            f"{path} is not empty. Go on with the run in it by adding --resume, or choose another folder."
        )
    if not there:
        return
    if not (path / SETTINGS).exists():
        raise UserError(f"{path} holds no run to resume (no {SETTINGS}); choose another folder.")
    different = differences(read_json(path / SETTINGS), asked)
    if different:
        more = f", and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise UserError(
            f"{path} was begun with other settings: {'; '.join(different[:SHOWN])}{more}. "
            "Resume with the same ones, or choose another folder."
        )


def differences(before: dict, now: dict, prefix: str = "") -> list[str]:
    """Where two nested settings differ, in words."""
    found = []
    for key in [*before, *(key for key in now if key not in before)]:
        was, new = before.get(key), now.get(key)
        if isinstance(was, dict) and isinstance(new, dict):
            found += differences(was, new, f"{prefix}{key}.")
        elif was != new:
            found.append(f"{prefix}{key} was {was!r}, is now {new!r}")
    return found


def remove_torn(path: Path) -> None:
    """Remove what a kill left half-written: temporary files of atomic writes, a log line without its end."""
    for pattern in (".*.json.????????", ".*.safetensors.????????"):
        for file in path.rglob(pattern):
            file.unlink()
    log = path / "log.jsonl"
    if log.exists():
        whole, newline, torn = log.read_bytes().rpartition(b"\n")
        if torn:
            log.write_bytes(whole + newline)


def finite(value: object) -> object:
    """`value` with None for what JSON cannot hold: the loss of a badly damaged network may be infinite."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
