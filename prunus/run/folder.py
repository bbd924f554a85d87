"""A run's folder: its settings, the records of its finished stages, and its log.

    settings.json       the settings, and the environments that computed; written before any data is read
    stages/NAME.json    the record of stage NAME; written last, so it marks a finished stage
    log.jsonl           one JSON line for each event
    NAME/               the checkpoints of stage NAME
    .lock               the process that writes, as long as it does (lock.py)

A stage starts from files and the run's seed alone, never from what an earlier stage left in memory. So a run that was
killed and resumed computes the same as an uninterrupted one, in the same environment; in another it warns.
"""

import datetime
import json
import math
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, set_seed

from prunus.errors import PrunusError, UserError
from prunus.files import Record, read_json, shorten, write_json
from prunus.machine import environment, explain_change
from prunus.progress import silent
from prunus.run import lock
from prunus.run.settings import OF_ENVIRONMENT, read_by

SETTINGS, LOG, ENVIRONMENTS = "settings.json", "log.jsonl", "environments"
T = TypeVar("T")
MEANT = {"repair": "off"}  # by a run of an earlier version, which does not store the setting
SHOWN = 3  # differences named in an error


class StoredSettings(Record, frozen=True, kw_only=True):
    """settings.json, as far as it does not depend on the version."""

    environments: list[dict[str, Any]] = msgspec.field(default_factory=list)


class RunFolder:
    """A run's folder, and the `Run` that methods are called with. Nothing is written before `with`.

        with RunFolder(path, settings) as run:      # begins, and is the only writer until the end
            ...

    A run that is refused before its first stage leaves a folder as it found it.

    Args:
        path: The folder.
        settings: The settings, plain JSON, with a "seed".
        resume: Whether to continue the run that the folder holds.
        progress: How to show the progress of long stages; such as `prunus.progress.bar`.

    Raises:
        UserError: The folder is not empty and `resume` is off, its run was begun with other settings that finished
            work depends on, or another process writes there.
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
        self.resume = resume
        self.environments: list[dict[str, Any]] = []  # those that computed, in order
        self._held = ExitStack()  # the lock, in the process that has it
        self._ended: set[str] = set()  # the stages that this process knows to be finished
        self.settings = self.compute_once(self._settle)

    @property
    def device(self) -> torch.device:
        """The device that trains."""
        device = self.processes.device
        assert device is not None  # set by PartialState's constructor
        return device

    def _settle(self) -> dict[str, Any]:
        """Return the settings, without those that an earlier version did not store, unless they are asked for.

        Raises UserError unless the folder is free, or holds a run that can continue with these settings.
        """
        lock.check_free(self.path)
        settings, file = self.settings, self.path / SETTINGS
        if self.resume and file.exists():
            new = {key for key in MEANT if key not in read_json(file) and settings.get(key) is None}
            settings = {key: value for key, value in settings.items() if key not in new}
        check_folder(self.path, settings, self.resume)
        return settings

    def __enter__(self) -> Self:
        self.environments = self.compute_once(self._enter)
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def _enter(self) -> list[dict[str, Any]]:
        """Take the lock, check again, because another run may just have ended, and begin."""
        with ExitStack() as stack:
            if not self.path.exists():
                stack.callback(remove_empty, self.path)
            stack.enter_context(lock.sole_writer(self.path))
            check_folder(self.path, self.settings, self.resume)
            if not (self.path / SETTINGS).exists():
                stack.callback(remove_unused, self.path)
            found = self._begin()
            self._held = stack.pop_all()
            return found

    def _begin(self) -> list[dict[str, Any]]:
        """Write the settings: the folder now belongs to this run. Returns the environments that computed before."""
        remove_torn(self.path)
        file = self.path / SETTINGS
        found = read_json(file, StoredSettings).environments if file.exists() else []
        write_json(file, self.settings | {ENVIRONMENTS: found})
        return found

    def _note_environment(self) -> None:
        """Store the environment that computes from now on, and warn if it is another than before."""
        now = environment(self.device, self.processes.num_processes)
        if self.environments and self.environments[-1] != now and self.processes.is_main_process:
            warnings.warn(f"{self.path} {explain_change(self.environments[-1], now)}", stacklevel=1)
        if self.environments[-1:] != [now]:
            self.environments.append(now)
            stored = self.settings | {ENVIRONMENTS: self.environments}
            self.write(lambda: write_json(self.path / SETTINGS, stored))

    def setting(self, name: str) -> Any:
        """Return a setting; one that is not stored is what the earlier version meant that began the run."""
        return (MEANT | self.settings)[name]

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a stage, unless it is finished.

        Args:
            name: The stage's name.
            work: Computes the stage's record, plain JSON.

        Returns:
            The record, and the "seconds" that `work` took in the process that finished it.
        """
        record = self.path / "stages" / f"{name}.json"
        # asked of one process for all, because each for itself might find what another has just written
        if name in self._ended or self.compute_once(lambda: self.is_finished(name)):
            self._ended.add(name)
            return read_json(record)
        self._note_environment()
        set_seed(self.seed)
        self.log("begin", stage=name)
        began = time.perf_counter()
        values = work()
        seconds = time.perf_counter() - began
        self.write(lambda: write_json(record, replace_nonfinite(values) | {"seconds": seconds}))
        self.log("end", stage=name, seconds=seconds)
        self._ended.add(name)
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
            with (self.path / LOG).open("a") as file:
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
    check_settings(path, read_json(path / SETTINGS), settings)


