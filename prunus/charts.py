"""Charts of a method's search, as plain data that report.html shows.

A method returns charts in `Pruned.charts`, a run stores them in result.json, and the report draws them from there.
Numbers may be Python's, numpy's or tensors; None and NaN are gaps. A chart whose parts do not fit together is an error
of the method that made it and raises ValueError. A page with a few thousand points opens at once; thin out more.
"""

import base64
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Line = Sequence[tuple[float, float | None]]  # (x, y), in order of x

DIGITS = 6  # significant digits of numbers in JSON, enough for any chart
PNG = b"\x89PNG\r\n\x1a\n"  # the first bytes of every PNG file


@dataclass(frozen=True, kw_only=True)
class Chart:
    """The base of all charts.

    Args:
        title: The heading.
        note: One or two sentences under the chart that say how to read it.
    """

    title: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Lines(Chart):
    """Quantities that change, for example over the steps of a training.

    Args:
        x_label: The quantity along x.
        y_label: The quantity along y.
        series: Lines by name, each (x, y) in order of x.
        references: Dashed lines by name: a plan, a target, a threshold.
        thin: Many lines of one kind, such as every kept unit: kind -> lines, in one colour, named once.
        log_y: Whether y is logarithmic; values that are not above 0 are then not shown.
    """

    x_label: str
    y_label: str
    series: Mapping[str, Line] = field(default_factory=dict)
    references: Mapping[str, Line] = field(default_factory=dict)
    thin: Mapping[str, Sequence[Line]] = field(default_factory=dict)
    log_y: bool = False


@dataclass(frozen=True, kw_only=True)
class Heat(Chart):
    """A colour for each row and each x, for example every layer's width over time.

    Args:
        rows: The rows' names, from the top.
        x: The positions along x.
        x_label: The quantity along x.
        values: The numbers shown as colours, (rows, x).
        value_label: The quantity that the colours show.
        middle: The value at which one hue changes to another; None: one hue, from 0 unless a value is negative.

    Raises:
        ValueError: `values` is not (rows, x).
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
    """One point for each candidate, for example its score against its cost.

    Args:
        x_label: The quantity along x.
        y_label: The quantity along y.
        groups: Points by group name, each (x, y, text shown beside the pointer).
        front: A line, for example through the best score at each cost.
    """

    x_label: str
    y_label: str
    groups: Mapping[str, Sequence[tuple[float, float | None, str]]]
    front: Line = ()


@dataclass(frozen=True, kw_only=True)
class Bars(Chart):
    """Bars side by side for each label, for example the widths of two networks.

    Args:
        labels: The groups of bars.
        value_label: The quantity that the bars show.
        series: Values by name, one for each label.

    Raises:
        ValueError: A series has another number of values than there are labels.
    """

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
    """An image, for example a visual prompt. (Not called Image, because its kind "picture" is stored in result.json.)

    Args:
        png: The bytes of a PNG file; small images are shown enlarged.

    Raises:
        ValueError: `png` does not begin as a PNG file does.
    """

    png: bytes

    def __post_init__(self) -> None:
        check_png(f"picture {self.title!r}", self.png)


@dataclass(frozen=True, kw_only=True)
class Panels(Chart):
    """Images side by side, for example an input, several answers to it and the truth.

    Args:
        panels: Captions, each with the bytes of a PNG file.

    Raises:
        ValueError: The bytes do not begin as those of a PNG file.
    """

    panels: Sequence[tuple[str, bytes]]

    def __post_init__(self) -> None:
        for caption, png in self.panels:
            check_png(f"panel {caption!r} of {self.title!r}", png)


@dataclass(frozen=True, kw_only=True)
class Passages(Chart):
    """Texts one below the other, for example an input, several answers to it and the truth.

    Args:
        passages: Captions, each with a text, which is shown as it is, line breaks included.
    """

    passages: Sequence[tuple[str, str]]


def check_png(what: str, png: bytes) -> None:
    """Raise ValueError unless `png` begins as a PNG file does."""
    if not png.startswith(PNG):
        raise ValueError(f"{what} should be the bytes of a PNG file, but begins with {png[:8]!r}.")


def to_json(chart: Chart) -> dict:
    """Convert a chart to JSON.

    Args:
        chart: Any of the charts above.

    Returns:
        Its fields, and its class's name in small letters as "kind".
    """
    values = {each.name: _json(getattr(chart, each.name)) for each in dataclasses.fields(chart)}
    return {"kind": type(chart).__name__.lower(), **values}


def _json(value: Any) -> object:
    if hasattr(value, "tolist"):  # an array, a tensor, or a numpy scalar
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
