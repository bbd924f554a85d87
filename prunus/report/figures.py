"""The charts of a method (result.json's "charts") as plotly figures: plain data in, plain data out.

Every figure fills the page's width, and its height follows from its contents. Texts of a method pass through `plain`
or `shorten` wherever plotly would interpret markup.
"""

import textwrap
from collections.abc import Iterable
from itertools import cycle
from typing import Any

from prunus.errors import unknown
from prunus.metrics import format_number
from prunus.report.style import INK, SERIES, layout, named_rows, plain, shorten

LIGHT, DARK = "#d5e2dc", "#17493a"  # the ends of a colour scale
OTHER, MIDDLE = (
    "#b0632a",
    "#dfe3e1",
)  # of a scale with a middle, which differs from the white of missing values
DASHES = ("dash", "dot", "dashdot")
NARROW, LETTER, SYMBOL, LEGEND_ROW = (
    320,
    7,
    50,
    20,
)  # pixels: a figure on a small screen, and parts of its legend
HEIGHT, LEAST = 340, 70  # pixels: a figure with two scales, and the least between any figure's margins
FEW, VERY_FEW = 30, 5  # points
LABEL = 32  # characters of an axis's name on a line


def figure(chart: dict[str, Any]) -> dict[str, Any]:
    """Make the figure of one chart that is no image and no text; UserError for an unknown kind."""
    kinds = {"lines": lines, "heat": heat, "points": points, "bars": bars}
    if chart["kind"] not in kinds:
        raise unknown("kind of chart", chart["kind"], [*kinds, "picture", "panels", "passages"])
    return kinds[chart["kind"]](chart)


def lines(chart: dict[str, Any]) -> dict[str, Any]:
    """Make a figure of lines: thin lines in the background, then the series, then the dashed references."""
    colors, dashes = cycle(SERIES), cycle(DASHES)
    data = [
        _line(name, _join(each), next(colors), width=1, opacity=0.6) for name, each in chart["thin"].items()
    ]
    for trace in data:
        trace["hoverinfo"] = "skip"
    for name, line in chart["series"].items():
        data.append(_line(name, line, next(colors), width=2))
        if len(line) <= FEW:  # a value between two gaps would be invisible as a line
            data[-1] |= {"mode": "lines+markers", "marker": {"size": 5}}
    data += [
        _line(name, line, INK, width=1.5, dash=next(dashes)) for name, line in chart["references"].items()
    ]
    return _plane(chart, data, log_y=chart["log_y"])


def points(chart: dict[str, Any]) -> dict[str, Any]:
    """Make a figure of points with text beside the pointer, and the front as a line in the background."""
    data = [_line("front", chart["front"], INK, width=1)] if chart["front"] else []
    for (name, group), color in zip(chart["groups"].items(), cycle(SERIES), strict=False):
        marker = {"color": color, "size": 7, "opacity": 0.75}
        if len(group) <= VERY_FEW:
            marker = {"color": color, "size": 13, "line": {"color": "white", "width": 1.5}}
        texts = [plain(text).replace("\n", "<br>") for _, _, text in group]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": shorten(name),
                "x": [x for x, _, _ in group],
                "y": [y for _, y, _ in group],
                "hovertext": texts,
                "hoverinfo": "text",
                "marker": marker,
            }
        )
    return _plane(chart, data)


