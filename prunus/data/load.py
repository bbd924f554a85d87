"""Labelled images from a SPEC, split into train, val and test.

    digits   parquet:DIR   imagefolder:DIR   hub:NAME   package.module:callable

Choices are made on `val`: the data set's own, or an equal share of each class, held out of train by the seed.
No choice is made on `test`; if the data set has none, a fifth of train is held out, the same for every seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from prunus.data.images import InMemory, Lazy, Tensors, decode, open_image
from prunus.data.readers import READERS, Rows, read_user
from prunus.data.split import Source, Split
from prunus.errors import UserError
from prunus.specs import user_object

TEST_SHARE, TEST_SEED = 0.2, 0
SMALL_SIDE = 64  # pixels; data sets of images up to this size and...
MEMORY_LIMIT_BYTES = 4 * 2**30  # ...up to this many bytes are decoded once and kept in memory
LARGE_SIDE = (
    224  # pixels; the size that larger images or mixed sizes are cropped to, unless `image_size` is given
)
INSPECTED = 64  # images that are opened to find a data set's image size and whether it is gray


@dataclass(frozen=True)
class Data:
    """A data set of labelled images.

    Args:
        name: The SPEC, or a name for messages.
        classes: The number of classes; None if the targets are not classes.
        example: One image as a model reads it, float (1, C, H, W).
        train: The images to train on.
        val: The images that choices are made on.
        test: The images that no choice is made on.
    """

    name: str
    classes: int | None
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
    """Load the data set that a SPEC names.

    Args:
        spec: digits, parquet:DIR, imagefolder:DIR, hub:NAME or package.module:callable.
        seed: The seed that chooses which part of train becomes `val`.
        image_size: The side in pixels that all images are resized to; None: their own, or 224 if large or mixed.
        classes: The number of classes to expect; None: any.
        val_share: The share of each class to hold out as `val`, at least one image.

    Returns:
        The data set, split into train, val and test.

    Raises:
        UserError: The spec is unknown, files are missing or damaged, the data is empty, or labels are out of range.
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
        raise UserError(f"{spec} has {found} classes, but {classes} were expected.")
    return split_data(spec, tables, found, image_size, (val_share, seed))


def check_labels(spec: str, tables: dict[str, Rows], classes: int) -> None:
    """Raise UserError unless there are images, at least two classes, and every label is a class."""
    for name, table in tables.items():
        if not len(table.labels):
            raise UserError(f"{spec} is empty: no images in {name!r}.")
        wrong = np.flatnonzero((table.labels < 0) | (table.labels >= classes))
        if len(wrong):
            label, at = table.labels[wrong[0]], wrong[0]
            raise UserError(f"{spec}: label {label} of image {at} in {name!r} is not in 0..{classes - 1}.")
    if classes < 2:
        raise UserError(f"{spec} has a single class; at least two are needed.")


def split_data(spec: str, tables: dict, classes: int, image_size: int | None, val: tuple[float, int]) -> Data:
    """Make a source for every table, and hold val and test out of train where they are missing."""
    make_source = choose_source(tables["train"], image_size)
    parts = {name: Split(make_source(t), t.labels, np.arange(len(t.labels))) for name, t in tables.items()}
    # Data sets with only "train" and "val" publish results on val: it becomes test, and val is held out of train.
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    for name, share, seed in (("test", TEST_SHARE, TEST_SEED), ("val", *val)):
        if name not in parts:
            parts["train"], parts[name] = parts["train"].hold_out(share, seed)
            if not len(parts[name]):
                raise UserError(
                    f"{spec} has one image per class; at least two are needed to hold out {name!r}."
                )
    train = parts["train"]
    example = train.source.read(train.members[:1], None)
    return Data(spec, classes, example, train, parts["val"], parts["test"])


def choose_source(train: Rows, image_size: int | None) -> Callable[[Rows], Source]:
    """Choose how all splits are read: from memory if train's images are small and of one size, otherwise lazily."""
    if isinstance(train.rows[0][1], Tensor):
        return lambda table: Tensors(table.rows)
    inspected = range(0, len(train.rows), -(-len(train.rows) // INSPECTED))
    images = [open_image(*train.rows[index]) for index in inspected]
    channels = 1 if {image.mode for image in images} <= {"1", "L"} else 3
    sizes = {(image_size, image_size)} if image_size else {image.size for image in images}
    size = sizes.pop()
    bytes_each = size[0] * size[1] * channels
    if sizes or max(size) > SMALL_SIDE or bytes_each * len(train.rows) > MEMORY_LIMIT_BYTES:
        return lambda table: Lazy(table.rows, image_size or LARGE_SIDE, channels)
    return lambda table: decode_all(table, size, channels)


def decode_all(table: Rows, size: tuple[int, int], channels: int) -> Source:
    """Decode all images, about 20,000 per second; for images this small a second thread only costs time."""
    pixels = np.empty((len(table.labels), size[1], size[0], channels), np.uint8)
    for index, (name, data) in enumerate(table.rows):
        image = decode(name, data, channels)
        image = image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
        pixels[index] = np.asarray(image).reshape(pixels.shape[1:])
    return InMemory(pixels)
