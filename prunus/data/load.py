"""Labelled pictures by a short name, split into train, val and test.

    digits   parquet:DIR   imagefolder:DIR   hub:NAME   package.module:callable

`val` is what choices are made on: the set's own, or a seeded slice held out of train, an equal share of
each class.
`test` is never chosen on; where a set has none, a fixed fifth is put aside, the same for every seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from prunus.data.images import InMemory, Lazy, Ready, decoded, opened
from prunus.data.readers import READERS, Table, read_user
from prunus.data.split import Source, Split
from prunus.errors import UserError
from prunus.specs import user_object

TEST_SHARE, TEST_SEED = 0.2, 0
SMALL_SIDE = 64  # pixels; sets of pictures up to this size and...
MEMORY_LIMIT_BYTES = 4 * 2**30  # ...this many bytes are decoded once and kept
LARGE_SIDE = 224  # pixels; the size larger or varied pictures are brought to, unless asked otherwise
LOOKED_AT = 64  # pictures, to find a set's size and whether it is gray


@dataclass(frozen=True)
class Data:
    """Labelled pictures. example: float (1, C, H, W), one of them as a model gets it."""

    name: str
    classes: int | None  # None: the targets are not classes
    example: Tensor
    train: Split
    val: Split
    test: Split


def load_data(
    spec: str,
    *,
    seed: int = 0,
    image_size: int | None = None,
    classes: int | None = None,
    val_share: float = 0.05,
) -> Data:
    """The data set `spec` names.

    seed: which part of train becomes `val`; image_size: the side in pixels all pictures are brought to;
    classes: how many there should be; val_share: of each class, at least one picture.
    Raises UserError for a spec nobody knows, missing or damaged files, empty data, and labels out of range.
    """
    source, _, place = spec.partition(":")
    if source in READERS:
        tables, found = READERS[source](place)
    else:
        made = user_object(spec, "data source", [*READERS, "package.module"])()
        if isinstance(made, Data):
            return made
        tables, found = read_user(spec, made)
    found = found or 1 + int(max(tables["train"].labels, default=-1))
    check_labels(spec, tables, found)
    if classes not in (None, found):
        raise UserError(f"{spec} has {found} classes, but {classes} were asked for.")
    return split(spec, tables, found, image_size, (val_share, seed))


def check_labels(spec: str, tables: dict[str, Table], classes: int) -> None:
    """Raise UserError unless there are pictures, two classes at least, and every label is one of them."""
    for name, table in tables.items():
        if not len(table.labels):
            raise UserError(f"{spec} is empty: no pictures in {name!r}.")
        wrong = np.flatnonzero((table.labels < 0) | (table.labels >= classes))
        if len(wrong):
            label, at = table.labels[wrong[0]], wrong[0]
            raise UserError(f"{spec}: label {label} of picture {at} in {name!r} is not in 0..{classes - 1}.")
    if classes < 2:
        raise UserError(f"{spec} has a single class; at least two are needed.")


def split(spec: str, tables: dict, classes: int, image_size: int | None, val: tuple[float, int]) -> Data:
    """Give every table a source of its own, and set aside what is missing of val and test."""
    make = source_maker(tables["train"], image_size)
    parts = {name: Split(make(t), t.labels, np.arange(len(t.labels))) for name, t in tables.items()}
    # Folders with only "train" and "val" use val as their test set; what is chosen on is held out of train.
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    for name, share, seed in (("test", TEST_SHARE, TEST_SEED), ("val", *val)):
        if name not in parts:
            parts["train"], parts[name] = parts["train"].hold_out(share, seed)
            if not len(parts[name]):
                raise UserError(f"{spec} has one picture a class; more are needed to put some aside.")
    train = parts["train"]
    example = train.source.read(train.members[:1], None)
    return Data(spec, classes, example, train, parts["val"], parts["test"])


def source_maker(train: Table, image_size: int | None) -> Callable[[Table], Source]:
    """A function from tables to sources: in memory if train's pictures are small and of one size, else lazy."""
    if isinstance(train.rows[0][1], Tensor):
        return lambda table: Ready(table.rows)
    looked_at = range(0, len(train.rows), -(-len(train.rows) // LOOKED_AT))
    pictures = [opened(*train.rows[index]) for index in looked_at]
    planes = 1 if {picture.mode for picture in pictures} <= {"1", "L"} else 3
    sizes = {(image_size, image_size)} if image_size else {picture.size for picture in pictures}
    size = sizes.pop()
    bytes_each = size[0] * size[1] * planes
    if sizes or max(size) > SMALL_SIDE or bytes_each * len(train.rows) > MEMORY_LIMIT_BYTES:
        return lambda table: Lazy(table.rows, image_size or LARGE_SIDE, planes)
    return lambda table: in_memory(table, size, planes)


def in_memory(table: Table, size: tuple[int, int], planes: int) -> Source:
    """Decode the whole table, about 20,000 a second; for pictures this small a second thread only costs time."""
    pixels = np.empty((len(table.labels), size[1], size[0], planes), np.uint8)
    for index, (name, data) in enumerate(table.rows):
        picture = decoded(name, data, planes)
        picture = picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)
        pixels[index] = np.asarray(picture).reshape(pixels.shape[1:])
    return InMemory(pixels)
