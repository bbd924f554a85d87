"""Reading images without labels: folders and parquet files.

imagefolder:DIR   all images below DIR/train, and DIR/test or DIR/val; or all below DIR, which is split later
parquet:DIR       the column of images in train*.parquet, and test*.parquet or val*.parquet
parquet:FILE      the column of images in one file, which is split later
"""

from collections import Counter
from collections.abc import Callable

import numpy as np

from prunus.data.readers import (
    IMAGE_COLUMNS,
    SPLITS,
    Found,
    Rows,
    encoded_column,
    file_rows,
    find_folder,
    list_images,
    number,
    open_tables,
    subfolders,
)
from prunus.errors import UserError, unknown


def read_unlabelled(spec: str) -> Found:
    """Read images by split; the label of each is 0.

    Args:
        spec: imagefolder:DIR, parquet:DIR or parquet:FILE.

    Returns:
        The images as stored; nothing is decoded.

    Raises:
        UserError: The spec is unknown, files are missing, or a table has no column of images.
    """
    kind, _, place = spec.partition(":")
    if kind not in READERS:
        raise unknown("source of images without labels", spec, [f"{name}:PLACE" for name in READERS])
    return READERS[kind](place)


def read_images(place: str) -> Found:
    """Read the images below a folder, in whatever folders they are."""
    folder = find_folder("imagefolder", place)
    parts = {SPLITS[part.name]: part for part in subfolders(folder) if part.name in SPLITS}
    parts = parts if "train" in parts else {"train": folder}
    left_out: Counter[str] = Counter()
    tables: dict[str, Rows] = {}
    for name, part in parts.items():
        paths = list_images(part, folder, left_out)
        tables[name] = file_rows(paths, np.zeros(len(paths), np.int64), folder)
    return Found(tables, left_out=left_out)


def read_tables(place: str) -> Found:
    """Read the column of images of parquet files."""
    tables: dict[str, Rows] = {}
    for name, part in open_tables("parquet", place).items():
        column = next((each for each in IMAGE_COLUMNS if each in part.column_names), None)
        if column is None:
            raise UserError(
                f"{place} has the columns {', '.join(part.column_names)}; expected one of images, called "
                f"{' or '.join(IMAGE_COLUMNS)}."
            )
        rows = encoded_column(part, column, f"{name!r} in {place}")
        tables[name] = Rows(rows, np.zeros(len(rows), np.int64), number(name, len(rows)), part.data.nbytes)
    return Found(tables)


READERS: dict[str, Callable[[str], Found]] = {"imagefolder": read_images, "parquet": read_tables}
