"""Data for segmentation: images with the class of every pixel, from a SPEC."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import numpy as np

from prunus.data.asked import AS_EXPECTED, ImageOptions, choose_preprocessing
from prunus.data.decode import header
from prunus.data.fingerprint import Fingerprint, parts_of
from prunus.data.label_folders import FoundMaps, read_label_maps
from prunus.data.label_maps import LARGEST, LabelledImages, read_label_map
from prunus.data.load import MEMORY_LIMIT_BYTES, Data, check_broken, split_data
from prunus.data.pairs import Pairs, Patches
from prunus.data.readers import left_out_sentence
from prunus.data.restoration import (
    check_channels,
    check_count,
    choose_channels,
    choose_reading,
    decoded_bytes,
    read_headers,
)
from prunus.data.split import Split
from prunus.data.survey import Survey, survey
from prunus.errors import UserError
from prunus.machine import cores
from prunus.options import Range, check_value
from prunus.zoo import Expected

READ = ("image_size", "mean", "std")  # the options of images that segmentation takes
SHOWN = 3  # images that an error names
IGNORED = 255  # the usual number of pixels that do not count

IgnoreIndex = Annotated[int, Range(-1, LARGEST - 1, hint="-1 ignores no pixel, 255 is usual")]


@dataclass(frozen=True)
class Look:
    """A label map, looked at: its numbers with how many pixels have each, a hash, (width, height), or what is wrong."""

    counts: Mapping[int, int]
    digest: str
    size: tuple[int, int]
    error: UserError | None = None


def load_label_maps(
    spec: str,
    patches: Patches,
    *,
    ignore_index: int = IGNORED,
    class_names: Sequence[str] = (),
    seed: int = 0,
    val_share: float = 0.05,
    images: ImageOptions = AS_EXPECTED,
    expected: Expected | None = None,
    skip_broken: bool = False,
) -> Data:
    """Load images and label maps: patches of train, and whole images of val and test.

    Args:
        spec: pairs:DIR, parquet:DIR or parquet:FILE.
        patches: How patches are cut out of train; a smaller image gets a border whose pixels do not count.
        ignore_index: The number of pixels that do not count; -1: all count.
        class_names: The names of the classes in the order of their numbers; empty: their numbers, as far as the masks
            of train go.
        seed: The seed that chooses which part of train becomes `val`.
        val_share: The share of the images to hold out as `val` where there is none, at least one image.
        images: The mean and deviation of images, and the side in pixels to which they and their label maps are
            resized, as far as the user says; otherwise they keep their size.
        expected: How the model expects its images, as far as it is known (`zoo.expected_images`).
        skip_broken: Whether to leave out images that cannot be read; otherwise they are an error.

    Returns:
        The data; their example is a patch.

    Raises:
        UserError: An image and its mask differ in size, a mask is missing or holds a number that is no class, all
            pixels of a split are ignored, there are too few images, or some cannot be read.
    """
    check_value("ignore_index", ignore_index, IgnoreIndex)
    refused = [name for name in images.given if name not in READ]
    if refused:
        raise UserError(
            f"{', '.join(refused)} would change images but not their label maps; leave it out. Segmentation takes "
            f"{', '.join(READ)}."
        )
    read = read_label_maps(spec)
    found = read.found
    check_count(spec, found)
    if found.left_out:
        warnings.warn(left_out_sentence(found.left_out), UserWarning, stacklevel=2)
    headers = {name: read_headers(table) for name, table in found.tables.items()}
    channels = {name: choose_channels(each) for name, each in headers.items()}
    check_channels(spec, channels)
    reading = choose_reading(found, channels["train"])
    looks = {name: list(look_at_all(maps)) for name, maps in read.maps.items()}
    surveys = {name: with_maps(survey(table, reading), looks[name]) for name, table in found.tables.items()}
    broken = check_broken(spec, found, surveys, skip_broken)
    check_sizes(read, looks, surveys)
    names = name_classes(spec, looks, class_names, ignore_index)
    check_classes(read, looks, surveys, names, ignore_index)
    splits = split_data(spec, found, surveys, (val_share, seed), "content")
    image_size = images.image_size
    side = image_size or patches.side
    how = replace(
        choose_preprocessing(channels["train"], (side, side), images, expected), interpolation="bilinear"
    )
    keeps = decoded_bytes(headers, channels["train"] + 1) <= MEMORY_LIMIT_BYTES
    labelled = partial(LabelledImages, how=how, size=image_size, ignore_index=ignore_index, keeps=keeps)
    sources = {
        id(surveys[name].source): (labelled(table.rows, read.maps[name]), looks[name])
        for name, table in found.tables.items()
    }
    check_counted(spec, splits, {key: seen for key, (_, seen) in sources.items()}, ignore_index)
    parts = {
        name: Pairs(source=sources[id(split.source)][0], members=split.members)
        for name, split in splits.items()
    }
    side = min(patches.side, image_size or patches.side)
    parts["train"] = replace(parts["train"], patches=replace(patches, side=side))
    example, _ = next(parts["train"].batches(1))
    fingerprint = Fingerprint(
        hashed=reading.hashed,
        split_by="content",
        classes=None,  # of whole images
        class_names=names,
        preprocessing=how,
        skipped={**found.left_out, **({"unreadable": broken} if broken else {})},
        splits=parts_of(splits),
        items={
            image: f"{look.digest}:{digest}"
            for split, table in found.tables.items()
            for index, (image, look, digest) in enumerate(
                zip(table.names, looks[split], surveys[split].digests, strict=True)
            )
            if index not in surveys[split].broken
        },
    )
    return Data(spec, len(names), example, parts["train"], parts["val"], parts["test"], fingerprint)


def look_at_all(maps: Sequence) -> Iterator[Look]:
    """Look at every label map, in order."""
    with ThreadPoolExecutor(cores()) as pool:
        yield from pool.map(look_at, maps)


def look_at(row: tuple) -> Look:
    """Read a label map and count its numbers."""
    try:
        values = read_label_map(*row)
    except UserError as error:
        return Look({}, "", (0, 0), error)
    numbers, counts = np.unique(values, return_counts=True)
    digest = hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()
    height, width = values.shape
    return Look(dict(zip(numbers.tolist(), counts.tolist(), strict=True)), digest, (width, height))


def with_maps(survey: Survey, looks: Sequence[Look]) -> Survey:
    """Add the label maps that cannot be read to what was found broken."""
    wrong = {index: look.error for index, look in enumerate(looks) if look.error is not None}
    return replace(survey, broken={**wrong, **survey.broken})


def check_sizes(read: FoundMaps, looks: Mapping[str, Sequence[Look]], surveys: Mapping[str, Survey]) -> None:
    """Raise UserError, with the first ones, if images and their label maps differ in size."""
    wrong: list[str] = []
    for split, table in read.found.tables.items():
        for index, (row, look) in enumerate(zip(table.rows, looks[split], strict=True)):
            if index in surveys[split].broken:
                continue
            (width, height), (map_width, map_height) = header(*row)[1], look.size
            if (width, height) != (map_width, map_height):
                wrong.append(f"{table.names[index]} is {width}x{height}, its mask {map_width}x{map_height}")
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UserError(
            f"{len(wrong)} images and their masks differ in size: {'; '.join(wrong[:SHOWN])}{more} (photographs are "
            "turned upright first). Resize each mask to its image, by the nearest pixel."
        )


def name_classes(
    spec: str, looks: Mapping[str, Sequence[Look]], class_names: Sequence[str], ignore_index: int
) -> tuple[str, ...]:
    """Return the names of the classes; UserError if there are fewer than two."""
    there = sorted({value for look in looks["train"] for value in look.counts} - {ignore_index})
    names = tuple(class_names) or tuple(map(str, range(there[-1] + 1 if there else 0)))
    if len(names) < 2 or len(set(names)) < len(names):
        ignored = any(ignore_index in look.counts for look in looks["train"])
        hint = (
            f" Pixels of {ignore_index} do not count (ignore_index); if they are a class, change that."
            * ignored
        )
        raise UserError(
            f"{spec}: expected at least two classes, each of another name, but the masks of train hold the numbers "
            f"{', '.join(map(str, there)) or 'none'}, and the names are {', '.join(names) or 'none'}.{hint}"
        )
    return names


def check_classes(
    read: FoundMaps,
    looks: Mapping[str, Sequence[Look]],
    surveys: Mapping[str, Survey],
    names: Sequence[str],
    ignore_index: int,
) -> None:
    """Raise UserError, with the first mask, if a number is neither a class nor ignored."""
    for split, table in read.found.tables.items():
        for index, look in enumerate(looks[split]):
            beyond = [value for value in look.counts if value >= len(names) and value != ignore_index]
            if beyond and index not in surveys[split].broken:
                raise UserError(
                    f"the mask of {table.names[index]} in {split!r} holds the number {beyond[-1]}, but there are "
                    f"{len(names)} classes, 0..{len(names) - 1} (from the class names, or the masks of train), and "
                    f"ignored are pixels of {ignore_index}. Correct the mask, or give class_names for all classes, or "
                    f"ignore_index={beyond[-1]}."
                )


def check_counted(
    spec: str, splits: Mapping[str, Split], looks: Mapping[int, Sequence[Look]], ignore_index: int
) -> None:
    """Raise UserError if all pixels of a split are ignored."""
    for name, split in splits.items():
        seen = (looks[id(split.source)][index] for index in split.members.tolist())
        if not any(value != ignore_index for look in seen for value in look.counts):
            raise UserError(
                f"{spec}: all pixels of the {len(split)} masks of {name!r} are {ignore_index}, which does not count "
                "(ignore_index), so there is nothing to learn or judge. Give masks with classes, or another "
                "ignore_index."
            )
