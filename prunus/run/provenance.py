"""data.json: what the data of a run were when it began, so that it never goes on with others."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prunus.data import Data, Fingerprint, fingerprint_of_splits, parts_of
from prunus.errors import UserError
from prunus.files import read_json, write_json
from prunus.run.folder import RunFolder

FILE = "data.json"
SAME_FOR_EVERY_SEED = ("test",)  # splits


def fingerprint_of(data: Data) -> Fingerprint:
    """Return the fingerprint of data as they are split now; where a user has made them, one without single images."""
    if data.fingerprint is None:
        return fingerprint_of_splits(data.classes, data.splits)
    return replace(data.fingerprint, splits=parts_of(data.splits))  # a user may have replaced one


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """Read the fingerprint in a run's folder; None if it has none. Raises FileError if it is damaged."""
    path = folder / FILE
    return Fingerprint.from_json(read_json(path), path) if path.exists() else None


def is_trained_on(folder: Path) -> bool:
    """Return whether a run has begun to train, so that something in its folder depends on its data."""
    return (folder / "stages" / "base.json").exists() or any((folder / "base").glob("*"))


def split_of(folder: Path) -> str:
    """Return how a run's data are to be split: as before where it has begun to train, otherwise by content."""
    if not is_trained_on(folder):
        return "content"
    stored = read_fingerprint(folder)
    return "position" if stored is None else stored.split_by


def settle(run: RunFolder, data: Data) -> None:
    """Store what a run's data are, and log it; refuse data that are not those it has trained on.

    Args:
        run: A run that has begun.
        data: Its data.

    Raises:
        UserError: The data have changed; the message says how.
    """
    now = fingerprint_of(data)
    stored = read_fingerprint(run.path) if is_trained_on(run.path) else None
    if stored is not None:
        check_unchanged(run.path, stored, now)
        return
    if is_trained_on(run.path) and run.processes.is_main_process:
        split = " They are split by position, as that version did." if now.split_by == "position" else ""
        warnings.warn(
            f"{run.path} was begun by a version that stored nothing about its data: whether they changed cannot be "
            f"known.{split}",
            UserWarning,
            stacklevel=2,
        )
    run.write(lambda: write_json(run.path / FILE, now.to_json()))
    images = {name: part.images for name, part in now.splits.items()}
    run.log("data", found=now.found, used=now.used, skipped=dict(now.skipped), images=images)
    if now.preprocessing is not None:
        run.log("preprocessing", how=str(now.preprocessing))


def check_unchanged(folder: Path, stored: Fingerprint, now: Fingerprint) -> None:
    """Raise UserError, saying what differs, unless data are those that a run began with.

    Args:
        folder: The run's folder.
        stored: What its data were.
        now: What they are.
    """
    if changes := stored.differences(now):
        raise UserError(
            f"the data of {folder} have changed since it began: {'; '.join(changes)}. Give it the same data, or begin "
            "again in another folder."
        )


def compare_data(folders: Sequence[Path]) -> list[str]:
    """Say which finished runs had other data than the first, and how they differ.

    Args:
        folders: The runs' folders.

    Returns:
        A sentence for each run that differs, and one for those that do not say what their data were.
    """
    found = {folder: read_fingerprint(folder) for folder in folders}
    known = {folder: data for folder, data in found.items() if data is not None}
    lines: list[str] = []
    for first, data in list(known.items())[:1]:
        for folder, other in known.items():
            if changes := data.differences(other, SAME_FOR_EVERY_SEED):
                lines.append(
                    f"{folder} had other data than {first}, so their figures say little about each other: "
                    f"{'; '.join(changes)}."
                )
    silent = [str(folder) for folder in folders if found[folder] is None]
    if silent and len(folders) > 1:
        lines.append(f"Stored nothing about their data, so they may differ: {', '.join(silent)}.")
    return lines
