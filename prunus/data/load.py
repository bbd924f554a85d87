"""Labelled images from a SPEC, split into train, val and test.

    digits   parquet:DIR   imagefolder:DIR   hub:NAME   package.module:callable

Choices are made on `val`: the data set's own, or a share of each class, held out of train by the seed.
No choice is made on `test`; if the data set has none, a fifth of train is held out, the same for every seed. What is
held out is decided by the images' content, so it stays the same whatever is added to the data set.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from prunus.data.asked import AS_EXPECTED, ImageOptions, choose_preprocessing
from prunus.data.decode import GRAY, header
from prunus.data.examples import Examples
from prunus.data.fingerprint import Fingerprint, parts_of
from prunus.data.images import InMemory
from prunus.data.preprocessing import ANY_SIZE, Preprocessing
from prunus.data.randomness import own_randomness
from prunus.data.readers import READERS, Found, Rows, left_out_sentence, read_user
from prunus.data.split import Reader, Split, hold_out, hold_out_by_content
from prunus.data.survey import (
    AFFORDABLE_BYTES,
    AFFORDABLE_IMAGES,
    ALL,
    NOTHING,
    SAMPLE,
    Reading,
    Survey,
    survey,
)
from prunus.data.workers import Workers
from prunus.errors import UserError
from prunus.machine import cores
from prunus.specs import user_object
from prunus.zoo import Expected

TEST_SHARE, TEST_SEED = 0.2, 0
SMALL_SIDE = 64  # pixels; data sets of images up to this size and...
MEMORY_LIMIT_BYTES = 4 * 2**30  # ...up to this many bytes are decoded once and kept in memory
INSPECTED = 64  # images that are opened to find a data set's image size and whether it is gray
NAMED = 10  # unreadable images that an error names


@dataclass(frozen=True)
class Data:
    """A data set in splits.

    Args:
        name: The SPEC, or a name for messages.
        classes: The number of classes; None if the targets are not classes.
        example: One input as a model reads it, with a batch dimension of 1: an image float (1, C, H, W), or any tensor,
            tuple or dict of them.
        train: The examples to train on.
        val: The examples that choices are made on.
        test: The examples that no choice is made on; None: there are none, and results are those on val.
        fingerprint: What the data set is, with the names of the classes and how an image is read; None if a user has
            made the splits.
    """

    name: str
    classes: int | None
    example: Any
    train: Examples
    val: Examples
    test: Examples | None
    fingerprint: Fingerprint | None = None

    @property
    def splits(self) -> dict[str, Examples]:
        """The splits that are there, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def judged(self) -> Examples:
        """The split that models are judged on: test, or val if there is no test."""
        return self.val if self.test is None else self.test


def load_data(
    spec: str,
    *,
    seed: int = 0,
    images: ImageOptions = AS_EXPECTED,
    expected: Expected | None = None,
    classes: int | None = None,
    val_share: float = 0.05,
    skip_broken: bool = False,
    split_by: str = "content",
    workers: int | None = None,
) -> Data:
    """Load the data set that a SPEC names.

    Args:
        spec: digits, parquet:DIR, imagefolder:DIR, hub:NAME or package.module:callable.
        seed: The seed that chooses which part of train becomes `val`.
        images: How images are read, as far as the user says.
        expected: How the model expects its images, as far as it is known (`zoo.expected_images`).
        classes: The number of classes to expect; None: any.
        val_share: The share of each class to hold out as `val`, at least one image.
        skip_broken: Whether to leave out images that cannot be read; otherwise they are an error.
        split_by: "content", or "position" to hold out what versions up to 0.1.0 did, for a run that one of them began.
        workers: The number of processes that read large images; 0: this process reads; None: one for each core, but
            this process for what a user's own code returns.

    Returns:
        The data set, split into train, val and test.

    Raises:
        UserError: The spec is unknown, files are missing, images cannot be read (all are counted, the first are named),
            the data is empty, labels are out of range, or `images` do not fit them.
    """
    source, _, place = spec.partition(":")
    if source in READERS:
        found = READERS[source](place)
    else:
        made = user_object(spec, "data source", [*READERS, "package.module"])()
        if isinstance(made, Data):
            return made
        found = read_user(spec, made)
    number = len(found.class_names or ()) or 1 + int(max(found.tables["train"].labels, default=-1))
    check_labels(spec, found, number)
    if classes not in (None, number):
        raise UserError(f"{spec} has {number} classes, but {classes} were expected.")
    if found.left_out:
        warnings.warn(left_out_sentence(found.left_out), UserWarning, stacklevel=2)
    reading = choose_reading(spec, found.tables, images, expected)
    surveys = {name: survey(table, reading) for name, table in found.tables.items()}
    broken = check_broken(spec, found, surveys, skip_broken)
    splits = split_data(spec, found, surveys, (val_share, seed), split_by)
    if workers is None:
        workers = 0 if any(table.encoded_bytes is None for table in found.tables.values()) else cores()
    splits = with_workers(splits, workers)
    fingerprint = Fingerprint(
        hashed=reading.hashed,
        split_by=split_by,
        classes=number,
        class_names=found.class_names,
        preprocessing=reading.how,
        skipped={**found.left_out, **({"unreadable": broken} if broken else {})},
        splits=parts_of(splits),
        items=list_items(found, surveys),
    )
    train = splits["train"]
    example = train.source.read(train.members[:1], None)
    return Data(spec, number, example, train, splits["val"], splits["test"], fingerprint)


