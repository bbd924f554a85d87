"""The answers of `prunus predict`: as a table, as JSON, and as files where they are images."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from prunus.errors import UserError
from prunus.files import write_atomic
from prunus.tasks import Answer


def answers_table(files: Sequence[Path], found: Sequence[Answer], written: Sequence[Path | None]) -> Table:
    """A table of files, each with its answer, and where an image was written."""
    table = Table()
    for heading in ("file", *found[0].columns, *(["written to"] if any(written) else [])):
        table.add_column(heading, overflow="fold", justify="right" if heading == "probability" else "left")
    for file, answer, path in zip(files, found, written, strict=True):
        for rank, row in enumerate(answer.rows):
            first = "" if rank else str(file)
            table.add_row(*map(Text, (first, *row, *([str(path)] if path and not rank else []))))
    return table


def answers_json(files: Sequence[Path], found: Sequence[Answer], written: Sequence[Path | None]) -> str:
    """The same as JSON: a list of {"file": ..., the answer}, of classifiers "classes", each with its probability."""
    rows = [
        {"file": str(file)} | answer.json | ({"written": str(path)} if path else {})
        for file, answer, path in zip(files, found, written, strict=True)
    ]
    return json.dumps(rows, indent=1, default=str)


def write_images(files: Sequence[Path], found: Sequence[Answer], out: Path | None) -> list[Path | None]:
    """Write the answers that are images to a folder; return the path of each, None for other answers."""
    written = [
        out and out / f"{file.stem}.png" if answer.image else None
        for file, answer in zip(files, found, strict=True)
    ]
    paths = [path for path in written if path is not None]
    if any(answer.image for answer in found) and out is None:
        raise UserError("the answers are images: say where to write them, for example --out restored/.")
    taken = [
        path
        for path in paths
        if paths.count(path) > 1 or path.resolve() in [file.resolve() for file in files]
    ]
    if taken:
        raise UserError(
            f"{taken[0]} would be written for two files, or in the place of one: rename them, or answer them one "
            "by one with another --out."
        )
    for path, answer in zip(written, found, strict=True):
        if path is not None and answer.image is not None:
            image = answer.image
            write_atomic(path, lambda temporary, image=image: image.save(temporary, format="PNG"))
    return written
