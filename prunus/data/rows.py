"""Data of rows of tables: the inputs are an image, or columns of numbers; the targets are columns, or labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunus.data.asked import AS_EXPECTED, ImageOptions
from prunus.data.fingerprint import Fingerprint, parts_of
from prunus.data.load import Data, check_broken, choose_reading, split_data
from prunus.data.readers import Found, Rows, number
from prunus.data.split import Source, Split
from prunus.data.survey import ALL, Survey, content_of, survey
from prunus.data.tables import FILE_COLUMNS, Table, read_tables
from prunus.errors import UserError
from prunus.zoo import Expected

LEAST_ROWS = 3  # of which one each becomes train, val and test


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that are inputs.

    Args:
        image: The column of images; None: image, img, file, file_name, filename or path, if there is one.
        features: The columns of numbers, instead of images; empty: all columns of numbers that are no targets, if there
            is no column of images.
    """

    image: str | None = None
    features: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The targets of every row.

    Args:
        names: What each target is: a column, or a label.
        columns: The columns that they were read from, which are therefore no inputs.
        values: By split, float32 (rows, targets).
    """

    names: tuple[str, ...]
    columns: tuple[str, ...]
    values: Mapping[str, np.ndarray]


ReadTargets = Callable[[Mapping[str, Table]], Targets]


class Features:
    """Rows of numbers as inputs, standardised.

    Args:
        names: The columns.
        values: The numbers, float64 (rows, columns).
        mean: The mean of each column, float64 (columns,), which is subtracted.
        std: Its standard deviation, by which is divided.
    """

    slow = False

    def __init__(self, names: Sequence[str], values: np.ndarray, mean: np.ndarray, std: np.ndarray):
        self.names, self.mean, self.std = tuple(names), mean, std
        self.inputs = self.standardise(values)

    def standardise(self, values: np.ndarray) -> Tensor:
        """Turn numbers (rows, columns) into inputs, float32."""
        return torch.from_numpy(((values - self.mean) / self.std).astype(np.float32))

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        """Read rows (B, columns) by index; they are never augmented."""
        return self.inputs[torch.from_numpy(indices)]


class Unchanged:
    """A source of images that are never augmented, because nothing says whether a change would change the target."""

    def __init__(self, source: Source):
        self.source, self.slow = source, source.slow

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        """Read images (B, C, H, W) by index."""
        return self.source.read(indices, None)


def load_rows(
    spec: str,
    read_targets: ReadTargets,
    columns: Columns,
    *,
    augment: bool,
    seed: int = 0,
    val_share: float = 0.05,
    images: ImageOptions = AS_EXPECTED,
    expected: Expected | None = None,
    skip_broken: bool = False,
) -> Data:
    """Load the tables that a SPEC names.

    Args:
        spec: csv:PLACE, jsonl:PLACE or parquet:PLACE.
        read_targets: Reads the targets of all tables.
        columns: The columns that are inputs.
        augment: Whether images are augmented as in classification.
        seed: The seed that chooses which part of train becomes `val`.
        val_share: The share of the rows to hold out as `val` where there is none, at least one.
        images: How images are read, as far as the user says.
        expected: How the model expects its images, as far as it is known (`zoo.expected_images`).
        skip_broken: Whether to leave out images that cannot be read; otherwise they are an error.

    Returns:
        The data; columns of numbers are standardised by the rows of train. The names of the targets are
        `fingerprint.class_names`.

    Raises:
        UserError: Columns are missing or no numbers, there are too few rows, or images cannot be read.
    """
    tables = read_tables(spec)
    targets = read_targets(tables)
    check_count(tables)
    image, features = choose_inputs(tables, columns, targets.columns)
    if features:
        said = [*images.given, *["skip_broken"] * skip_broken]
        if said:
            raise UserError(
                f"{spec} is read as columns of numbers ({', '.join(features[:3])}, ...), so {', '.join(said)} would "
                "have no effect; leave it out, or name a column of images (image_column)."
            )
        numbers = {name: table.numbers(features) for name, table in tables.items()}
        found = Found({name: rows_of(name, len(table)) for name, table in tables.items()})
        how, hashed = None, ALL
        surveys = {name: survey_numbers(features, values) for name, values in numbers.items()}
    else:
        assert image is not None  # see choose_inputs
        numbers = {}
        found = Found({name: table.images(image) for name, table in tables.items()})
        reading = choose_reading(spec, found.tables, images, expected)
        how, hashed = reading.how, reading.hashed
        surveys = {name: survey(table, reading) for name, table in found.tables.items()}
    broken = check_broken(spec, found, surveys, skip_broken)
    splits = split_data(spec, found, surveys, (val_share, seed), "content")
    origin = {id(each.source): name for name, each in surveys.items()}
    names = {part: origin[id(split.source)] for part, split in splits.items()}
    if features:
        train = numbers["train"][splits["train"].members]
        mean, std = train.mean(0), train.std(0)
        std[std == 0] = 1  # a constant column says nothing, and becomes 0
        sources = {name: Features(features, values, mean, std) for name, values in numbers.items()}
    else:
        sources = {name: each.source if augment else Unchanged(each.source) for name, each in surveys.items()}
    parts = {
        part: Split(sources[names[part]], targets.values[names[part]][split.members], split.members)
        for part, split in splits.items()
    }
    fingerprint = Fingerprint(
        hashed=hashed,
        split_by="content",
        classes=None,
        class_names=targets.names,
        preprocessing=how,
        skipped={"unreadable": broken} if broken else {},
        splits=parts_of(parts),
        items=list_rows(found, surveys, targets),
    )
    example, _ = parts["train"].read(np.arange(1))
    return Data(spec, None, example, parts["train"], parts["val"], parts["test"], fingerprint)


def check_count(tables: Mapping[str, Table]) -> None:
    """Raise UserError if there are too few rows to hold val and test out of train."""
    missing, count = LEAST_ROWS - len(tables), len(tables["train"])
    if count <= missing:
        raise UserError(
            f"{tables['train'].spec} has {count} row{'s' * (count > 1)} to train on; at least {missing + 1} are needed "
            "to hold out what it lacks of val and test."
        )


def choose_inputs(
    tables: Mapping[str, Table], columns: Columns, taken: Sequence[str]
) -> tuple[str | None, tuple[str, ...]]:
    """Return the column of images, or those of numbers; UserError if there is neither, or both are named.

    taken: the columns of the targets.
    """
    train = tables["train"]
    if columns.image is not None and columns.features:
        raise UserError("image_column and features are both given; a row is read as an image or as numbers.")
    both = [name for name in (columns.image, *columns.features) if name in taken]
    if both:
        raise UserError(f"column {both[0]!r} of {train.where} is a target, so it cannot be an input too.")
    if columns.features:
        return None, columns.features
    named = [columns.image] if columns.image else FILE_COLUMNS
    image = next((name for name in named if name in train.part.column_names and name not in taken), None)
    if image is not None or columns.image is not None:
        for table in tables.values():
            table.column(image or columns.image or "")  # raises if there is none
        return image, ()
    features = [name for name in train.part.column_names if name not in taken and train.is_numeric(name)]
    if not features:
        raise UserError(
            f"{train.where} has the columns {', '.join(train.part.column_names)}, of which none is an input: expected "
            f"images ({', '.join(FILE_COLUMNS)}, or image_column), or columns of numbers beside the targets "
            f"{', '.join(taken)}."
        )
    return None, tuple(features)


def rows_of(split: str, count: int) -> Rows:
    """Make the rows of a table without images, which have nothing to decode."""
    names = number(split, count)
    return Rows([(name, None) for name in names], np.zeros(count, np.int64), names, None)


def survey_numbers(names: Sequence[str], values: np.ndarray) -> Survey:
    """Hash every row of numbers."""
    contents = [content_of(np.ascontiguousarray(row).tobytes()) for row in values]
    unscaled = Features(names, values, np.zeros(len(names)), np.ones(len(names)))
    keys = np.array([content.key for content in contents], np.uint64)
    return Survey(source=unscaled, keys=keys, digests=[content.digest for content in contents], broken={})


def list_rows(found: Found, surveys: Mapping[str, Survey], targets: Targets) -> dict[str, str]:
    """List the hashes of the targets and the input of every row that is used, by name."""
    return {
        name: f"{content_of(target.tobytes()).digest}:{digest}"
        for split, table in found.tables.items()
        for index, (name, target, digest) in enumerate(
            zip(table.names, targets.values[split], surveys[split].digests, strict=True)
        )
        if index not in surveys[split].broken
    }
