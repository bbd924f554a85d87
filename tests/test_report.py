"""The report: what it shows, that it needs no network, and that names cannot break it."""

import io
import json
import re

import pytest
from rich.console import Console

from prunus import report
from prunus.report.page import curves_figure, survivors_figure, widths_figure

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


def sparse(name: str = "layer1") -> dict:
    """A result.json of a run that set single weights to zero."""
    values = result(name) | {"budget": {"sparsity": 0.8}, "left_dense": {name: "too narrow"}}
    values["before"]["sparsity"] = 0.0
    values["pruned"]["sparsity"] = 0.8
    values["verified"] |= {"units_gone": 3, "change_by_units": 2.5e-3}
    values["after"] |= {"sparsity": 0.8125, "dense_mb": 1.1, "packed_mb": 0.33, "compressed_mb": 0.3}
    return values | {"survivors": {name: [3, 16], "head": [500, 2000]}}


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


def test_a_sparse_run_speaks_of_zeros_and_not_of_speed(tmp_path):
    text = text_of(report.summary(sparse()))
    for words in (
        "sparsity 80 %",
        "0.00 %",
        "80.00 %",
        "81.25 %",
        "+81.25 points",
        "0.33",
        "the masked original",
    ):
        assert words in text
    assert "through 3 units" in text and "2.5e-03" in text
    assert "30 %" in text  # packed, of the base's 1.1 MB
    report.write_page(tmp_path / "report.html", sparse(HOSTILE))
    ours = (tmp_path / "report.html").read_text().replace(plotly_js(), "")
    assert "81.25\N{NO-BREAK SPACE}% of the weights zero" in ours and '<div id="survivors">' in ours
    assert "left dense: too narrow" in ours and "alert(1)</script>" not in ours


def test_survivors_are_shares_of_each_layer():
    kept, removed = survivors_figure(sparse())["data"]
    assert kept["x"] == [18.75, 25.0] and removed["x"] == [81.25, 75.0]
    assert removed["text"] == ["18.8 % of 16", "25 % of 2 k"]


def test_comparison_shows_zeros_only_where_there_are_some():
    assert "zeros" not in text_of(report.comparison({"a": result()}))
    text = text_of(report.comparison({"runs/first": result(), "runs/second": sparse("lookahead")}), width=80)
    assert all(words in text for words in ("zeros=80%", "81.25 %", "after", "91.00 %"))
