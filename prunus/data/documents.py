"""Texts as files hold them, with their classes where a task asks for them.

    text:FILE          paragraphs, which blank lines divide
    text:DIR           the .txt files below DIR, or below DIR/train, DIR/test and DIR/val, by class
    csv:PLACE   jsonl:PLACE   parquet:PLACE
                       a column of texts, and one of classes, of a file, or of train*, test* and val* in a folder

Nothing is checked but that it can be read, and nothing is turned into tokens here.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.data.readers import SPLITS, find_folder, is_visible, open_tables, subfolders
from prunus.errors import UserError, unknown
from prunus.files import expand_home

TABLES = ("csv", "jsonl", "parquet")
SOURCES = ("text", *TABLES)


@dataclass(frozen=True)
class Table:
    """One split: texts, the name of each, and the class of each as it was found, None where none was asked for.

    A text that cannot be read is a UserError in its place.
    """

    texts: list[Any]
    names: list[str]
    labels: list[Any]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table: of the texts, and of their classes; label is None if no classes are asked for."""

    text: str = "text"
    label: str | None = None


def read_documents(spec: str, columns: Columns) -> tuple[dict[str, Table], tuple[str, ...] | None]:
    """Read the texts that a SPEC names.

    Args:
        spec: text:FILE, text:DIR, csv:PLACE, jsonl:PLACE or parquet:PLACE.
        columns: The columns of a table.

    Returns:
        Tables by split, and the names of the classes if the data set states them.

    Raises:
        UserError: The spec is unknown, files or columns are missing, or classes are asked of one text file.
    """
    kind, _, place = spec.partition(":")
    if kind not in SOURCES:
        raise unknown("source of texts", spec, [f"{name}:PLACE" for name in SOURCES])
    if kind == "text":
        return read_text(place, by_class=columns.label is not None), None
    return read_columns(kind, place, columns)


def read_text(place: str, *, by_class: bool) -> dict[str, Table]:
    """Read text files."""
    path = expand_home(place)
    if path.is_file():
        if by_class:
            raise UserError(
                f"text:{place} is one file, so its texts have no classes. Give text:DIR with a folder of .txt files "
                "for each class, or csv:FILE, jsonl:FILE or parquet:FILE with a column of classes."
            )
        return {"train": paragraphs(path)}
    folder = find_folder("text", place, expected="a file or a folder")
    parts = {SPLITS[part.name]: part for part in subfolders(folder) if part.name in SPLITS}
    parts = parts if "train" in parts else {"train": folder}
    return {name: text_files(part, folder, by_class) for name, part in parts.items()}


def paragraphs(path: Path) -> Table:
    """Read the paragraphs of a file, which blank lines divide."""
    text = read_utf8(path)
    if isinstance(text, UserError):
        raise text
    parts = [part for part in re.split(r"\n(?:[^\S\n]*\n)+", text) if part.strip()]
    return Table(
        parts or [""], [f"paragraph {number}" for number in range(1, len(parts) + 1)] or [path.name],
        [None] * max(1, len(parts)),
    )  # fmt: skip


def text_files(part: Path, root: Path, by_class: bool) -> Table:
    """Read the .txt files below a folder; the class of each is the folder in `part` that it lies in."""
    paths = [path for path in sorted(part.rglob("*.txt")) if is_visible(path, root)]
    if not paths:
        raise UserError(f"{part} is empty: no .txt files below it.")
    loose = [path.name for path in paths if path.parent == part]
    if by_class and loose:
        raise UserError(
            f"{part} holds {loose[0]} beside the folders of its classes; expected {part}/CLASS/NAME.txt for each text."
        )
    labels = [path.relative_to(part).parts[0] if by_class else None for path in paths]
    names = [path.relative_to(root).as_posix() for path in paths]
    return Table([read_utf8(path) for path in paths], names, labels)


def read_utf8(path: Path) -> str | UserError:
    """Read a text file, or return the error of reading it."""
    content = path.read_bytes()
    try:
        return content.decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        return UserError(
            f"{path} is no UTF-8: byte {content[error.start]:#04x} at position {error.start} ({error.reason}); "
            "convert it, for example by iconv -f latin1 -t utf-8."
        )


def read_columns(kind: str, place: str, columns: Columns) -> tuple[dict[str, Table], tuple[str, ...] | None]:
    """Read the columns of tables, and the classes' names if the data set states them."""
    # pandas would read the text "NA" as a missing number
    how: dict[str, Any] = {"keep_default_na": False} if kind == "csv" else {}
    found = open_tables(kind, place, **how)
    wanted = {"text": columns.text} | ({} if columns.label is None else {"label": columns.label})
    tables: dict[str, Table] = {}
    for name, part in found.items():
        for what, column in wanted.items():
            if column not in part.column_names:
                raise UserError(
                    f"{name!r} in {kind}:{place} has no column {column!r}, but {', '.join(part.column_names)}; give "
                    f"the right one with --{what}-column ({what}_column=...)."
                )
        texts = list(part[columns.text])
        strange = [text for text in texts if text is not None and not isinstance(text, str)]
        if strange:
            raise UserError(
                f"column {columns.text!r} of {name!r} in {kind}:{place} should hold texts, but holds {strange[0]!r}, a "
                f"{type(strange[0]).__name__}; give the right one with --text-column (text_column=...)."
            )
        labels = [None] * len(texts) if columns.label is None else list(part[columns.label])
        tables[name] = Table(texts, [f"{name} {index}" for index in range(len(texts))], labels)
    names = getattr(found["train"].features.get(columns.label), "names", None)
    return tables, names and tuple(names)
