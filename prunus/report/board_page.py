"""compare.html: a comparison as one page, with pictures of quality against cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.charts import Points, to_json
from prunus.metrics import Metric
from prunus.report.board import failures, metric_of, sentences, tables_of
from prunus.report.figures import figure
from prunus.report.page import write_html

COSTS = {  # of the figures of an arm: what it is called, and how much of it is shown as 1
    "macs": ("multiply-adds for one input, millions", 1e6),
    "latency_ms": ("milliseconds for one input, measured in turns", 1.0),
}
NOTE = (
    "A point is a run: points of one colour that stand together are the seeds of one budget, and show the spread. The "
    "line joins the means that no other arm beats at that cost or less. (before) is the unpruned network."
)


def write_board(path: Path, board: Mapping[str, Any]) -> None:
    """Write the page of a comparison, whole or not at all.

    Args:
        path: The file to write.
        board: The contents of compare.json.
    """
    charts = {name: to_json(cost_chart(board, name)) for name in COSTS}
    write_html(
        path,
        "board.html.j2",
        title=f"comparison, {board['model']}",
        board=board,
        metric=metric_of(board),
        tables=tables_of(board),
        notes=sentences(board),
        failed=failures(board),
        charts=charts,
        figures={name: figure(chart) for name, chart in charts.items()},
    )


def cost_chart(board: Mapping[str, Any], cost: str) -> Points:
    """Make the picture of the metric against a cost: a point for each run, and the Pareto front of the means.

    Args:
        board: The contents of compare.json.
        cost: "macs" or "latency_ms".

    Returns:
        The chart.
    """
    metric, (label, one) = metric_of(board), COSTS[cost]
    base, before = board["base"], board["base"]["metric"]
    groups: dict[str, list[tuple[float, float | None, str]]] = {}
    means: list[tuple[float, float]] = []
    if before is not None:
        groups["(before)"] = [point(base[cost] / one, before[0], "(before)", metric, label)]
        means.append((base[cost] / one, before[0]))
    for arm in board["arms"]:
        if arm["figures"]:
            figures = arm["figures"]
            told = point(figures[cost] / one, figures["recovered"], arm["name"], metric, label)
            groups.setdefault(arm["method"], []).append(told)
    for row in board["rows"]:
        if row.get(cost) and row.get("recovered"):
            means.append((row[cost][0] / one, row["recovered"][0]))
    unit = f", {metric.unit}" if metric.unit else ""
    return Points(
        title=f"{metric.key} against {label.partition(',')[0]}",
        note=NOTE,
        x_label=label,
        y_label=f"{metric.key}{unit}",
        groups=groups,
        front=[(x, metric.factor * y) for x, y in pareto_front(means, metric.higher_is_better)],
    )


def point(
    x: float, value: float | None, name: str, metric: Metric, label: str
) -> tuple[float, float | None, str]:
    """Make a point with the text beside the pointer."""
    y = None if value is None else metric.factor * value
    return x, y, f"{name}\n{metric.text(value)}\n{x:.3g} {label.partition(' for')[0]}"


def pareto_front(points: Sequence[tuple[float, float]], higher: bool) -> list[tuple[float, float]]:
    """Return the points that no other beats at the same cost or less, by rising cost.

    Args:
        points: (cost, value).
        higher: Whether a higher value is better.

    Returns:
        The points of the front.
    """
    sign = 1 if higher else -1
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda each: (each[0], -sign * each[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append((x, y))
    return front
