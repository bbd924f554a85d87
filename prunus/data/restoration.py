"""Data for restoration: pairs of degraded and clean images, made from the images that a SPEC names."""

import warnings
from collections.abc import Mapping
from dataclasses import replace

from prunus.data.decode import GRAY, header
from prunus.data.degrade import Degradation
from prunus.data.fingerprint import Fingerprint, parts_of
from prunus.data.images import Lazy
from prunus.data.load import MEMORY_LIMIT_BYTES, Data, check_broken, split_data
from prunus.data.pairs import Pairs, PairSource, Patches
from prunus.data.preprocessing import Preprocessing
from prunus.data.readers import Found, Rows, left_out_sentence
from prunus.data.split import Split
from prunus.data.survey import AFFORDABLE_BYTES, ALL, SAMPLE, Reading, survey
from prunus.data.unlabelled import read_unlabelled
from prunus.errors import UserError

LEAST_SIDE = 16  # pixels of a clean image that is evaluated; the window of SSIM takes 11
SHOWN = 3  # images that an error names
LEAST_IMAGES = 3  # of which one each becomes train, val and test


def load_pairs(
    spec: str,
    degradation: Degradation,
    patches: Patches,
    *,
    test: str | None = None,
    seed: int = 0,
    val_share: float = 0.05,
    skip_broken: bool = False,
) -> Data:
    """Load the images that a SPEC names as pairs: patches of train, and whole images of val and test.

    Args:
        spec: imagefolder:DIR, parquet:DIR or parquet:FILE; labels are not needed, and not read.
        degradation: What the images lose.
        patches: How patches are cut out of train.
        test: The SPEC of other images to test on, all of them; None: the data set's own, or a fifth held out.
        seed: The seed that chooses which part of train becomes `val`.
        val_share: The share of the images to hold out as `val` where there is none, at least one image.
        skip_broken: Whether to leave out images that cannot be read; otherwise they are an error.

    Returns:
        The data; their example is a degraded patch.

    Raises:
        UserError: The side of a patch is not a multiple of the scale, an image of train is smaller than a patch,
            another is too small to be evaluated, test is gray where train is in colour or the reverse, there are too
            few images, or some cannot be read.
    """
    check_patches(patches, degradation)
    found = read_unlabelled(spec)
    if test is not None:
        found = with_test(found, read_unlabelled(test))
    check_count(spec, found)
    if found.left_out:
        warnings.warn(left_out_sentence(found.left_out), UserWarning, stacklevel=2)
    headers = {name: read_headers(table) for name, table in found.tables.items()}
    channels = {name: choose_channels(each) for name, each in headers.items()}
    check_channels(spec, channels)
    reading = choose_reading(found, channels["train"])
    surveys = {name: survey(table, reading) for name, table in found.tables.items()}
    broken = check_broken(spec, found, surveys, skip_broken)
    splits = split_data(spec, found, surveys, (val_share, seed), "content")
    keeps = decoded_bytes(headers, channels["train"]) <= MEMORY_LIMIT_BYTES
    parts = make_pairs(splits, degradation, channels["train"], keeps)
    parts["train"] = replace(parts["train"], patches=patches)
    check_sizes(parts, patches.side, degradation.scale)
    example, _ = next(parts["train"].batches(1))
    fingerprint = Fingerprint(
        hashed=reading.hashed,
        split_by="content" if test is None else "given",
        classes=None,
        skipped={**found.left_out, **({"unreadable": broken} if broken else {})},
        splits=parts_of(splits),
        items={
            f"{split} {name}" if test else name: f"0:{digest}"
            for split, table in found.tables.items()
            for index, (name, digest) in enumerate(zip(table.names, surveys[split].digests, strict=True))
            if index not in surveys[split].broken
        },
    )
    return Data(spec, None, example, parts["train"], parts["val"], parts["test"], fingerprint)


def with_test(found: Found, other: Found) -> Found:
    """Replace the test images by all those of another place."""
    (table, *more) = other.tables.values()
    if more:
        raise UserError(
            f"the images to test on have the splits {', '.join(other.tables)}; expected images in one folder or file, "
            "all of which are tested on."
        )
    return replace(found, tables={**found.tables, "test": table})


