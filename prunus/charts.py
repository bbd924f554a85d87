"""What a method draws of its own search, as plain data: report.html shows it.

A method gives charts in Pruned.charts, a run keeps them in result.json, and the report draws them from there. Numbers
may be Python's, numpy's or tensors; None and NaN are gaps. A chart that does not fit together is a fault of the
method that made it and raises ValueError. A few thousand points make a page that still opens at once; thin out more.
"""

import base64
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Line = Sequence[tuple[float, float | None]]  # (x, y), in order of x

DIGITS = 6  # of numbers in JSON, enough for any picture
PNG = b"\x89PNG\r\n\x1a\n"  # what every PNG file begins with


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What all have: a title, and under the picture a note of one or two sentences that says how to read it."""

    title: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Lines(Chart):
    """Quantities that change, such as with the steps of a training.

    series: name -> line. references: name -> line, dashed: a plan, a target, a threshold. thin: many lines of a kind,
    such as of every kept unit and of every removed one: kind -> its lines, in one colour, named once. log_y: what is
    not above 0 drops out of sight then.
    """

    x_label: str
    y_label: str
    series: Mapping[str, Line] = field(default_factory=dict)
    references: Mapping[str, Line] = field(default_factory=dict)
    thin: Mapping[str, Sequence[Line]] = field(default_factory=dict)
    log_y: bool = False


@dataclass(frozen=True, kw_only=True)
class Heat(Chart):
    """A number for each row and each x as a colour, such as every layer's width over time.

    values: (rows, x). middle: the number at which the colour changes from one hue to another; without it there is one
    hue, which starts at 0 unless a value is negative.
    """

    rows: Sequence[str]
    x: Sequence[float]
    x_label: str
    values: Sequence[Sequence[float | None]]
    value_label: str
    middle: float | None = None

    def __post_init__(self) -> None:
        shape = [len(row) for row in self.values]
        if shape != [len(self.x)] * len(self.rows):
            raise ValueError(
                f"heat {self.title!r} needs {len(self.rows)} rows of {len(self.x)} values, has rows of {shape}."
            )


@dataclass(frozen=True, kw_only=True)
class Points(Chart):
    """One point for each thing tried, such as its score against its cost.

    groups: name -> (x, y, text shown beside the pointer). front: a line, such as through the best for each cost.
    """

    x_label: str
    y_label: str
    groups: Mapping[str, Sequence[tuple[float, float | None, str]]]
    front: Line = ()


@dataclass(frozen=True, kw_only=True)
class Bars(Chart):
    """Some numbers for each label, side by side, such as two networks' widths. series: name -> one value a label."""

    labels: Sequence[str]
    value_label: str
    series: Mapping[str, Sequence[float | None]]

    def __post_init__(self) -> None:
        for name, values in self.series.items():
            if len(values) != len(self.labels):
                raise ValueError(
                    f"bars {self.title!r} need {len(self.labels)} values of each series, {name!r} has {len(values)}."
                )


@dataclass(frozen=True, kw_only=True)
class Picture(Chart):
    """A picture as it is, such as a visual prompt. png: a PNG file's bytes; small ones are shown enlarged."""

    png: bytes

    def __post_init__(self) -> None:
        if not self.png.startswith(PNG):
            raise ValueError(f"picture {self.title!r} should be the bytes of a PNG file.")


def plain(chart: Chart) -> dict:
    """The chart as JSON: its fields, and its class in small letters as "kind"."""
    values = {each.name: _json(getattr(chart, each.name)) for each in dataclasses.fields(chart)}
    return {"kind": type(chart).__name__.lower(), **values}


def _json(value: Any) -> object:
    if hasattr(value, "tolist"):  # an array or a tensor, or one number of such
        value = value.tolist()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {name: _json(inner) for name, inner in value.items()}
    return [_json(inner) for inner in value]
