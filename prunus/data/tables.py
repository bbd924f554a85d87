"""Tables of rows, each an example: columns of numbers, texts or images, read from files.

csv:PLACE   jsonl:PLACE   parquet:PLACE
            a file, which is split later, or a folder with train*, and test* or val*, of that kind

An image stands in a column as the name of a file, as seen from the folder, or encoded (parquet).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunus.data.readers import IMAGE_COLUMNS, Rows, encoded_column, number, open_tables
from prunus.errors import UserError, unknown
from prunus.files import expand_home

KINDS = ("csv", "jsonl", "parquet")
FILE_COLUMNS = (*IMAGE_COLUMNS, "file", "file_name", "filename", "path")  # of images, unless one is named
SEPARATORS = re.compile("[;|,]")  # between the labels in a text


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of one split.

    Args:
        spec: The SPEC that it was read from.
        split: The name of the split.
        part: The data set of the library `datasets`.
        folder: The folder below which files are named.
    """

    spec: str
    split: str
    part: Any
    folder: Path

    def __len__(self) -> int:
        return len(self.part)

    @property
    def where(self) -> str:
        """The place, for messages."""
        return f"{self.split!r} in {self.spec}"

    def column(self, name: str) -> Any:
        """Return a column as an Arrow array; UserError, with the nearest names, if there is none."""
        if name not in self.part.column_names:
            error = unknown(f"column of {self.where}", name, self.part.column_names)
            raise UserError(
                f"{error} Name the right one with --target, --labels, --features or --image-column (target=..., ...)."
            )
        return self.part.with_format("arrow")[:][name]

    def is_numeric(self, name: str) -> bool:
        """Return whether a column holds numbers, or True and False."""
        return kind_of(self.column(name)) in "biuf"

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Read columns of numbers.

        Args:
            names: The columns.

        Returns:
            The numbers, float64 (rows, columns).

        Raises:
            UserError: A column is not there, or holds something else than finite numbers; the first such row is named.
        """
        return np.stack([self._numbers(name) for name in names], 1)

    def _numbers(self, name: str) -> np.ndarray:
        column = self.column(name)
        if kind_of(column) not in "biuf":
            values = column.to_pylist()
            row = next((row for row, value in enumerate(values) if not is_number(value)), 0)
            raise UserError(
                f"column {name!r} of {self.where} should hold numbers, but row {row + 1} holds "
                f"{values[row] if values else None!r}. Correct it, or name other columns."
            )
        found = np.asarray(column.to_numpy(), np.float64)
        wrong = np.flatnonzero(~np.isfinite(found))
        if len(wrong):
            raise UserError(
                f"column {name!r} of {self.where}: {len(wrong)} of {len(found)} rows hold no finite number; the first "
                f"is row {wrong[0] + 1}, {found[wrong[0]]}. Fill them, or remove these rows."
            )
        return found

    def label_lists(self, name: str) -> list[list[str]]:
        """Read a column of labels: a list for each row, or a text in which ; | or , divides them; none is empty."""
        rows = self.column(name).to_pylist()
        return [
            [label.strip() for label in SEPARATORS.split(row) if label.strip()]
            if isinstance(row, str)
            else [str(label) for label in row or ()]
            for row in rows
        ]

    def images(self, name: str) -> Rows:
        """Return the rows of a column of images, not decoded; the label of each is 0."""
        values = self.column(name)
        labels = np.zeros(len(self), np.int64)
        if kind_of(values) != "U":
            rows = encoded_column(self.part, name, self.where)
            return Rows(rows, labels, number(self.split, len(self)), self.part.data.nbytes)
        paths = [None if value is None else self.folder / value for value in values.to_pylist()]
        rows = [
            (f"row {index + 1} of {self.where}" if path is None else str(path), path)
            for index, path in enumerate(paths)
        ]
        names = [f"{self.split} {index} {value}" for index, value in enumerate(values.to_pylist())]
        size = sum(path.stat().st_size for path in paths if path is not None and path.is_file())
        return Rows(rows, labels, names, size)


def read_tables(spec: str) -> dict[str, Table]:
    """Open the tables that a SPEC names, by split.

    Args:
        spec: csv:PLACE, jsonl:PLACE or parquet:PLACE.

    Returns:
        The tables; without splits all rows are "train".

    Raises:
        UserError: The spec is unknown, files are missing or damaged, or a table has no row.
    """
    kind, _, place = spec.partition(":")
    if kind not in KINDS:
        raise unknown("source of tables", spec, [f"{name}:PLACE" for name in KINDS])
    path = expand_home(place)
    folder = path.parent if path.is_file() else path
    found = {
        name: Table(spec=spec, split=name, part=part, folder=folder)
        for name, part in open_tables(kind, place).items()
    }
    for table in found.values():
        if not len(table):
            raise UserError(f"{spec} is empty: no rows in {table.split!r}.")
    return found


def kind_of(column: Any) -> str:
    """Return the letter of numpy's kind for an Arrow array: "U" for texts, "O" for all that numpy has no kind for."""
    import pyarrow  # slow to import, needed here only

    kind = column.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return "U"
    try:
        return np.dtype(kind.to_pandas_dtype()).kind
    except (NotImplementedError, TypeError):
        return "O"


def is_number(value: Any) -> bool:
    """Return whether a cell could be read as a number."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
