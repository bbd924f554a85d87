"""Where pictures and labels are found: scikit-learn's digits, parquet files, folders, the hub, a user's own set.

A reader gives tables by split ("train", and "test" and "val" if there are such) and the number of classes,
None if only the labels tell. Nothing is decoded here.
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
PICTURE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")
READ_AT_ONCE = 1000  # rows


@dataclass(frozen=True)
class Table:
    """One split as found. rows: (name, bytes or picture or tensor) by index; labels: int64, one for each."""

    rows: Sequence
    labels: np.ndarray


Tables = tuple[dict[str, Table], int | None]


def read_digits(place: str) -> Tables:
    """The 1,797 gray 8x8 digits that come with scikit-learn."""
    if place:
        raise UserError(f"the data set is called 'digits', without {place!r}.")
    from sklearn.datasets import load_digits  # slow to import, needed here only

    found: Any = load_digits()  # a Bunch, where scikit-learn's annotation allows for a tuple
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    rows = [(f"digit {index}", Image.fromarray(picture)) for index, picture in enumerate(pixels)]
    return {"train": Table(rows, found.target.astype(np.int64))}, 10


class Files(Sequence):
    """Encoded pictures in files."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, bytes]:  # pyright: ignore[reportIncompatibleMethodOverride]: rows are read one by one
        try:
            return str(self.paths[index]), self.paths[index].read_bytes()
        except OSError as error:
            raise UserError(f"picture {self.paths[index]} cannot be read: {error}.") from error


def read_folder(place: str) -> Tables:
    """DIR/train/CLASS/PICTURE and DIR/test or DIR/val the same; or DIR/CLASS/PICTURE, to be split."""
    folder = existing_folder("imagefolder", place)
    # Names of splits are those of whole folders here: a class called "train station" is not one.
    parts = {SPLITS[part.name]: part for part in subfolders(folder) if part.name in SPLITS}
    parts = parts if "train" in parts else {"train": folder}
    classes = [path.name for path in subfolders(parts["train"])]
    if not classes:
        raise UserError(f"{parts['train']} is empty: it should hold a folder of pictures for each class.")
    return {name: folder_table(part, classes) for name, part in parts.items()}, len(classes)


def folder_table(folder: Path, classes: list[str]) -> Table:
    """Every picture below `folder`; its label is the place of its class's folder in `classes`."""
    unknown = [path.name for path in subfolders(folder) if path.name not in classes]
    if unknown:
        raise UserError(f"{folder} has the class {unknown[0]!r}, which the training pictures lack.")
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = [path for path in sorted((folder / name).rglob("*")) if path.suffix.lower() in ENDINGS]
        paths += found
        labels += [label] * len(found)
    return Table(Files(paths), np.array(labels, np.int64))


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def existing_folder(source: str, place: str) -> Path:
    """The folder `place`, or a UserError."""
    if not place or not Path(place).is_dir():
        raise UserError(
            f"{source}:{place} should name a folder, but it is not there (seen from {Path.cwd()})."
        )
    return Path(place)


class Rows(Sequence):
    """Encoded pictures in a column of a Hugging Face data set; they stay on disk."""

    def __init__(self, name: str, column: Sequence):
        self.name, self.column = name, column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: int) -> tuple[str, bytes]:  # pyright: ignore[reportIncompatibleMethodOverride]: rows are read one by one
        return self.named(index, self.column[index])

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for start in range(0, len(self), READ_AT_ONCE):
            for index, value in enumerate(self.column[start : start + READ_AT_ONCE], start):
                yield self.named(index, value)

    def named(self, index: int, value: dict | None) -> tuple[str, bytes]:
        """A row's picture with words for where it is."""
        name = f"{index} of {self.name}"
        if value is None:
            raise UserError(f"picture {name} is missing; repair or remove the row.")
        if value["bytes"] is None:
            return Files([Path(value["path"])])[0]
        return name, value["bytes"]


def read_parquet(place: str) -> Tables:
    """train*.parquet, test*.parquet, val*.parquet below DIR; by other names all are one, to be split."""
    import datasets
    from datasets.exceptions import DatasetsError

    folder = existing_folder("parquet", place)
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
        raise UserError(f"the parquet files in {folder} cannot be read: {cause}. Copy them anew.") from error
    return column_tables(place, found)


def read_hub(place: str) -> Tables:
    """A data set of the Hugging Face hub, downloaded once."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        found = datasets.load_dataset(place)
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(f"hub:{place} cannot be loaded: {error}.") from error
    found = {SPLITS[str(name)]: part for name, part in found.items() if name in SPLITS}
    if "train" not in found:
        raise UserError(f"hub:{place} has no split called 'train'.")
    return column_tables(place, found)


def column_tables(place: str, found: dict) -> Tables:
    """Tables over the columns of pictures and labels; the class count if the data set states it."""
    import datasets

    columns = found["train"].column_names
    picture, label = (
        next((name for name in names if name in columns), None) for names in (PICTURE_COLUMNS, LABEL_COLUMNS)
    )
    if picture is None or label is None:
        wanted = f"{' or '.join(PICTURE_COLUMNS)}, and {' or '.join(LABEL_COLUMNS)}"
        raise UserError(f"{place} has the columns {', '.join(columns)}; needed are {wanted}.")
    tables = {}
    for name, part in found.items():
        labels = np.asarray(part.with_format("numpy")[label][:])
        if labels.dtype.kind not in "iu" and len(labels):
            raise UserError(f"{place}: column {label!r} of {name!r} should hold whole numbers, the classes.")
        encoded = part.cast_column(picture, datasets.Image(decode=False))[picture]
        tables[name] = Table(Rows(f"{name!r} in {place}", encoded), labels.astype(np.int64))
    names = getattr(found["train"].features[label], "names", None)
    return tables, names and len(names)


class Items(Sequence):
    """Pictures of a user's set of (picture, label): PIL pictures, uint8 arrays, or prepared float tensors."""

    def __init__(self, items: Sequence):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[str, Image.Image | Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]: rows are read one by one
        picture = self.items[index][0]
        if isinstance(picture, Tensor) and not picture.is_floating_point():
            picture = picture.movedim(0, -1).numpy() if picture.dim() == 3 else picture.numpy()
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture.squeeze(-1) if picture.shape[2:] == (1,) else picture)
        return f"number {index}", picture


def read_user(spec: str, made: Any) -> Tables:
    """Tables over what a user's callable returned: (train, test) data sets of (picture, label)."""
    pair = isinstance(made, tuple | list) and len(made) == 2
    if not pair or not all(hasattr(part, "__getitem__") for part in made):
        raise UserError(f"{spec} should return a Data, or (train, test) data sets of (picture, label).")
    tables = {}
    for name, part in zip(("train", "test"), made, strict=True):
        labels = part.targets if hasattr(part, "targets") else [part[index][1] for index in range(len(part))]
        tables[name] = Table(Items(part), np.array([int(label) for label in labels], np.int64))
    return tables, None


READERS = {"digits": read_digits, "parquet": read_parquet, "imagefolder": read_folder, "hub": read_hub}
