"""The schema of result.json, and its reader."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from prunus.errors import FileError
from prunus.files import LIMIT, Amount, Count, Positive, Real, Record, check_json, read_json, shorten

Gap = Real | None  # None where the number was NaN or infinite
Point = tuple[Gap, Gap]
Kept = tuple[Count, Annotated[int, Meta(ge=1, le=2**62)]]  # kept, of so many
Base64 = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]*={0,2}$")]


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """The costs of a model; the metric stands beside them under its own name."""

    macs: Positive
    params: Positive
    latency_ms: Amount
    memory_mb: Amount | None = None
    weights_mb: Amount | None = None
    cache_mb: Amount | None = None
    file_mb: Amount | None = None
    sparsity: Amount | msgspec.UnsetType = msgspec.UNSET
    packed_mb: Amount | None = None
    compressed_mb: Amount | None = None


def check_sparse(before: Costs, after: Costs) -> None:
    """Raise ValueError unless what is shown beside the share of zeros is there too."""
    if after.sparsity is not msgspec.UNSET:
        if before.sparsity is msgspec.UNSET or after.packed_mb is None or not before.file_mb:
            raise ValueError(
                "Expected before.sparsity, before.file_mb and after.packed_mb beside after.sparsity"
            )


class Shown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of a `Metric`."""

    key: str
    unit: str = ""
    higher_is_better: bool = True
    factor: Annotated[float, Meta(ge=-1e9, le=1e9)] = 1.0
    digits: Annotated[int, Meta(ge=0, le=20)] = 2


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """The proof; all None if there is none."""

    max_abs_error: Amount | None = None
    tolerance: Amount | None = None
    units_gone: Count | None = None
    change_by_units: Amount | None = None

    def __post_init__(self) -> None:
        if self.max_abs_error is not None and self.tolerance is None:
            raise ValueError("Expected a tolerance beside max_abs_error")
        if self.units_gone and self.change_by_units is None:
            raise ValueError("Expected change_by_units beside units_gone")


