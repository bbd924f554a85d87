"""Targets from the columns of tables: numbers to predict, or labels of which several may be true."""

from collections.abc import Mapping, Sequence

import numpy as np

from prunus.data.rows import Targets
from prunus.data.tables import Table
from prunus.errors import UserError

SHOWN = 3  # labels in an error


def read_numbers(tables: Mapping[str, Table], columns: Sequence[str]) -> Targets:
    """Read columns of numbers to predict.

    Args:
        tables: The tables by split.
        columns: The columns.

    Returns:
        The targets.

    Raises:
        UserError: A column is missing, or holds something else than finite numbers.
    """
    values = {name: table.numbers(columns).astype(np.float32) for name, table in tables.items()}
    return Targets(names=tuple(columns), columns=tuple(columns), values=values)


def read_labels(tables: Mapping[str, Table], columns: Sequence[str]) -> Targets:
    """Read labels: from one column that lists them, or from a column of 0 and 1 for each.

    Args:
        tables: The tables by split.
        columns: The column of lists, or those of 0 and 1.

    Returns:
        The targets, 0 and 1; the labels of a column of lists are sorted.

    Raises:
        UserError: A column is missing or holds something else, a label of val or test is unknown in train, or one is
            never true in train.
    """
    if len(columns) > 1 or tables["train"].is_numeric(columns[0]):
        names, values = tuple(columns), {name: zeros_and_ones(t, columns) for name, t in tables.items()}
    else:
        lists = {name: table.label_lists(columns[0]) for name, table in tables.items()}
        names = tuple(sorted({label for row in lists["train"] for label in row}))
        values = {name: indicators(tables[name], rows, names) for name, rows in lists.items()}
    if not names:
        raise UserError(f"column {columns[0]!r} of {tables['train'].where} holds no label in any row.")
    never = [name for name, count in zip(names, values["train"].sum(0), strict=True) if not count]
    if never:
        raise UserError(
            f"label {never[0]!r} is true in no row of {tables['train'].where}, so it cannot be learned; leave it out."
        )
    return Targets(names=names, columns=tuple(columns), values=values)


def zeros_and_ones(table: Table, columns: Sequence[str]) -> np.ndarray:
    """Read columns of 0 and 1, float32 (rows, columns); UserError, with the first row, for other numbers."""
    found = table.numbers(columns)
    wrong = np.argwhere((found != 0) & (found != 1))
    if len(wrong):
        row, column = wrong[0]
        raise UserError(
            f"column {columns[column]!r} of {table.where} should hold 0 and 1, but row {row + 1} holds "
            f"{found[row, column]:g}. Give one column of 0 and 1 for each label, or one that lists labels (cat;dog)."
        )
    return found.astype(np.float32)


def indicators(table: Table, rows: Sequence[Sequence[str]], names: Sequence[str]) -> np.ndarray:
    """Return for each row which labels it has, float32 (rows, labels); UserError if one is unknown."""
    numbers = {name: number for number, name in enumerate(names)}
    unknown = [(row, label) for row, labels in enumerate(rows) for label in labels if label not in numbers]
    if unknown:
        (row, label), known = unknown[0], ", ".join(names[:SHOWN])
        raise UserError(
            f"row {row + 1} of {table.where} has the label {label!r}, which no row of train has ({known}, "
            f"{len(names)} in all). Correct it, or add examples of it to train."
        )
    found = np.zeros((len(rows), len(names)), np.float32)
    for row, labels in enumerate(rows):
        found[row, [numbers[label] for label in labels]] = 1
    return found