def check_labels(spec: str, found: Found, classes: int) -> None:
    """Raise UserError unless there are images, at least two classes, and every label is a class."""
    for name, table in found.tables.items():
        if not len(table.labels):
            raise UserError(
                f"{spec} is empty: no images in {name!r}. {left_out_sentence(found.left_out)}".rstrip()
            )
        wrong = np.flatnonzero((table.labels < 0) | (table.labels >= classes))
        if len(wrong):
            label, at = table.labels[wrong[0]], wrong[0]
            raise UserError(f"{spec}: label {label} of image {at} in {name!r} is not in 0..{classes - 1}.")
    if classes < 2:
        raise UserError(f"{spec} has a single class; at least two are needed.")


def choose_reading(
    spec: str, tables: dict[str, Rows], images: ImageOptions, expected: Expected | None
) -> Reading:
    """Choose how all splits are read: from memory if train's images are small and of one size, otherwise lazily."""
    train = tables["train"]
    if isinstance(train.rows[0][1], Tensor):
        if images.given:
            raise UserError(
                f"{spec} returns tensors, which are used as they are, so {', '.join(images.given)} would have no "
                "effect; leave it out, or return images."
            )
        return Reading(how=None, in_memory=False, hashed=NOTHING)
    sizes, modes = inspect(train)
    channels = 1 if modes <= GRAY else 3
    side = images.image_size
    sizes = {(side, side)} if side else sizes
    width, height = next(iter(sizes)) if len(sizes) == 1 else (0, 0)
    bytes_each = width * height * channels
    small = 0 < max(width, height) <= SMALL_SIDE and bytes_each * len(train.rows) <= MEMORY_LIMIT_BYTES
    in_memory = small and images.transform is None
    if images.transform is None:
        how = choose_preprocessing(channels, (height, width) if in_memory else None, images, expected)
    else:
        how = try_transform(train, channels, images.transform)
    stored = [table.encoded_bytes for table in tables.values()]
    total = sum(size for size in stored if size is not None)
    few = sum(len(table.rows) for table in tables.values()) <= AFFORDABLE_IMAGES
    affordable = in_memory or (few and total <= AFFORDABLE_BYTES)
    hashed = NOTHING if None in stored else ALL if affordable else SAMPLE
    return Reading(how=how, in_memory=in_memory, hashed=hashed, opened=few)


def try_transform(train: Rows, channels: int, transform: str) -> Preprocessing:
    """Make the preprocessing by a user's transform, whose size is that of its answer to the first readable image."""
    how = Preprocessing(
        channels=channels,
        size=ANY_SIZE,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        transform=transform,
        source="the transform as given",
    )
    for row in train.rows:
        try:
            header(*row)
        except UserError:
            continue  # the survey lists it with all others
        with own_randomness():
            height, width = how.transformed(*row).shape[1:]
        return replace(how, size=(height, width))
    return how


