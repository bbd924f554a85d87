"""keep.json: which units of a model stayed, and all else that its class does not say; see store.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from prunus.errors import FileError
from prunus.export.stored import Range
from prunus.files import Count, Record, check_json, hash_json, read_json
from prunus.surgery import Skip, Structure

FORMAT, WITH_BLOCKS = 2, 3  # WITH_BLOCKS: of a model that lacks blocks, which version 0.1.0 would not see

Shapes = dict[str, list[Count]]
Whole = Annotated[int, Meta(ge=-(2**62), le=2**62)]


class KeptAxis(msgspec.Struct, frozen=True):
    """An axis in keep.json: its units in the original, and the indices of those that stay, ascending.

    Only the axis of a block (see `skipped`) has one unit, and may keep none.
    """

    size: Count
    keep: list[Count]

    def __post_init__(self) -> None:
        if self.keep != sorted({unit for unit in self.keep if unit < self.size}):
            raise ValueError(f"Expected ascending indices below {self.size} in keep")


class KeepFile(Record, frozen=True, kw_only=True):
    """keep.json.

    Args:
        model: The name of the original's class.
        axes: The units that stay.
        original_shapes: The shapes of the original's tensors.
        shapes: The shapes of the smaller model's tensors.
        attributes: Integers of modules that changed; tuples of them in files of version 0.1.0.
        behind: The shapes of the tensors behind parametrised weights.
        state: The shapes of tensors in plain attributes.
        skipped: The blocks of the original that the smaller model lacks, with what it returns in their places.
        shortened: The lists of modules that are shorter without them.
        masks: The number of weights that stay of each masked parameter.
        names: The tensors that have another name in these files, which a checkpoint gives them, with their own.
        parts: The tensors in these files that are parts of one of the smaller model's (an expert's, say).
        files: The SHA-256 of each file beside keep.json.
        digest: The SHA-256 of the other entries; None in format 1.
    """

    newest: ClassVar[int] = WITH_BLOCKS
    remedy: ClassVar[str] = "Save the model again."
    model: str
    axes: dict[str, KeptAxis]
    original_shapes: Shapes
    shapes: Shapes
    attributes: dict[str, dict[str, Whole | list[Whole]]]
    behind: Shapes = msgspec.field(default_factory=dict)
    state: Shapes = msgspec.field(default_factory=dict)
    skipped: list[Skip] = msgspec.field(default_factory=list)
    shortened: list[str] = msgspec.field(default_factory=list)
    masks: dict[str, Count] = msgspec.field(default_factory=dict)
    names: dict[str, str] = msgspec.field(default_factory=dict)
    parts: dict[str, Range] = msgspec.field(default_factory=dict)
    files: dict[str, str] = msgspec.field(default_factory=dict)
    digest: str | None = None


def entries_of_blocks(structure: Structure) -> dict[str, Any]:
    """Return the entries of keep.json for the blocks that a model lacks; none if it has all."""
    if not structure.skips:
        return {}
    return {
        "format": WITH_BLOCKS,
        "skipped": [msgspec.to_builtins(skip) for skip in structure.skips],
        "shortened": list(structure.shortened),
    }


def read_keep(folder: str | Path) -> KeepFile:
    """Read the keep.json of a saved model; FileError if it is missing or damaged."""
    path = Path(folder) / "keep.json"
    values = read_json(path)
    digest = hash_json({name: value for name, value in values.items() if name != "digest"})
    record = check_json(values, KeepFile, str(path))
    if record.digest != digest and (record.digest is not None or record.format > KeepFile.oldest):
        raise FileError(
            f"{path} has been changed or damaged since it was written: its entries do not give its digest. "
            f"{KeepFile.remedy}"
        )
    for name in record.masks:
        if name not in record.shapes:
            raise FileError(f"{path} is damaged: it masks {name!r}, which has no shape. {KeepFile.remedy}")
    for name in record.files:
        if Path(name).name != name:
            raise FileError(
                f"{path} is damaged: {name!r} is not the name of a file beside it. {KeepFile.remedy}"
            )
    return record
