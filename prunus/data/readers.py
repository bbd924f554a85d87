"""Reading images and labels: scikit-learn's digits, parquet files, folders, the hub, a user's own data set.

A reader returns Rows by split ("train", and "test" and "val" if they exist) and the number of classes, None if only
the labels show it. Nothing is decoded here.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from prunus.errors import UserError

SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val", "eval": "val"}
ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")
ROWS_AT_ONCE = 1000  # rows read from disk together


@dataclass(frozen=True)
class Rows:
    """One split as stored. rows: (name, bytes or image or tensor) by index; labels: int64 (N,)."""

    rows: Sequence
    labels: np.ndarray


Splits = tuple[dict[str, Rows], int | None]


def read_digits(place: str) -> Splits:
    """Read the 1,797 gray 8x8 digits that come with scikit-learn."""
    if place:
        raise UserError(f"the SPEC of scikit-learn's digits is 'digits', without {place!r}.")
    from sklearn.datasets import load_digits  # slow to import, needed here only

    found: Any = load_digits()  # a Bunch, where scikit-learn's annotation allows for a tuple
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    rows = [(f"digit {index}", Image.fromarray(image)) for index, image in enumerate(pixels)]
    return {"train": Rows(rows, found.target.astype(np.int64))}, 10


class Files(Sequence):
    """Encoded images in files."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, bytes]:  # pyright: ignore[reportIncompatibleMethodOverride]: rows are read one by one
        try:
            return str(self.paths[index]), self.paths[index].read_bytes()
        except OSError as error:
            raise UserError(f"image {self.paths[index]} cannot be read: {error}.") from error


def read_folder(place: str) -> Splits:
    """Read DIR/train/CLASS/IMAGE, and DIR/test or DIR/val alike; or DIR/CLASS/IMAGE, which is split later."""
    folder = find_folder("imagefolder", place)
    # A folder is a split only by its full name: a class called "train station" is not one.
    parts = {SPLITS[part.name]: part for part in subfolders(folder) if part.name in SPLITS}
    parts = parts if "train" in parts else {"train": folder}
    classes = [path.name for path in subfolders(parts["train"])]
    if not classes:
        raise UserError(f"{parts['train']} is empty: it should hold a folder of images for each class.")
    return {name: read_classes(part, classes) for name, part in parts.items()}, len(classes)


def read_classes(folder: Path, classes: list[str]) -> Rows:
    """Read every image below `folder`; its label is the position of its class's folder in `classes`."""
    unknown = [path.name for path in subfolders(folder) if path.name not in classes]
    if unknown:
        raise UserError(f"{folder} has the class {unknown[0]!r}, which the training images lack.")
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = [path for path in sorted((folder / name).rglob("*")) if path.suffix.lower() in ENDINGS]
        paths += found
        labels += [label] * len(found)
    return Rows(Files(paths), np.array(labels, np.int64))


