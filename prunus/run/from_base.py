"""A run that begins with the finished base of another one."""

import os
import shutil
from pathlib import Path
from typing import Any

from prunus.files import read_json, write_json
from prunus.run.folder import ENVIRONMENTS, LOG, SETTINGS, StoredSettings
from prunus.run.loading import BASE
from prunus.run.provenance import FILE
from prunus.run.records import file_of


def begin_from(base: Path, out: Path, settings: dict[str, Any]) -> None:
    """Make a run's folder in which the stage base is finished, whole or not at all; one that is there stays.

    The weights are linked where the file system can, because every file of a run is replaced, never written into.

    Args:
        base: The folder of a run whose stage base is finished, with the same settings of that stage.
        out: The folder to make.
        settings: The contents of its settings.json, but for the environments, which are those of the base.
    """
    if out.exists():
        return
    new = out.with_name(f".{out.name}.new")  # appears as `out` only when it is complete
    shutil.rmtree(new, ignore_errors=True)
    environments = read_json(base / SETTINGS, StoredSettings).environments
    write_json(new / SETTINGS, settings | {ENVIRONMENTS: environments})
    link(base / BASE, new / BASE)
    for file in (base / FILE, base / LOG, file_of(base, "base")):
        copy = new / file.relative_to(base)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
    new.rename(out)


def link(file: Path, to: Path) -> None:
    """Link a file, or copy it where the file system has no links."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)