def check_settings(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError if a setting differs that a stage has read which is finished or begun.

    A setting is read by the stage that `read_by` names, those that it does not name by the first.
    """
    reads = read_by(now)
    stages = list(reads)
    begun = [stage for stage in stages if is_begun(path, stage)]
    if not begun:
        return
    later = {name for stage in stages[stages.index(begun[-1]) + 1 :] for name in reads[stage]}
    free = {*later, *OF_ENVIRONMENT, ENVIRONMENTS}
    before, now = MEANT | before, MEANT | now
    kept, asked = ({key: value[key] for key in value if key not in free} for value in (before, now))
    different = list_differences(kept, asked)
    if different:
        more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise UserError(
            f"{path} was begun with other settings: {'; '.join(different[:SHOWN])}{more}. What is done depends on "
            f"them (stages {', '.join(begun)}): resume with the same ones, or choose another folder."
            + suggest_removal(path, before, now, begun)
        )


def suggest_removal(path: Path, before: dict[str, Any], now: dict[str, Any], begun: list[str]) -> str:
    """Say how to begin the last stage again, if it is unfinished, and no other has read what differs."""
    last = begun[-1]
    unfinished = not (path / "stages" / f"{last}.json").exists()
    changed = {key for key in {**before, **now} if before.get(key) != now.get(key)}
    if unfinished and changed <= {*read_by(now)[last], *OF_ENVIRONMENT, ENVIRONMENTS}:
        return f" To compute stage {last} anew with the new ones, remove {path / last} and resume."
    return ""


def is_begun(path: Path, stage: str) -> bool:
    """Return whether a stage is finished, or has left a checkpoint."""
    return (path / "stages" / f"{stage}.json").exists() or any((path / stage).glob("*"))


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
    log = path / LOG
    if log.exists():
        whole, newline, torn = log.read_bytes().rpartition(b"\n")
        if torn:
            log.write_bytes(whole + newline)


def remove_unused(path: Path) -> None:
    """Remove the settings of a run that has begun no stage."""
    if not (path / LOG).exists():
        (path / SETTINGS).unlink(missing_ok=True)


def remove_empty(path: Path) -> None:
    """Remove a folder, unless it holds something."""
    with suppress(OSError):
        path.rmdir()


def replace_nonfinite(value: Any) -> Any:
    """Return `value` with None for numbers that JSON cannot hold: a damaged network's loss may be infinite."""
    if isinstance(value, dict):
        return {key: replace_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
