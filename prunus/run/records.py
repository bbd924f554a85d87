"""The schemas of the stages' records, and the check that they and the files they speak of are whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from prunus.errors import FileError
from prunus.files import Amount, Count, Record, check_json, hash_file, read_json, write_json
from prunus.report import (
    AnyChart,
    Costs,
    InEightBits,
    Kept,
    Latency,
    Recovered,
    Repaired,
    Row,
    Verified,
    check_number,
    check_repaired,
    check_sparse,
)


class StageRecord(Record, frozen=True, kw_only=True):
    """The base of the records.

    Args:
        seconds: How long the stage took.
        files: The SHA-256 of each file that the stage left for the result, by its name in the run's folder; records of
            version 0.1.0 have none.
    """

    remedy: ClassVar[str] = "Remove this file and continue with --resume; the stage is then computed again."
    seconds: Amount
    files: dict[str, str] = msgspec.field(default_factory=dict)


class BaseRecord(StageRecord, frozen=True, kw_only=True):
    """The record of stage base."""

    history: list[Row]
    test: dict[str, Any]


class PruneRecord(StageRecord, frozen=True, kw_only=True):
    """The record of stage prune."""

    keep: dict[str, list[Count]]
    weights: bool
    masks: bool = False
    pattern: str | None = None
    left_dense: dict[str, str] = msgspec.field(default_factory=dict)
    charts: list[AnyChart] = msgspec.field(default_factory=list)
    latency: Latency | msgspec.UnsetType = msgspec.UNSET


class ShrinkRecord(StageRecord, frozen=True, kw_only=True):
    """The record of stage shrink."""

    verified: Verified
    test: dict[str, Any]


class RepairRecord(StageRecord, frozen=True, kw_only=True):
    """The record of stage repair."""

    repaired: Repaired

    def __post_init__(self) -> None:
        check_repaired(self.repaired)


class RecoverRecord(StageRecord, frozen=True, kw_only=True):
    """The record of stage recover."""

    history: list[Row]
    recovered: Recovered | msgspec.UnsetType = msgspec.UNSET


class EvaluateRecord(StageRecord, frozen=True, kw_only=True):
    """The record of stage evaluate."""

    test: dict[str, Any]
    before: Costs
    after: Costs
    widths: dict[str, Kept]
    survivors: dict[str, Kept] | msgspec.UnsetType = msgspec.UNSET
    left_dense: dict[str, str] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        check_sparse(self.before, self.after)


class Int8Record(Record, frozen=True, kw_only=True):
    """What a run's model has in 8 bits, which is no stage of the run, because it is asked for afterwards.

    Args:
        int8: The metrics, for the result.
        files: The SHA-256 of the model in 32 bits, by the name of its file.
    """

    remedy: ClassVar[str] = "Remove this file; `prunus export --int8` writes it anew."
    int8: InEightBits
    files: dict[str, str]


RECORDS: dict[str, type[StageRecord]] = {
    "base": BaseRecord,
    "prune": PruneRecord,
    "shrink": ShrinkRecord,
    "repair": RepairRecord,
    "recover": RecoverRecord,
    "evaluate": EvaluateRecord,
}


def check_record(folder: Path, name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Check the record of a stage.

    Args:
        folder: The run's folder.
        name: The stage.
        record: Its record.

    Returns:
        The record.

    Raises:
        FileError: The record is damaged.
    """
    check_json(record, RECORDS[name], str(file_of(folder, name)))
    return record


def check_records(folder: Path, records: Mapping[str, dict[str, Any]], metric: str) -> None:
    """Check all records and the files of the result.

    Args:
        folder: The run's folder.
        records: The record of every stage, by its name.
        metric: The key of the task's metric.

    Raises:
        FileError: A record is damaged, or a file of the result is not the one that its stage wrote.
    """
    for name, record in records.items():
        check_record(folder, name, record)
        if "test" in record:
            where = f"{file_of(folder, name)}, test,"
            check_number(record["test"], metric, where, RECORDS[name], or_none=True)
    if "test" in records.get("repair", {}).get("repaired", {}):
        where = f"{file_of(folder, 'repair')}, repaired.test,"
        check_number(records["repair"]["repaired"]["test"], metric, where, RepairRecord, or_none=True)
    if "sparsity" in records["evaluate"]["after"]:
        where = f"{file_of(folder, 'shrink')}, test,"
        check_number(records["shrink"]["test"], "sparsity", where, ShrinkRecord)
    check_files(folder, records)


def write_int8(folder: Path, int8: dict[str, Any], files: list[str]) -> None:
    """Keep what a run's model has in 8 bits, beside the records of the stages.

    Args:
        folder: The run's folder.
        int8: The metrics, as in `InEightBits`.
        files: The names of the files that hold the model in 32 bits.
    """
    write_json(file_of(folder, "int8"), {"int8": int8, "files": hash_files(folder, files)})


def read_int8(folder: Path) -> dict[str, Any]:
    """Read what the run's model has in 8 bits.

    Args:
        folder: The run's folder.

    Returns:
        The entry "int8" of the result; nothing if it was never asked for, or of a model that is no longer there.

    Raises:
        FileError: The record is damaged.
    """
    path = file_of(folder, "int8")
    if not path.exists():
        return {}
    record = read_json(path)
    check_json(record, Int8Record, str(path))
    return {"int8": record["int8"]} if hash_files(folder, list(record["files"])) == record["files"] else {}


def file_of(folder: Path, name: str) -> Path:
    """Return the file of a stage's record."""
    return folder / "stages" / f"{name}.json"


def hash_files(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the SHA-256 of files in a folder, by name; those that are not there are left out."""
    return {name: hash_file(folder / name) for name in names if (folder / name).exists()}


def check_files(folder: Path, records: Mapping[str, dict[str, Any]]) -> None:
    """Raise FileError unless the files of the result are those that the stages wrote.

    Args:
        folder: The run's folder.
        records: The record of every stage, by its name.
    """
    for stage, record in records.items():
        files = record.get("files", {})
        for name, digest in files.items():
            if hash_files(folder, [name]) != {name: digest}:
                raise FileError(
                    f"{folder / name} is not the file that stage {stage} wrote: it has been changed or damaged since. "
                    f"Check the disk, remove stages/{stage}.json and stages/evaluate.json, and continue with --resume."
                )