def inspect(train: Rows) -> tuple[set[tuple[int, int]], set[str]]:
    """Open some images, and return the sizes and modes of those that are not damaged."""
    sizes, modes = set(), set()
    for index in range(0, len(train.rows), -(-len(train.rows) // INSPECTED)):
        try:
            mode, size = header(*train.rows[index])
        except UserError:
            continue  # the survey lists it with all others
        sizes.add(size)
        modes.add(mode)
    return sizes, modes


def check_broken(spec: str, found: Found, surveys: dict[str, Survey], skip: bool) -> int:
    """Return how many images cannot be read; UserError that names the first unless they are to be skipped."""
    broken = [error for each in surveys.values() for error in each.broken.values()]
    total = sum(len(table.rows) for table in found.tables.values())
    if len(broken) == total:
        raise UserError(f"none of the {total} images of {spec} can be read: {broken[0]}")
    if broken and not skip:
        more = [f"and {len(broken) - NAMED} more"] if len(broken) > NAMED else []
        lines = "\n".join(f"  {line}" for line in [*map(str, broken[:NAMED]), *more])
        raise UserError(
            f"{len(broken)} of {total} images of {spec} cannot be read:\n{lines}\nRepair or remove them, or leave "
            "them out with --skip-broken (skip_broken=True)."
        )
    return len(broken)


def split_data(
    spec: str, found: Found, surveys: dict[str, Survey], val: tuple[float, int], split_by: str
) -> dict[str, Split]:
    """Make the splits of the images that can be read, and hold val and test out of train where they are missing."""
    parts, keys = {}, surveys["train"].keys
    for name, table in found.tables.items():
        whole = np.setdiff1d(np.arange(len(table.labels)), list(surveys[name].broken)).astype(np.int64)
        parts[name] = Split(surveys[name].source, table.labels[whole], whole)
    return hold_out_missing(spec, parts, keys, val, split_by)


def hold_out_missing(
    spec: str, parts: dict[str, Split], keys: np.ndarray, val: tuple[float, int], split_by: str = "content"
) -> dict[str, Split]:
    """Hold val and test out of train where they are missing.

    Args:
        spec: The data set, for errors.
        parts: The splits that are there, train among them.
        keys: A hash of the content of each input in the source of train, uint64 (N,).
        val: The share of train to hold out as val, and the seed.
        split_by: "content" or "position".

    Returns:
        The splits train, val and test.

    Raises:
        UserError: Nothing can be held out, because each class has one example.
    """
    # Data sets with only "train" and "val" publish results on val: it becomes test, and val is held out of train.
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    for name, share, seed in (("test", TEST_SHARE, TEST_SEED), ("val", *val)):
        if name not in parts:
            train = parts["train"]
            if split_by == "position":
                rest, held = hold_out(train.labels, share, seed)
            else:
                rest, held = hold_out_by_content(keys[train.members], train.labels, share, (name, seed))
            parts["train"], parts[name] = train.take(rest), train.take(held)
            if not len(held):
                raise UserError(
                    f"{spec} has one example per class; at least two are needed to hold out {name!r}."
                )
    return parts


def with_workers(splits: dict[str, Split], number: int) -> dict[str, Split]:
    """Let processes read the splits' batches, the same ones for splits of one source, unless images are in memory."""
    if not number:
        return splits
    sources = {id(split.source): split.source for split in splits.values()}
    workers = {
        key: Workers(Reader(source), number)
        for key, source in sources.items()
        if not isinstance(source, InMemory)
    }
    return {name: replace(split, workers=workers.get(id(split.source))) for name, split in splits.items()}


def list_items(found: Found, surveys: dict[str, Survey]) -> dict[str, str]:
    """List the class and hash of every image that can be read, by name."""
    return {
        name: f"{label}:{digest}"
        for split, table in found.tables.items()
        for index, (name, label, digest) in enumerate(
            zip(table.names, table.labels.tolist(), surveys[split].digests, strict=True)
        )
        if index not in surveys[split].broken
    }