def heat(chart: dict[str, Any]) -> dict[str, Any]:
    """Make a figure with a row of coloured cells for each name; missing values stay white."""
    rows, values = chart["rows"], chart["values"]
    there = [value for row in values for value in row if value is not None] or [0]
    low, high = min(0, *there), max(there)
    scale = {"colorscale": [[0, LIGHT], [1, DARK]], "zmin": low, "zmax": high if high > low else low + 1}
    if chart["middle"] is not None:
        scale = {"colorscale": [[0, OTHER], [0.5, MIDDLE], [1, DARK]], "zmid": chart["middle"]}
    dense = len(rows) > 30
    trace = {
        "type": "heatmap",
        "x": chart["x"],
        "y": list(range(len(rows))),
        "z": values,
        "hovertext": [
            [
                f"{plain(name)}<br>{plain(chart['x_label'])} {x}: {_number(value)}"
                for x, value in zip(chart["x"], row, strict=True)
            ]
            for name, row in zip(rows, values, strict=True)
        ],
        "hoverinfo": "text",
        "hoverongaps": False,
        "colorbar": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1,
            "yanchor": "bottom",
            "ypad": 9,
            "nticks": 6,
            "thickness": 10,
            "title": {"text": _label(chart["value_label"]), "side": "top"},
        },
        **scale,
    }
    label, over = _label(chart["x_label"]), _label(chart["value_label"])
    shape = layout(
        height=140 + max(LEAST, (14 if dense else 22) * len(rows)) + 20 * (label + over).count("<br>")
    )
    shape["margin"] |= {"t": 0}  # plotly adds the height of the colour bar
    shape["xaxis"] |= {"title": {"text": label}, "automargin": True, "showgrid": False}
    shape["yaxis"] = named_rows(rows) | ({"tickfont": {"size": 10}} if dense else {})
    return {"data": [trace], "layout": shape}


def bars(chart: dict[str, Any]) -> dict[str, Any]:
    """Make a figure with a group of horizontal bars for each label."""
    labels, series = chart["labels"], chart["series"]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": shorten(name),
            "y": list(range(len(labels))),
            "x": values,
            "hovertext": [
                f"{plain(label)}<br>{plain(name)} {_number(v)}"
                for label, v in zip(labels, values, strict=True)
            ],
            "hoverinfo": "text",
            "marker": {"color": color},
        }
        for (name, values), color in zip(series.items(), cycle(SERIES), strict=False)
    ]
    height = 110 + max(LEAST, (10 + 11 * len(series)) * len(labels))
    shape = layout(
        height=height + _legend_height(data), barmode="group", bargap=0.3, showlegend=len(data) > 1
    )
    shape["xaxis"] |= {"title": {"text": _label(chart["value_label"])}, "automargin": True}
    shape["yaxis"] = named_rows(labels)
    return {"data": data, "layout": shape}


def _line(
    name: str, line: Iterable[Any], color: str, opacity: float = 1.0, **style: object
) -> dict[str, Any]:
    x, y = zip(*line, strict=True) if line else ((), ())
    return {
        "type": "scatter",
        "mode": "lines",
        "name": shorten(name),
        "x": list(x),
        "y": list(y),
        "opacity": opacity,
        "line": {"color": color, **style},
    }


def _join(lines: list[Any]) -> list[Any]:
    """Join many lines into one with gaps, because plotly draws one line faster."""
    return [point for line in lines for point in [*line, (None, None)]]


def _plane(chart: dict[str, Any], data: list[dict[str, Any]], log_y: bool = False) -> dict[str, Any]:
    """Make a figure of lines or points, with a title for both axes."""
    shape = layout(height=HEIGHT + _legend_height(data), showlegend=len(data) > 1)
    shape["yaxis"] = dict(shape["xaxis"])
    for axis, of, label in (("xaxis", "x", "x_label"), ("yaxis", "y", "y_label")):
        most = max((abs(value) for trace in data for value in trace[of] if value is not None), default=0)
        # 41 M rather than 4.1e7; but 0.005 rather than 5 m
        shape[axis] |= {
            "title": {"text": _label(chart[label])},
            "automargin": True,
            "exponentformat": "SI" if most >= 1000 else "power",
        }
    if log_y:
        shape["yaxis"] |= {"type": "log", "tickformat": "~g"}
    return {"data": data, "layout": shape}


def _legend_height(data: list[dict[str, Any]]) -> int:
    """The pixels of a legend on a small screen beyond its first row, which plotly would take from the plot."""
    widest = max((LETTER * len(trace["name"]) for trace in data), default=0) + SYMBOL
    return LEGEND_ROW * ((len(data) - 1) // max(1, NARROW // widest))


def _label(text: str) -> str:
    """Break the name of an axis into lines that fit a small figure."""
    return "<br>".join(map(plain, textwrap.wrap(text, LABEL)))


def _number(value: float | None) -> str:
    if value is None:
        return "no value"
    return format_number(value, 3) if abs(value) >= 1e6 else f"{value:g}"
