"""A comparison (compare.json) as rows of text, and as a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from prunus.metrics import Metric, format_number
from prunus.report.rows import budget_text

Spread = Sequence[float | None] | None  # a mean, and the standard deviation if there are several values


def board_table(board: Mapping[str, Any]) -> Group:
    """Make the tables of a comparison, one for each budget, with the reasons of the arms that failed below.

    Args:
        board: The contents of compare.json.

    Returns:
        A renderable for rich's console.
    """
    parts: list[Table | Text] = []
    for title, rows in tables_of(board).items():
        table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in rows[0]:
            left = heading == "method"
            table.add_column(
                heading, justify="left" if left else "right", overflow="fold", min_width=16 * left
            )
        for row in rows:
            table.add_row(*map(Text, row.values()))
        parts.append(table)
    return Group(*parts, *map(Text, [*sentences(board), *failures(board)]))


def tables_of(board: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Make the tables of a comparison as text.

    Args:
        board: The contents of compare.json.

    Returns:
        By the title, such as "macs <= 50 %", the rows, each by the headings of its columns; the unpruned network is the
        first row.
    """
    metric = metric_of(board)
    limits: dict[str, list[dict[str, Any]]] = {}
    for row in board["rows"]:
        limits.setdefault(budget_text({"budget": row["limit"]}), []).append(row)
    return {
        limit: [base_row(board, metric, rows), *(cells(row, metric, rows) for row in rows)]
        for limit, rows in limits.items()
    }


def base_row(board: Mapping[str, Any], metric: Metric, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Make the row of the unpruned network, with the columns of `rows`."""
    base = board["base"]
    known = {
        "method": "(before)",
        "seeds": "",
        "macs": format_number(base["macs"], 3),
        "params": format_number(base["params"], 3),
        "ms": f"{base['latency_ms']:.3g}",
        "recovered": spread_text(base["metric"], metric),
    }
    return {heading: known.get(heading, "") for heading in cells(rows[0], metric, rows)}


def cells(row: Mapping[str, Any], metric: Metric, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Make the cells of a row by their headings; columns that no row of the table has are left out.

    Args:
        row: A row of compare.json.
        metric: The metric.
        rows: All rows of the table.

    Returns:
        The text of each cell.
    """
    some = {name for each in rows for name, value in each.items() if value is not None}
    found = {
        "method": row["method"],
        "seeds": str(row["seeds"]) if row["seeds"] == row["asked"] else f"{row['seeds']} of {row['asked']}",
        "macs": share_text(row.get("macs_share")),
        **({"zeros": share_text(row.get("sparsity"))} if "sparsity" in some else {}),
        "params": share_text(row.get("params_share")),
        "ms": spread_text(row.get("latency_ms")),
        "as cut": spread_text(row.get("as_cut"), metric),
        **({"repaired": spread_text(row.get("repaired"), metric)} if "repaired" in some else {}),
        "recovered": spread_text(row.get("recovered"), metric),
    }
    if "gain" in some:
        found["gain"] = gain_text(row["gain"], metric)
    return found


def metric_of(board: Mapping[str, Any]) -> Metric:
    """Return the metric of a comparison."""
    return Metric(**board["metric_shown"])


def spread_text(values: Spread, metric: Metric | None = None) -> str:
    """Write a mean, and the standard deviation if there is one, in the metric's unit, such as "91.20 ± 0.31"."""
    if values is None:
        return ""
    texts = [
        f"{metric.factor * value:.{metric.digits}f}" if metric else f"{value:.3g}"
        for value in values
        if value is not None
    ]
    return " ± ".join(texts)


def gain_text(values: Spread, metric: Metric) -> str:
    """Write a difference as `spread_text` does, with its sign."""
    text = spread_text(values, metric)
    return text if not text or text.startswith("-") else f"+{text}"


def share_text(values: Spread) -> str:
    """Write the mean of shares as per cent."""
    return "" if values is None or values[0] is None else f"{100 * values[0]:.3g} %"


def sentences(board: Mapping[str, Any]) -> list[str]:
    """Say how the table is to be read."""
    metric = metric_of(board)
    where = "the test set" if board["judged_on"] == "test" else "val, as there is no test set"
    unit = f" in {metric.unit}" if metric.unit else ""
    better = "" if metric.higher_is_better else "; lower is better"
    first, base = board["rows"][0]["method"], board["base"]
    chance = 100 * abs(base["again_latency_ms"] / base["latency_ms"] - 1)
    return [
        f"{metric.key}{unit} on {where}{better}; mean ± standard deviation over seeds. Gain: the difference to "
        f"{first}, the first method, seed by seed.",
        "Epochs after the base, of search and recovery together, the same for every arm: "
        f"{board['total_epochs']:g} (scratch: and as many as the base).",
        "Milliseconds are of one input, all measured in turns at the end. A second copy of the unpruned network took "
        f"{chance:.0f} % more or less than it: smaller differences are chance.",
    ]


def failures(board: Mapping[str, Any]) -> list[str]:
    """Say which arms failed, and why."""
    return [f"{arm['name']} failed: {arm['failed']}" for arm in board["arms"] if arm["failed"]]
