"""Texts that have been checked, their classes numbered: what tasks of language learn from."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunus.data.documents import Columns, Table, read_documents
from prunus.errors import UserError

NAMED = 10  # texts that an error names
UNLABELLED = -100  # the class of a text that has none, as in other libraries


@dataclass(frozen=True)
class Documents:
    """One split: texts, the name of each, and its class, int64 (N,), 0 where none was asked for."""

    texts: list[str]
    names: list[str]
    labels: np.ndarray

    @property
    def digests(self) -> list[bytes]:
        """A hash of each text."""
        return [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in self.texts]

    @property
    def keys(self) -> np.ndarray:
        """The hashes as numbers, uint64 (N,), which decide where a text belongs."""
        return np.array([int.from_bytes(digest, "little") for digest in self.digests], np.uint64)


@dataclass(frozen=True)
class Corpus:
    """What a SPEC names: documents by split, the classes' names (None: not asked for or not stated), and their number.

    skipped: how many texts are not used, by reason.
    """

    splits: dict[str, Documents]
    class_names: tuple[str, ...] | None = None
    classes: int | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)


def read_corpus(spec: str, columns: Columns, *, skip_broken: bool = False) -> Corpus:
    """Read the texts that a SPEC names.

    Args:
        spec: text:FILE, text:DIR, csv:PLACE, jsonl:PLACE or parquet:PLACE.
        columns: The columns of a table; with a label, texts without classes are an error.
        skip_broken: Whether to leave out texts that are empty or cannot be read; otherwise they are an error.

    Returns:
        The texts by split.

    Raises:
        UserError: The spec is unknown, files or columns are missing, texts are empty or no UTF-8 (all are counted, the
            first are named), or classes are missing, unknown, or all -100.
    """
    tables, names = read_documents(spec, columns)
    skipped = check_texts(spec, tables, skip_broken)
    if columns.label is None:
        return Corpus({name: finished(table, {None: 0}) for name, table in tables.items()}, skipped=skipped)
    return number_classes(spec, tables, names, skipped)


def check_texts(spec: str, tables: dict[str, Table], skip_broken: bool) -> dict[str, int]:
    """Leave out of tables the texts that are empty or cannot be read, and count them by reason; or raise UserError."""
    empty: list[str] = []
    unreadable: list[UserError] = []
    for name, table in tables.items():
        good: list[int] = []
        for index, text in enumerate(table.texts):
            if isinstance(text, UserError):
                unreadable.append(text)
            elif text is None or not text.strip():
                empty.append(table.names[index])
            else:
                good.append(index)
        tables[name] = chosen(table, good)
    total = len(empty) + len(unreadable) + sum(len(table.texts) for table in tables.values())
    if (empty or unreadable) and not skip_broken:
        lines = [*map(str, unreadable), *(f"{name} is empty" for name in empty)]
        more = f"\n... and {len(lines) - NAMED} more" if len(lines) > NAMED else ""
        listed = "\n".join(lines[:NAMED])
        raise UserError(
            f"{len(lines)} of {total} texts in {spec} are empty or cannot be read:\n{listed}{more}\nRemove or mend "
            "them, or leave them out with --skip-broken (skip_broken=True)."
        )
    for name, table in tables.items():
        if not table.texts:
            raise UserError(f"{spec} is empty: no texts in {name!r}; give some.")
    counts = {"empty": len(empty), "unreadable": len(unreadable)}
    return {reason: count for reason, count in counts.items() if count}


def chosen(table: Table, positions: Sequence[int]) -> Table:
    """Take the texts at positions."""
    columns = (table.texts, table.names, table.labels)
    return Table(*([column[position] for position in positions] for column in columns))


def finished(table: Table, numbers: Mapping[Any, int]) -> Documents:
    """Return a table whose classes are replaced by their numbers."""
    return Documents(table.texts, table.names, np.array([numbers[each] for each in table.labels], np.int64))


def number_classes(
    spec: str, tables: dict[str, Table], names: tuple[str, ...] | None, skipped: dict[str, int]
) -> Corpus:
    """Number the classes: by the names that are stated, in the order of texts, or as whole numbers from 0."""
    for name, table in tables.items():
        tables[name] = without_unlabelled(f"{name!r} in {spec}", table, skipped)
    train = tables["train"].labels
    kinds = {type(label) for table in tables.values() for label in table.labels}
    if kinds == {int}:
        count = len(names or ()) or 1 + max(train)
        if count > len(train):
            raise UserError(
                f"the classes in {spec} should be numbers from 0, but one of {len(train)} texts has the class "
                f"{max(train)}; number them from 0, or name them by texts."
            )
        numbers = {number: number for number in range(count)}
    elif kinds == {str}:
        names = names or tuple(sorted(set(train)))
        count, numbers = len(names), {name: number for number, name in enumerate(names)}
    else:
        words = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(
            f"the classes in {spec} should be texts or whole numbers, but are {words}; give another column with "
            "--label-column (label_column=...)."
        )
    if count < 2:
        raise UserError(f"{spec} has one class, {train[0]!r}; at least two are needed to classify texts.")
    for table in tables.values():
        for where, label in zip(table.names, table.labels, strict=True):
            if label not in numbers:
                raise UserError(
                    f"{where} in {spec} has the class {label!r}, which is none of the {count} classes of train; "
                    "correct it, or give train a text of this class."
                )
    splits = {name: finished(table, numbers) for name, table in tables.items()}
    return Corpus(splits, names, count, skipped)


def without_unlabelled(where: str, table: Table, skipped: dict[str, int]) -> Table:
    """Leave out texts of the class -100, and count them; UserError if all are, or some have no class at all."""
    missing = [name for name, label in zip(table.names, table.labels, strict=True) if label in (None, "")]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(table.texts)} texts of {where} have no class, the first is {missing[0]}; give "
            f"each its class, or the number {UNLABELLED}, which leaves it out."
        )
    kept = [index for index, label in enumerate(table.labels) if label != UNLABELLED]
    if not kept:
        raise UserError(
            f"all {len(table.texts)} texts of {where} have the class {UNLABELLED}, which means none; give texts with "
            "classes, or another column with --label-column (label_column=...)."
        )
    left_out = len(table.texts) - len(kept)
    if left_out:
        skipped["without class"] = skipped.get("without class", 0) + left_out
    return chosen(table, kept)
