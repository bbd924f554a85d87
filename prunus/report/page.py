"""report.html: one page that contains all it shows, plotly.js included, so it opens without a network."""

import json
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from prunus.files import write_atomic
from prunus.metrics import Metric, format_number
from prunus.report.figures import figure
from prunus.report.rows import (
    budget_text,
    columns,
    data_sentence,
    int8_sentence,
    latency_sentence,
    metric_of,
    proof_sentence,
    recovery_sentence,
    repair_sentence,
    rows,
)
from prunus.report.style import BASE, GRID, KEPT, REMOVED, layout, named_rows, plain

SECTIONS = {"config": "options of the method", "base": "training before pruning", "recovery": "recovery"}
PLAIN = ("picture", "panels", "passages")  # kinds of charts that are no figures
STAGES = {"base": "base (before pruning)", "recover": "recovery (after pruning)"}


def write_page(path: Path, result: dict[str, Any]) -> None:
    """Write the page of a run, whole or not at all.

    Args:
        path: The file to write.
        result: The run's result.json.

    Raises:
        UserError: A chart of the method has an unknown kind.
    """
    metric, after = metric_of(result), result["after"]
    charts, examples = result.get("charts", []), result.get("examples", [])
    write_html(
        path,
        "page.html.j2",
        title=result["settings"]["model"],
        result=result,
        headline=_headline(result),
        budget=budget_text(result),
        columns=columns(result),
        rows=rows(result),
        repair=repair_sentence(result),
        recovery=recovery_sentence(result),
        proof=proof_sentence(result),
        int8=int8_sentence(result),
        kept=latency_sentence(result),
        data=data_sentence(result),
        proved=result["verified"].get("max_abs_error") is not None,
        score=metric.text(after[metric.key]),
        charts=charts,
        examples=examples,
        figures={
            "survivors": survivors_figure(result),
            "widths": widths_figure(result),
            "curves": curves_figure(result),
            **figures("chart", charts),
            **figures("example", examples),
        },
        facts=_facts(result),
    )


def write_html(path: Path, template: str, **values: Any) -> None:
    """Write a page from a template, whole or not at all.

    Args:
        path: The file to write.
        template: The file of the template, which extends layout.html.j2: it needs `title`, and `figures`, each by the
            id of its place.
        values: What the template shows.
    """
    templates = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=templates, autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.get_template(template).render(**values, plotly_js=get_plotlyjs())
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def figures(name: str, charts: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Make the figures of charts that are drawn, by their places on the page: `name` and the number of the chart."""
    return {f"{name}{i}": figure(chart) for i, chart in enumerate(charts) if chart["kind"] not in PLAIN}


def widths_figure(result: dict[str, Any]) -> dict[str, Any]:
    """Make a figure of kept and removed units per axis: stacked horizontal bars, as plain data for plotly."""
    names = list(result["widths"])
    kept = [result["widths"][name][0] for name in names]
    totals = [result["widths"][name][1] for name in names]
    hover = [f"{k} of {t} kept" for k, t in zip(kept, totals, strict=True)]
    bars, shape = _bars(names, kept, totals, [f"{k}/{t}" for k, t in zip(kept, totals, strict=True)], hover)
    shape["xaxis"] |= {"title": {"text": "units"}, "range": [0, 1.35 * max(totals, default=1)]}
    return {"data": bars, "layout": shape}


def survivors_figure(result: dict[str, Any]) -> dict[str, Any]:
    """Make a figure of the share of single weights left in each layer, like `widths_figure`."""
    names, counts = list(result.get("survivors", {})), list(result.get("survivors", {}).values())
    shares = [100 * kept / there for kept, there in counts]
    texts = [
        f"{share:.3g} % of {format_number(there, 3)}"
        for share, (_, there) in zip(shares, counts, strict=True)
    ]
    hover = [f"{kept} of {there} kept" for kept, there in counts]
    bars, shape = _bars(names, shares, [100.0] * len(shares), texts, hover)
    shape["xaxis"] |= {"title": {"text": "per cent of the layer's weights"}, "range": [0, 135]}
    return {"data": bars, "layout": shape}


def _bars(
    names: list[str], kept: list[Any], totals: list[Any], texts: list[str], hover: list[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Make stacked bars, kept and removed, a row for each name with a text after it; and their layout."""
    common: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(names))),
        "hoverinfo": "text",
    }
    common["hovertext"] = [f"{plain(name)}<br>{text}" for name, text in zip(names, hover, strict=True)]
    removed = [total - keep for keep, total in zip(kept, totals, strict=True)]
    after = {"text": texts, "textposition": "outside", "cliponaxis": False}
    bars = [
        {**common, "name": "kept", "x": kept, "marker": {"color": KEPT}},
        {**common, "name": "removed", "x": removed, "marker": {"color": REMOVED}, **after},
    ]
    shape = layout(height=110 + 26 * len(names), barmode="stack", bargap=0.3)
    shape["yaxis"] = named_rows(names)
    return bars, shape