def check_patches(patches: Patches, degradation: Degradation) -> None:
    """Raise UserError unless patches have a side that the scale divides."""
    scale = degradation.scale
    if patches.side < scale or patches.side % scale:
        near = max(1, round(patches.side / scale)) * scale
        raise UserError(
            f"the side of a patch, {patches.side}, should be a multiple of the scale, {scale}; give {near}."
        )


def check_count(spec: str, found: Found) -> None:
    """Raise UserError if a split is empty, or there are too few images to hold val and test out of train."""
    hint = left_out_sentence(found.left_out)
    for name, table in found.tables.items():
        if not len(table.rows):
            raise UserError(f"{spec} is empty: no images in {name!r}. {hint}".rstrip())
    missing = LEAST_IMAGES - len(found.tables)
    count = len(found.tables["train"].rows)
    if count <= missing:
        raise UserError(
            f"{spec} has {count} image{'s' * (count > 1)} to train on; at least {missing + 1} are needed to hold out "
            f"what it lacks of val and test. {hint}".rstrip()
        )


def read_headers(table: Rows) -> list[tuple[str, tuple[int, int]]]:
    """Read the mode and (width, height) of the images of a table that are not damaged."""
    headers = []
    for row in table.rows:
        try:
            headers.append(header(*row))
        except UserError:
            continue  # the survey lists it with all others
    return headers


def choose_channels(headers: list[tuple[str, tuple[int, int]]]) -> int:
    """Return 1 if all images are gray, otherwise 3: among others, gray images are converted to RGB."""
    return 1 if {mode for mode, _ in headers} <= GRAY else 3


def check_channels(spec: str, channels: Mapping[str, int]) -> None:
    """Raise UserError if the images of one split are all gray, and those of another in colour."""
    words = {1: "gray", 3: "in colour"}
    for name, count in channels.items():
        if count != channels["train"]:
            raise UserError(
                f"{spec}: the images of train are {words[channels['train']]}, those of {name!r} {words[count]}. A "
                "network reads one kind: give images of the same kind for both."
            )


def choose_reading(found: Found, channels: int) -> Reading:
    """Choose how much of each image is hashed and decoded before anything is trained."""
    total = sum(table.encoded_bytes or 0 for table in found.tables.values())
    unchanged = Preprocessing(channels=channels, size=(1, 1), mean=(0.0,) * channels, std=(1.0,) * channels)
    return Reading(how=unchanged, in_memory=False, hashed=SAMPLE if total > AFFORDABLE_BYTES else ALL)


def decoded_bytes(headers: Mapping[str, list[tuple[str, tuple[int, int]]]], channels: int) -> int:
    """Return the bytes that all images take when they are decoded."""
    return sum(width * height * channels for each in headers.values() for _, (width, height) in each)


def make_pairs(
    splits: Mapping[str, Split], degradation: Degradation, channels: int, keeps: bool
) -> dict[str, Pairs]:
    """Make splits of pairs of whole images, with one source for the splits that share one."""
    sources: dict[int, PairSource] = {}
    parts: dict[str, Pairs] = {}
    for name, split in splits.items():
        assert isinstance(split.source, Lazy)  # see choose_reading
        key = id(split.source)
        sources.setdefault(key, PairSource(split.source.rows, channels, degradation, keeps))
        parts[name] = Pairs(source=sources[key], members=split.members)
    return parts


def check_sizes(parts: Mapping[str, Pairs], patch: int, scale: int) -> None:
    """Raise UserError if images of train are smaller than a patch, or others too small to be evaluated."""
    for name, pairs in parts.items():
        least = patch if name == "train" else LEAST_SIDE + 2 * scale
        rows = [pairs.source.rows[index] for index in pairs.members.tolist()]
        sizes = {row[0]: header(*row)[1] for row in rows}
        small = [
            f"{image} ({w}x{h})" for image, (w, h) in sizes.items() if min(w, h) // scale * scale < least
        ]
        if small:
            more = f" and {len(small) - SHOWN} more" if len(small) > SHOWN else ""
            least = -(-least // scale) * scale
            do = "give smaller patches, or leave them out" if name == "train" else "leave them out"
            raise UserError(
                f"{len(small)} of {len(rows)} images of {name!r} are smaller than "
                f"{'a patch, ' if name == 'train' else ''}{least}x{least} pixels: {', '.join(small[:SHOWN])}{more}; "
                f"{do}."
            )
