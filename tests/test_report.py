"""The report: what it shows, that it needs no network, and that names cannot break it."""

import io
import json
import re

import pytest
from rich.console import Console

from prunus import report
from prunus.report.page import curves_figure, widths_figure

HOSTILE = "</script><script>alert(1)</script><b>&\"' {{ 7*7 }} $x$ ü"


def result(name: str = "layer1", seed: int = 0, accuracy: float = 0.91) -> dict:
    """A result.json as a run would write it, with `name` wherever a name stands."""
    epochs = [{"epoch": epoch, "loss": 1 / (epoch + 1), "lr": 0.1, "accuracy": 0.5} for epoch in range(3)]
    costs = {"macs": 41e6, "params": 272e3, "latency_ms": 2.5, "memory_mb": 1.5, "file_mb": 1.1}
    return {
        "method": name,
        "seed": seed,
        "budget": {"macs": 0.5},
        "metric": "accuracy",
        "before": costs | {"accuracy": 0.92, "loss": 0.3},
        "pruned": {"accuracy": 0.4, "loss": None},
        "after": {key: value / 2 for key, value in costs.items()} | {"accuracy": accuracy, "loss": 0.3},
        "verified": {"max_abs_error": 1e-6, "tolerance": 1e-4},
        "widths": {name: [3, 8], "layer2": [8, 8]},
        "history": {"base": epochs, "recover": epochs[:2]},
        "seconds": {"base": 60.0, "recover": 30.0},
        "versions": {"torch": "2.13.0"},
        "machine": {"system": name, "threads": 2},
        "settings": {"model": name, "data": "digits", "seed": seed, "weights": None},
    }


def text_of(renderable, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_summary_says_what_a_newcomer_asks():
    text = text_of(report.summary(result()))
    for words in ("41 M", "20.5 M", "50 %", "92.00 %", "40.00 %", "91.00 %", "-1.00 points", "Proved"):
        assert words in text


def test_comparison_gives_mean_and_spread_over_seeds():
    runs = {"a": result(), "b": result(seed=1, accuracy=0.93), "c": result("other")}
    text = " ".join(text_of(report.comparison(runs), width=78).split())
    assert "accuracy 92.00 % on average over 2 seeds, standard deviation 1.41 points" in text
    assert text.count("average") == 1


def test_page_is_one_file_without_network(tmp_path):
    report.write_page(tmp_path / "report.html", result())
    page = (tmp_path / "report.html").read_text()
    ours = page.replace(plotly_js(), "")
    assert plotly_js() in page
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?!data:)[\w/]", ours)
    assert "http" not in ours


@pytest.mark.parametrize("name", [HOSTILE, "{% raw %}", "x" * 200])
def test_names_cannot_break_the_page(tmp_path, name):
    report.write_page(tmp_path / "report.html", result(name))
    ours = (tmp_path / "report.html").read_text().replace(plotly_js(), "")
    assert "alert(1)</script>" not in ours
    assert ours.count("<script>") == 2
    figures = json.loads(re.search(r"const figures = (.*);\n", ours)[1])
    assert figures["widths"]["data"][0]["x"] == [3, 8]


def test_figures_show_every_axis_and_epoch():
    widths, curves = widths_figure(result()), curves_figure(result())
    assert widths["data"][0]["x"] == [3, 8] and widths["data"][1]["x"] == [5, 0]
    assert [line["x"] for line in curves["data"]] == [[1, 2, 3], [1, 2, 3], [4, 5], [4, 5]]


def test_a_run_without_training_has_no_curves(tmp_path):
    values = result() | {"history": {"base": [], "recover": []}}
    report.write_page(tmp_path / "report.html", values)
    assert '<div id="curves">' not in (tmp_path / "report.html").read_text()


def plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