def curves_figure(result: dict[str, Any]) -> dict[str, Any]:
    """Make a figure of the metric on held-out training data and the loss per epoch: base, then recovery."""
    metric = metric_of(result)
    data: list[dict[str, Any]] = []
    start = 0.0
    for stage, color in (("base", BASE), ("recover", KEPT)):
        history = result["history"].get(stage) or []
        epochs = [start + (row.get("epoch") or number) for number, row in enumerate(history, 1)]
        start = epochs[-1] if epochs else start
        for key, axis in ((metric.key, "y"), ("loss", "y2")):
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "x": epochs,
                    "y": [row.get(key) for row in history],
                    "yaxis": axis,
                    "name": STAGES[stage],
                    "line": {"color": color},
                    "legendgroup": stage,
                    "showlegend": axis == "y",
                }
            )
    shape = layout(height=480)
    shape["xaxis"] |= {"title": {"text": "epoch"}, "anchor": "y2", "rangemode": "tozero"}
    shape["yaxis"] = {"title": {"text": plain(metric.key)}, "domain": [0.56, 1], **_ticks(metric)}
    shape["yaxis2"] = {"title": {"text": "training loss"}, "domain": [0, 0.44]}
    for axis in ("yaxis", "yaxis2"):
        shape[axis] |= {"automargin": True, "fixedrange": True, "gridcolor": GRID, "zeroline": False}
    return {"data": data, "layout": shape}


def _headline(result: dict[str, Any]) -> str:
    before, after, metric = result["before"], result["after"], metric_of(result)
    shares = {key: f"{100 * after[key] / before[key]:.0f} % of the" for key in ("macs", "params")}
    what = f"{shares['macs']} multiply-adds, {shares['params']} parameters"
    if "sparsity" in after:
        packed = f"{100 * after['packed_mb'] / before['file_mb']:.0f} % of the size on disk when packed"
        what = f"{100 * after['sparsity']:.4g} % of the weights zero, {packed}"
    was, now = metric.text(before[metric.key]), metric.text(after[metric.key])
    return f"{what}, {metric.key} {was} → {now}".replace(" %", "\N{NO-BREAK SPACE}%")


def _ticks(metric: Metric) -> dict[str, str]:
    """Return the labels of the metric's axis: shares as per cent, other values as they are stored."""
    if metric.unit == "%" and metric.factor == 100:
        return {"tickformat": ".0%"}
    return {"ticksuffix": f" {plain(metric.unit)}"} if metric.unit and metric.factor == 1 else {}


def _facts(result: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the details by section, as text: settings that are set, seconds, versions, machine, and the environments,
    if the run was continued in another."""
    settings = result["settings"]
    inner = {key: value for key, value in settings.items() if isinstance(value, dict)}
    sections = {"settings": {key: value for key, value in settings.items() if key not in inner}, **inner}
    sections |= {title: result[title] for title in ("seconds", "versions", "machine")}
    environments = result.get("environments", [])  # results of earlier versions have none
    if len(environments) > 1:
        texts = [", ".join(f"{name} {value}" for name, value in each.items()) for each in environments]
        sections["environments, one after the other"] = {str(n): text for n, text in enumerate(texts, 1)}
    return {
        SECTIONS.get(title, title): {
            key: _text(value) for key, value in values.items() if value is not None and value != []
        }
        for title, values in sections.items()
    }


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
