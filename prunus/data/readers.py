"""Reading images and labels: scikit-learn's digits, parquet files, folders, the hub, a user's own data set.

A reader returns what it found: Rows by split ("train", and "test" and "val" if they exist), and the classes' names if
the data set states them. Nothing is decoded here.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from prunus.data.decode import Encoded
from prunus.data.table import Files, Texts
from prunus.errors import UserError
from prunus.files import expand_home

SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val", "eval": "val"}
ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"}  # and all that begins with a dot
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")
ROWS_AT_ONCE = 1000  # rows read from disk together


@dataclass(frozen=True)
class Rows:
    """One split as stored.

    rows: (name in messages, encoded image or tensor) by index; labels: int64 (N,); names: what each image is called
    wherever the data set lies; encoded_bytes: the size of all images, None if a user's own code returns them.
    """

    rows: Sequence
    labels: np.ndarray
    names: Sequence[str]
    encoded_bytes: int | None


@dataclass(frozen=True)
class Found:
    """What a reader found: tables by split, the classes' names (None: not stated), files left out by reason."""

    tables: dict[str, Rows]
    class_names: tuple[str, ...] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)


def read_digits(place: str) -> Found:
    """Read the 1,797 gray 8x8 digits that come with scikit-learn."""
    if place:
        raise UserError(f"the SPEC of scikit-learn's digits is 'digits', without {place!r}.")
    from sklearn.datasets import load_digits  # slow to import, needed here only

    found: Any = load_digits()  # a Bunch, where scikit-learn's annotation allows for a tuple
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    rows = [(f"digit {index}", Image.fromarray(image)) for index, image in enumerate(pixels)]
    names = [name for name, _ in rows]
    table = Rows(rows, found.target.astype(np.int64), names, pixels.nbytes)
    return Found({"train": table}, tuple(map(str, found.target_names)))


def read_folder(place: str) -> Found:
    """Read DIR/train/CLASS/IMAGE, and DIR/test or DIR/val alike; or DIR/CLASS/IMAGE, which is split later."""
    folder = find_folder("imagefolder", place)
    # A folder is a split only by its full name: a class called "train station" is not one.
    parts = {SPLITS[part.name]: part for part in subfolders(folder) if part.name in SPLITS}
    parts = parts if "train" in parts else {"train": folder}
    classes = tuple(path.name for path in subfolders(parts["train"]))
    if not classes:
        raise UserError(f"{parts['train']} is empty: it should hold a folder of images for each class.")
    left_out: Counter[str] = Counter()
    tables = {name: read_classes(part, classes, folder, left_out) for name, part in parts.items()}
    return Found(tables, classes, left_out)


def read_classes(folder: Path, classes: Sequence[str], root: Path, left_out: Counter[str]) -> Rows:
    """Read every image below `folder`; its label is the position of its class's folder in `classes`.

    root: the folder of the data set. left_out: the files that are no images are added to it, by reason.
    """
    unknown = [path.name for path in subfolders(folder) if path.name not in classes]
    if unknown:
        raise UserError(f"{folder} has the class {unknown[0]!r}, which the training images lack.")
    counts: list[int] = []

    def paths() -> Iterator[Path]:
        for name in classes:
            found = list_images(folder / name, folder, left_out)
            counts.append(len(found))
            yield from found

    table = file_rows(paths(), np.zeros(0, np.int64), root)
    return replace(table, labels=np.repeat(np.arange(len(classes)), counts))


def list_images(folder: Path, root: Path, left_out: Counter[str]) -> list[Path]:
    """List the images anywhere below `folder`, sorted; other files are added to `left_out`, by reason.

    root: the folder below which hidden folders are left out.
    """
    hidden = any(is_of_system(part) for part in folder.relative_to(root).parts)
    places: list[tuple[str, ...]] = []
    for place, folders, files in [] if hidden else os.walk(folder):
        folders[:] = [name for name in folders if not is_of_system(name)]
        above = Path(place).relative_to(folder).parts
        places += [(*above, name) for name in files if not is_of_system(name)]
    suffixes = [Path(name).suffix.lower() for *_, name in places]
    other = [suffix for suffix in suffixes if suffix not in ENDINGS]
    left_out.update(f"suffix {suffix}" if suffix else "no suffix" for suffix in other)
    return [
        Path(folder, *place)
        for place, suffix in sorted(zip(places, suffixes, strict=True))
        if suffix in ENDINGS
    ]


def file_rows(paths: Iterable[Path], labels: np.ndarray, root: Path) -> Rows:
    """Make the rows of image files, named by their places below `root`."""
    total, above = 0, len(str(root / "_")) - 1

    def names() -> Iterator[str]:
        nonlocal total
        for path in paths:
            with suppress(OSError):  # the survey lists it with all others
                total += path.stat().st_size
            yield str(path)[above:].replace(os.sep, "/")

    files = Files(root, Texts(names()))
    return Rows(files, labels, files.names, total)


def is_visible(path: Path, folder: Path) -> bool:
    """Whether it is a file that neither is hidden, nor is kept by a system for itself, nor lies in such a folder."""
    parts = path.relative_to(folder).parts
    return not path.is_dir() and not any(is_of_system(part) for part in parts)