def subfolders(folder: Path) -> list[Path]:
    """List the visible folders in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def find_folder(source: str, place: str) -> Path:
    """Find the folder `place`; UserError if it does not exist."""
    if not place or not Path(place).is_dir():
        raise UserError(
            f"{source}:{place} should name a folder, but it is not there (looked for from {Path.cwd()})."
        )
    return Path(place)


class Column(Sequence):
    """Encoded images in a column of a Hugging Face data set; they stay on disk."""

    def __init__(self, name: str, column: Sequence):
        self.name, self.column = name, column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: int) -> tuple[str, bytes]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.row(index, self.column[index])

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for start in range(0, len(self), ROWS_AT_ONCE):
            for index, value in enumerate(self.column[start : start + ROWS_AT_ONCE], start):
                yield self.row(index, value)

    def row(self, index: int, value: dict | None) -> tuple[str, bytes]:
        """A row's name, which says where it is, and its image's bytes."""
        name = f"{index} of {self.name}"
        if value is None:
            raise UserError(f"image {name} is missing; repair or remove the row.")
        if value["bytes"] is None:
            return Files([Path(value["path"])])[0]
        return name, value["bytes"]


def read_parquet(place: str) -> Splits:
    """Read train*.parquet, test*.parquet, val*.parquet below DIR; files of other names are joined and split later."""
    import datasets
    from datasets.exceptions import DatasetsError

    folder = find_folder("parquet", place)
    files = sorted(str(path) for path in folder.rglob("*.parquet"))
    if not files:
        raise UserError(f"{folder} is empty: no .parquet files in it.")
    parts: dict[str, list[str]] = {}
    for file in files:
        word = re.match(r"[a-z]*", Path(file).name.lower())
        parts.setdefault(SPLITS.get(word.group() if word else "", "other"), []).append(file)
    parts = parts if "train" in parts else {"train": files}
    parts.pop("other", None)
    datasets.disable_progress_bars()
    try:
        reader: Any = datasets.Dataset.from_parquet  # its annotation leaves out a list of str
        found = {name: reader(part) for name, part in parts.items()}
    except (OSError, ValueError, DatasetsError) as error:
        cause = error.__cause__ or error
        raise UserError(f"the parquet files in {folder} cannot be read: {cause}. Copy them again.") from error
    return read_columns(place, found)


def read_hub(place: str) -> Splits:
    """Read a data set of the Hugging Face hub, which is downloaded once."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        found = datasets.load_dataset(place)
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(f"hub:{place} cannot be loaded: {error}. Check the name and the network.") from error
    found = {SPLITS[str(name)]: part for name, part in found.items() if name in SPLITS}
    if "train" not in found:
        raise UserError(f"hub:{place} has no split called 'train'; export it as parquet files instead.")
    return read_columns(place, found)


def read_columns(place: str, found: dict) -> Splits:
    """Read the columns of images and labels; the number of classes if the data set states it."""
    import datasets

    columns = found["train"].column_names
    image, label = (
        next((name for name in names if name in columns), None) for names in (IMAGE_COLUMNS, LABEL_COLUMNS)
    )
    if image is None or label is None:
        wanted = f"{' or '.join(IMAGE_COLUMNS)}, and {' or '.join(LABEL_COLUMNS)}"
        raise UserError(f"{place} has the columns {', '.join(columns)}; needed are {wanted}.")
    tables = {}
    for name, part in found.items():
        labels = np.asarray(part.with_format("numpy")[label][:])
        if labels.dtype.kind not in "iu" and len(labels):
            raise UserError(
                f"{place}: column {label!r} of {name!r} should hold whole numbers, the classes, "
                f"but holds {labels.dtype}."
            )
        encoded = part.cast_column(image, datasets.Image(decode=False))[image]
        tables[name] = Rows(Column(f"{name!r} in {place}", encoded), labels.astype(np.int64))
    names = getattr(found["train"].features[label], "names", None)
    return tables, names and len(names)


class Items(Sequence):
    """Images of a user's data set of (image, label): PIL images, uint8 arrays, or prepared float tensors."""

    def __init__(self, items: Sequence):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(  # pyright: ignore[reportIncompatibleMethodOverride]: images are read one by one
        self, index: int
    ) -> tuple[str, Image.Image | Tensor]:
        image = self.items[index][0]
        if isinstance(image, Tensor) and not image.is_floating_point():
            image = image.movedim(0, -1).numpy() if image.dim() == 3 else image.numpy()
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image)
        return f"number {index}", image


def read_user(spec: str, made: Any) -> Splits:
    """Read the data sets (train, test) of (image, label) that a user's callable returned."""
    pair = isinstance(made, tuple | list) and len(made) == 2
    if not pair or not all(hasattr(part, "__getitem__") for part in made):
        raise UserError(
            f"{spec} should return a Data, or (train, test) data sets of (image, label), but returned a "
            f"{type(made).__name__}."
        )
    tables = {}
    for name, part in zip(("train", "test"), made, strict=True):
        labels = part.targets if hasattr(part, "targets") else [part[index][1] for index in range(len(part))]
        tables[name] = Rows(Items(part), np.array([int(label) for label in labels], np.int64))
    return tables, None


READERS = {"digits": read_digits, "parquet": read_parquet, "imagefolder": read_folder, "hub": read_hub}
