"""A new folder for a command that was given none."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path


@contextmanager
def new_folder(wanted: Path) -> Iterator[Path]:
    """Make a folder that is this process's alone, and remove it at the end if nothing was written to it.

    Args:
        wanted: The folder; if it is there already, the first free number is appended.

    Yields:
        The folder.
    """
    folder = wanted
    for number in count(2):
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            folder = wanted.with_name(f"{wanted.name}-{number}")
    try:
        yield folder
    finally:
        with suppress(OSError):  # it holds something
            folder.rmdir()
