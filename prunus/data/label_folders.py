"""Finding images and the label maps (masks) that belong to them: in folders, and in columns of parquet files.

pairs:DIR       DIR/images and DIR/masks, or DIR/train/images and DIR/train/masks; an image and its mask have the same
                name, apart from the suffix. Splits are train/, test/ and val/ in DIR, or in both images/ and masks/.
parquet:DIR     the columns image and mask in train*.parquet, and test*.parquet or val*.parquet
parquet:FILE    the columns image and mask in one file, which is split later
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunus.data.decode import Encoded
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

IMAGES, MASKS = "images", "masks"  # the folders
MASK_COLUMNS = ("mask", "annotation")
SHOWN = 3  # names in an error

Maps = Sequence[tuple[str, Encoded]]


@dataclass(frozen=True)
class FoundMaps:
    """What was found: images by split, and for each split the label maps in the same order."""

    found: Found
    maps: dict[str, Maps]


def read_label_maps(spec: str) -> FoundMaps:
    """Find images and their label maps; nothing is decoded.

    Args:
        spec: pairs:DIR, parquet:DIR or parquet:FILE.

    Returns:
        The images, whose label is 0, and the label maps.

    Raises:
        UserError: The spec is unknown, folders or columns are missing, or an image has no mask or a mask no image.
    """
    kind, _, place = spec.partition(":")
    if kind not in READERS:
        raise unknown("source of images and masks", spec, [f"{name}:PLACE" for name in READERS])
    return READERS[kind](place)


def read_pairs(place: str) -> FoundMaps:
    """Find the images and masks below a folder."""
    folder = find_folder("pairs", place)
    left_out: Counter[str] = Counter()
    tables: dict[str, Rows] = {}
    maps: dict[str, Maps] = {}
    for name, (images, masks) in find_parts(folder).items():
        paths = by_stem(list_images(images, folder, left_out), images)
        mask_paths = by_stem(list_images(masks, folder, left_out), masks)
        check_match(name, (images, paths), (masks, mask_paths))
        tables[name] = file_rows(list(paths.values()), np.zeros(len(paths), np.int64), folder)
        maps[name] = [(str(mask_paths[stem]), mask_paths[stem]) for stem in paths]
    return FoundMaps(Found(tables, left_out=left_out), maps)


def find_parts(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Find the folders of images and masks of each split."""
    inside = folder / IMAGES, folder / MASKS
    if all(part.is_dir() for part in inside):
        names = {SPLITS[part.name]: part.name for part in subfolders(inside[0]) if part.name in SPLITS}
        found = {split: (inside[0] / name, inside[1] / name) for split, name in names.items()}
        found = found if "train" in found else {"train": inside}
    else:
        parts = {SPLITS[part.name]: part for part in subfolders(folder) if part.name in SPLITS}
        found = {split: (part / IMAGES, part / MASKS) for split, part in parts.items()}
    missing = [str(part) for pair in found.values() for part in pair if not part.is_dir()]
    if missing or "train" not in found:
        seen = ", ".join(part.name for part in subfolders(folder)) or "no folder"
        raise UserError(
            f"{folder} should hold {IMAGES}/ and {MASKS}/, or train/{IMAGES}/ and train/{MASKS}/ (test/ and val/ "
            f"alike), but {f'{missing[0]} is not there' if missing else f'it holds {seen}'}."
        )
    return found


def by_stem(paths: Iterable[Path], root: Path) -> dict[str, Path]:
    """Return files by their places below a folder without the suffix; UserError if two have the same."""
    found: dict[str, Path] = {}
    for path in paths:
        stem = path.relative_to(root).with_suffix("").as_posix()
        if stem in found:
            raise UserError(
                f"{found[stem]} and {path} have the same name, so which one counts is not known; remove one of them."
            )
        found[stem] = path
    return found


def check_match(
    split: str, images: tuple[Path, dict[str, Path]], masks: tuple[Path, dict[str, Path]]
) -> None:
    """Raise UserError, with the first names, if an image has no mask or a mask no image."""
    for (folder, own), (other_folder, others), thing, other in (
        (images, masks, "image", "mask"),
        (masks, images, "mask", "image"),
    ):
        alone = [path.relative_to(folder).as_posix() for stem, path in own.items() if stem not in others]
        if alone:
            more = f" and {len(alone) - SHOWN} more" if len(alone) > SHOWN else ""
            raise UserError(
                f"{len(alone)} of {len(own)} {thing}s of {split!r} in {folder} have no {other}: "
                f"{', '.join(alone[:SHOWN])}{more}. Each should have a {other} of the same name, apart from the "
                f"suffix, in {other_folder}; add it, or remove the {thing}."
            )


def read_tables(place: str) -> FoundMaps:
    """Find the columns of images and masks of parquet files."""
    tables: dict[str, Rows] = {}
    maps: dict[str, Maps] = {}
    for name, part in open_tables("parquet", place).items():
        image, mask = (
            next((each for each in names if each in part.column_names), None)
            for names in (IMAGE_COLUMNS, MASK_COLUMNS)
        )
        if image is None or mask is None:
            raise UserError(
                f"{place} has the columns {', '.join(part.column_names)}; expected {' or '.join(IMAGE_COLUMNS)} for "
                f"images, and {' or '.join(MASK_COLUMNS)} for masks."
            )
        where = f"{name!r} in {place}"
        rows = encoded_column(part, image, where)
        tables[name] = Rows(rows, np.zeros(len(rows), np.int64), number(name, len(rows)), part.data.nbytes)
        maps[name] = encoded_column(part, mask, f"the masks of {where}")
    return FoundMaps(Found(tables), maps)


READERS: dict[str, Callable[[str], FoundMaps]] = {"pairs": read_pairs, "parquet": read_tables}
