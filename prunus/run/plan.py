"""plan.json: how many epochs a recovery takes whose time was given, stored before it starts."""

from pathlib import Path
from typing import ClassVar

from prunus.files import Amount, Record, read_json, write_json
from prunus.run.folder import RunFolder

FILE = Path("recover") / "plan.json"


class Plan(Record, frozen=True, kw_only=True):
    """The contents of the file."""

    remedy: ClassVar[str] = "Remove the folder recover, and continue with --resume, which plans again."
    epochs: Amount


def read_plan(folder: Path) -> float | None:
    """Return the number of epochs that is planned in a run's folder, None if none is; FileError for a damaged file."""
    file = folder / FILE
    return read_json(file, Plan).epochs if file.exists() else None


def write_plan(run: RunFolder, epochs: float) -> None:
    """Store the number of epochs."""
    file = run.folder(FILE.parent.name) / FILE.name
    run.write(lambda: write_json(file, {"epochs": epochs}))