def is_of_system(name: str) -> bool:
    """Whether a file or folder is hidden, or kept by a system for itself: `._a.png`, `Thumbs.db`."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def left_out_sentence(left_out: Mapping[str, int]) -> str:
    """Say which files are no images, and what to do if they should be; empty if there are none."""
    if not left_out:
        return ""
    words = {"no suffix": "without a suffix"}
    counts = ", ".join(
        f"{count} {words.get(reason, reason.removeprefix('suffix '))}"
        for reason, count in sorted(left_out.items(), key=_most_first)
    )
    total = sum(left_out.values())
    return (
        f"{total} {'file is' if total == 1 else 'files are'} left out, because of the suffix: {counts}. Images end in "
        f"{' '.join(sorted(ENDINGS))}; convert others, such as HEIC, to JPEG or PNG."
    )


def _most_first(entry: tuple[str, int]) -> tuple[int, bool, str]:
    return -entry[1], entry[0] == "no suffix", entry[0]


def subfolders(folder: Path) -> list[Path]:
    """List the visible folders in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_of_system(path.name))


def find_folder(source: str, place: str, *, expected: str = "a folder") -> Path:
    """Find the folder `place`, in which ~ is the user's home; UserError, with `expected`, if it does not exist."""
    folder = expand_home(place)
    if not place or not folder.is_dir():
        raise UserError(
            f"{source}:{place} should name {expected}, but it is not there (looked for from {Path.cwd()})."
        )
    return folder


class Column(Sequence):
    """Encoded images in a column of a Hugging Face data set; they stay on disk."""

    def __init__(self, name: str, column: Sequence):
        self.name, self.column = name, column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: int) -> tuple[str, Encoded]:  # pyright: ignore[reportIncompatibleMethodOverride]: rows are read one by one
        return self.row(index, self.column[index])

    def __iter__(self) -> Iterator[tuple[str, Encoded]]:
        for start in range(0, len(self), ROWS_AT_ONCE):
            for index, value in enumerate(self.column[start : start + ROWS_AT_ONCE], start):
                yield self.row(index, value)

    def row(self, index: int, value: dict | None) -> tuple[str, Encoded]:
        """A row's name, which says where it is, and its encoded image: bytes, a file, or None if it is missing."""
        name = f"{index} of {self.name}"
        if value is None:
            return name, None
        if value["bytes"] is None and value["path"] is not None:
            return value["path"], Path(value["path"])
        return name, value["bytes"]


def read_parquet(place: str) -> Found:
    """Read the images and labels of parquet files; see `open_tables`."""
    return read_columns(place, open_tables("parquet", place))


def open_tables(kind: str, place: str, **how: Any) -> dict[str, Any]:
    """Open the tables train*.KIND, test*.KIND, val*.KIND below DIR, as data sets by split.

    Files of other names, or a single FILE, are train, of which parts are held out later.

    Args:
        kind: "parquet", "csv" or "jsonl".
        place: The folder or file.
        how: Options of the reader in `datasets`.

    Returns:
        Data sets by split.

    Raises:
        UserError: There are no such files, or they cannot be read.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    path = expand_home(place)
    folder = path if path.is_file() else find_folder(kind, place, expected="a file or a folder")
    files = [str(path)] if path.is_file() else sorted(str(file) for file in folder.rglob(f"*.{kind}"))
    if not files:
        raise UserError(f"{folder} is empty: no .{kind} files in it.")
    parts: dict[str, list[str]] = {}
    for file in files:
        word = re.match(r"[a-z]*", Path(file).name.lower())
        parts.setdefault(SPLITS.get(word.group() if word else "", "other"), []).append(file)
    parts = parts if "train" in parts else {"train": files}
    parts.pop("other", None)
    datasets.disable_progress_bars()
    try:
        of: Any = datasets.Dataset  # whose annotations leave out a list of str
        reader = {"parquet": of.from_parquet, "csv": of.from_csv, "jsonl": of.from_json}[kind]
        return {name: reader(part, **how) for name, part in parts.items()}
    except (OSError, ValueError, DatasetsError) as error:
        cause = error.__cause__ or error
        raise UserError(f"the {kind} files in {folder} cannot be read: {cause}. Copy them again.") from error


def read_hub(place: str) -> Found:
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


def read_columns(place: str, found: dict) -> Found:
    """Read the columns of images and labels; the classes' names if the data set states them."""
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
        rows = encoded_column(part, image, f"{name!r} in {place}")
        tables[name] = Rows(rows, labels.astype(np.int64), number(name, len(rows)), part.data.nbytes)
    names = getattr(found["train"].features[label], "names", None)
    return Found(tables, names and tuple(names))


def encoded_column(part: Any, column: str, name: str) -> Column:
    """Return the encoded images in a column of a data set; name: where it is, for messages."""
    import datasets

    return Column(name, part.cast_column(column, datasets.Image(decode=False))[column])


def number(split: str, count: int) -> list[str]:
    """Name the rows of a split by their numbers."""
    return [f"{split} {index}" for index in range(count)]


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


def read_user(spec: str, made: Any) -> Found:
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
        rows = Items(part)
        tables[name] = Rows(
            rows, np.array([int(label) for label in labels], np.int64), number(name, len(rows)), None
        )
    return Found(tables)


READERS = {"digits": read_digits, "parquet": read_parquet, "imagefolder": read_folder, "hub": read_hub}