class Both(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of the model as it was cut, and of the repaired one; None where it was NaN or infinite."""

    cut: Gap
    repaired: Gap


class Repaired(msgspec.Struct, frozen=True, kw_only=True):
    """What a repair of the pruned model gained, and which model went on.

    Args:
        how: The way of repairing.
        kept: The model that went on: repaired, or as it was cut.
        refused: Why the model could not be repaired; the fields below are then missing.
        on_val: The task's metric on val of both models, each with renewed norms.
        examples: The number of inputs to which it was fitted.
        layers: The number of layers that were fitted.
        unexplained: The share of a layer's output that was left unexplained before and after, the mean over layers.
        left: The parameters that were left as they were cut, with the reason.
        test: What the repaired model has on the test set, if it went on.
    """

    how: Literal["order", "once"]
    kept: Literal["repaired", "cut"]
    refused: str | msgspec.UnsetType = msgspec.UNSET
    on_val: Both | msgspec.UnsetType = msgspec.UNSET
    examples: Count = 0
    layers: Count = 0
    unexplained: tuple[Amount, Amount] = (0.0, 0.0)
    left: dict[str, str] = msgspec.field(default_factory=dict)
    test: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if (self.refused is msgspec.UNSET) == (self.on_val is msgspec.UNSET):
            raise ValueError("Expected either refused or on_val")


def check_repaired(repaired: Repaired | msgspec.UnsetType) -> None:
    """Raise ValueError unless a repaired model that went on, and no other, was tested."""
    if repaired is not msgspec.UNSET and (repaired.kept == "repaired") == (repaired.test is msgspec.UNSET):
        raise ValueError("Expected repaired.test exactly where the repaired model was kept")


class Ends(msgspec.Struct, frozen=True, kw_only=True):
    """A metric before the fine-tuning and after it; None where it was NaN or infinite."""

    start: Gap
    end: Gap


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """Which model was kept after the fine-tuning, and the task's metric on val of both."""

    kept: Literal["start", "end"]
    on_val: Ends


class InEightBits(msgspec.Struct, frozen=True, kw_only=True):
    """What the models have on the test set in 8 bits; before: the dense one, None if it was not judged.

    Args:
        before: The metrics of the dense base.
        after: The metrics of the pruned model.
        examples: The number of training examples on which ranges were measured.
    """

    before: dict[str, Any] | None
    after: dict[str, Any]
    examples: Count


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """How a budget of milliseconds was met."""

    runtime: str
    device: str
    threads: Count
    original_ms: Amount
    measured_ms: Amount
    predicted_ms: Amount
    limit_ms: Amount
    held_out: Count
    r2: Real
    worst_error: Real


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of the model's input, or of each of several, and the number of classes if it is built with one."""

    shape: Annotated[list[Annotated[int, Meta(ge=1, le=2**16)]], Meta(max_length=8)] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    shapes: dict[str, Any] | list[Any] | msgspec.UnsetType = msgspec.UNSET
    classes: Annotated[int, Meta(ge=1, le=2**20)] | None = None

    def __post_init__(self) -> None:
        if (self.shape is msgspec.UNSET) == (self.shapes is msgspec.UNSET):
            raise ValueError("Expected either shape or shapes")


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """The recipe of recovery, as far as it is shown."""

    epochs: Amount


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that every run has, and the time of recovery, if it was given."""

    model: str
    data: str
    minutes: Amount | None = None
    recovery: Recovery | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if self.minutes is not None and self.recovery is msgspec.UNSET:
            raise ValueError("Expected recovery.epochs beside minutes")


class Chart(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """The base of charts; see prunus.charts, whose fields these have."""

    title: str
    note: str


class Lines(Chart, frozen=True, kw_only=True, tag="lines"):
    """Quantities that change."""

    x_label: str
    y_label: str
    series: dict[str, list[Point]]
    references: dict[str, list[Point]]
    thin: dict[str, list[list[Point]]]
    log_y: bool


class Heat(Chart, frozen=True, kw_only=True, tag="heat"):
    """A colour for each row and each x."""

    rows: list[str]
    x: list[Gap]
    x_label: str
    values: list[list[Gap]]
    value_label: str
    middle: Gap

    def __post_init__(self) -> None:
        if [len(row) for row in self.values] != [len(self.x)] * len(self.rows):
            raise ValueError(f"Expected {len(self.rows)} rows of {len(self.x)} values")


class Points(Chart, frozen=True, kw_only=True, tag="points"):
    """One point for each candidate."""

    x_label: str
    y_label: str
    groups: dict[str, list[tuple[Gap, Gap, str]]]
    front: list[Point]


class Bars(Chart, frozen=True, kw_only=True, tag="bars"):
    """Bars side by side."""

    labels: list[str]
    value_label: str
    series: dict[str, list[Gap]]

    def __post_init__(self) -> None:
        if any(len(values) != len(self.labels) for values in self.series.values()):
            raise ValueError(f"Expected {len(self.labels)} values in each series")


class Picture(Chart, frozen=True, kw_only=True, tag="picture"):
    """An image: a PNG file in base64."""

    png: Base64


class Panels(Chart, frozen=True, kw_only=True, tag="panels"):
    """Images side by side: captions, each with a PNG file in base64."""

    panels: list[tuple[str, Base64]]


class Passages(Chart, frozen=True, kw_only=True, tag="passages"):
    """Texts one below the other: captions, each with a text."""

    passages: list[tuple[str, str]]


AnyChart = Lines | Heat | Points | Bars | Picture | Panels | Passages
Row = dict[str, Gap]  # of the history: an epoch


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """How many images a split has."""

    images: Count


class Images(msgspec.Struct, frozen=True, kw_only=True):
    """How many images were found and used, and why others were not."""

    found: Count
    used: Count
    splits: dict[str, Part]
    skipped: dict[str, Count]


class ResultFile(Record, frozen=True, kw_only=True):
    """result.json, as far as reports and the commands on finished runs read it."""

    remedy: ClassVar[str] = "Remove the file and continue the run with --resume, which writes it again."
    method: str
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    budget: Annotated[dict[str, Real], Meta(min_length=1)]
    metric: str
    metric_shown: Shown | None = None
    input: Input
    judged_on: Literal["val", "test"] = "test"
    before: Costs
    pruned: dict[str, Any]
    repaired: Repaired | msgspec.UnsetType = msgspec.UNSET
    recovered: Recovered | msgspec.UnsetType = msgspec.UNSET
    after: Costs
    int8: InEightBits | msgspec.UnsetType = msgspec.UNSET
    verified: Verified
    widths: dict[str, Kept]
    survivors: dict[str, Kept] | msgspec.UnsetType = msgspec.UNSET
    left_dense: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    latency: Latency | msgspec.UnsetType = msgspec.UNSET
    charts: list[AnyChart] = msgspec.field(default_factory=list)
    examples: list[AnyChart] = msgspec.field(default_factory=list)
    history: dict[str, list[Row] | None]
    seconds: dict[str, Amount]
    versions: dict[str, Any]
    machine: dict[str, Any]
    settings: Settings
    data: Images | msgspec.UnsetType = msgspec.UNSET
    environments: list[dict[str, Any]] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.survivors is not msgspec.UNSET and self.left_dense is msgspec.UNSET:
            raise ValueError("Expected left_dense beside survivors")
        check_repaired(self.repaired)
        check_sparse(self.before, self.after)


def read_result(path: Path) -> dict[str, Any]:
    """Read the result.json of a finished run.

    Args:
        path: The file.

    Returns:
        Its contents, also those that the schema does not name.

    Raises:
        FileError: The file is missing, damaged, or of another version.
    """
    values = read_json(path)
    found = check_json(values, ResultFile, str(path))
    metric = found.metric_shown.key if found.metric_shown else found.metric
    for part in ("before", "pruned", "after"):
        check_number(values[part], metric, f"{path}, {part},", ResultFile, or_none=True)
    if found.repaired is not msgspec.UNSET and found.repaired.test is not msgspec.UNSET:
        check_number(found.repaired.test, metric, f"{path}, repaired.test,", ResultFile, or_none=True)
    if found.int8 is not msgspec.UNSET:
        for part in ("after",) if found.int8.before is None else ("before", "after"):
            check_number(values["int8"][part], metric, f"{path}, int8.{part},", ResultFile, or_none=True)
    if found.after.sparsity is not msgspec.UNSET:
        check_number(values["pruned"], "sparsity", f"{path}, pruned,", ResultFile)
    return values


def check_number(
    values: dict[str, Any], key: str, where: str, kind: type[Record], *, or_none: bool = False
) -> None:
    """Check that a part of a file holds a number.

    Args:
        values: The part.
        key: The number's name.
        where: The file and the part, for errors.
        kind: The schema of the file.
        or_none: Whether it may be None, because it was NaN or infinite.

    Raises:
        FileError: The number is missing, or is none.
    """
    number = values.get(key, "absent")
    if number is None and or_none:
        return
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if number is None or not is_number or not abs(number) <= LIMIT:
        seen = shorten(number) if key in values else "none"
        raise FileError(
            f"{where} should hold {shorten(key)}, a finite number, but holds {seen}. {kind.remedy}"
        )
