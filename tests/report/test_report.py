"""The report: what it shows, that it needs no network, and that names cannot break it."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from prunus import charts, report
from prunus.errors import FileError, UserError
from prunus.files import read_json, write_json
from prunus.methods import Pruned, magnitude
from prunus.report.figures import figure
from prunus.report.page import curves_figure, survivors_figure, widths_figure

HOSTILE = "</script><script>alert(1)</script><b>&\"' {{ 7*7 }} $x$ ü"


def result(name: str = "layer1", seed: int = 0, accuracy: float = 0.91) -> dict:
    """A result.json as a run would write it, with `name` wherever a name stands."""
    epochs = [{"epoch": epoch, "loss": 1 / (epoch + 1), "lr": 0.1, "accuracy": 0.5} for epoch in (1, 2, 3)]
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


def repaired(kept: str = "repaired") -> dict:
    """A result.json of a run that repaired, with the model that went on."""
    test = {"test": {"accuracy": 0.8, "loss": 0.5}} if kept == "repaired" else {}
    both = {"cut": 0.5, "repaired": 0.79} if kept == "repaired" else {"cut": 0.5, "repaired": None}
    found = {"how": "order", "kept": kept, "on_val": both, "examples": 1024, "layers": 9, "left": {"a": "b"}}
    return result() | {
        "repaired": found | {"unexplained": [0.31, 0.0625]} | test,
        "input": {"shape": [1, 8, 8]},
    }


def test_a_repaired_model_has_a_column_of_its_own(tmp_path):
    text = " ".join(text_of(report.summary(repaired()), width=120).split())
    assert "before ┃ as cut ┃ repaired ┃ recovered" in text
    assert "92.00 % │ 40.00 % │ 80.00 % │ 91.00 %" in text
    assert "41 M │ 20.5 M │ 20.5 M │ 20.5 M" in text
    said = (
        "Repaired without labels: 9 layers fitted to 1024 examples, and 1 left; on average 6.25 % of a layer's output "
        "is left unexplained, 31 % as cut. On val 79.00 %; with renewed norms alone 50.00 %; the "
        "repaired model was kept."
    )
    assert said in text
    report.write_page(tmp_path / "report.html", repaired())
    page = (tmp_path / "report.html").read_text()
    assert "<th>as cut</th><th>repaired</th><th>recovered</th>" in page and "80.00 %" in page
    assert "“As cut” is the smaller model" in page and "9 layers fitted" in page


def test_a_repair_that_was_not_kept_has_a_sentence_and_no_column(tmp_path):
    text = " ".join(text_of(report.summary(repaired("cut")), width=120).split())
    assert "before ┃ pruned ┃ recovered" in text and "80.00 %" not in text
    assert "On val not finite; with renewed norms alone 50.00 %; the model as cut was kept." in text
    values = result() | {"repaired": {"how": "order", "kept": "cut", "refused": "no."}}
    assert "Not repaired: no. The model was kept as it was cut." in text_of(report.summary(values))
    assert "repair" not in text_of(report.summary(result())).lower()


@pytest.mark.parametrize("dense", [{"accuracy": 0.91, "loss": 0.5}, None])
def test_what_a_model_is_in_8_bits_has_a_row(dense, tmp_path):
    values = result() | {"int8": {"before": dense, "after": {"accuracy": 0.905}, "examples": 256}}
    text = " ".join(text_of(report.summary(values), width=120).split())
    assert ("accuracy in 8 bits │ 91.00 % │ │ 90.50 % │ -0.50 points" in text) == bool(dense)
    assert "In 8 bits: accuracy 90.50 % on the test set, 91.00 % in 32 bits" in text
    assert ("; the dense model 91.00 % and 92.00 %. Ranges were" in text) == bool(dense)
    report.write_page(tmp_path / "report.html", values)
    page = (tmp_path / "report.html").read_text()
    assert "<td>accuracy in 8 bits</td>" in page and "In 8 bits: accuracy 90.50" in page
    assert report.int8_sentence(result()) == ""


@pytest.mark.parametrize("kept", ["repaired", "cut"])
def test_what_a_repair_gained_is_read_back(tmp_path, kept):
    write_json(tmp_path / "result.json", repaired(kept))
    assert report.read_result(tmp_path / "result.json")["repaired"]["kept"] == kept
    damaged = repaired("repaired")
    damaged["repaired"]["test"] = {"loss": 0.5}
    write_json(tmp_path / "result.json", damaged)
    with pytest.raises(FileError, match=r"repaired\.test, should hold 'accuracy'"):
        report.read_result(tmp_path / "result.json")


def test_markup_in_names_reaches_no_console():
    """Also where a user prints a table with a console of rich that reads markup."""
    name = "[bold]x[/nothing]"
    latency = {
        "runtime": name,
        "device": name,
        "threads": 1,
        "original_ms": 2.0,
        "measured_ms": 1.0,
        "limit_ms": 1.0,
    }
    latency |= {"predicted_ms": 1.0, "held_out": 3, "r2": 0.9, "worst_error": 0.1}
    shown = {"key": name, "unit": name, "higher_is_better": True, "factor": 1.0, "digits": 2}
    values = result(name) | {"latency": latency, "metric_shown": shown, "metric": name}
    for part in ("before", "pruned", "after"):
        values[part] |= {name: 0.5}
    row = {"median_ms": 1.0}
    record = {"rows": {"1": {name: row}}}
    for table in (report.summary(values), report.comparison({name: values}), report.bench_table(record)):
        assert name in text_of(table, width=300)


def test_a_metric_that_was_not_finite_is_shown_as_such(tmp_path):
    runs = [result(seed=seed) for seed in range(2)]
    runs[1]["after"]["accuracy"] = None
    assert "not finite" in text_of(report.summary(runs[1]))
    text = text_of(report.comparison({"a": runs[0], "b": runs[1]}))
    assert "not finite" in text and "average" not in text
    report.write_page(tmp_path / "report.html", runs[1])


def test_comparison_gives_mean_and_spread_over_seeds():
    runs = {"a": result(), "b": result(seed=1, accuracy=0.93), "c": result("other")}
    text = " ".join(text_of(report.comparison(runs), width=78).split())
    assert "accuracy 92.00 % on average over 2 seeds, standard deviation 1.41 points" in text
    assert text.count("average") == 1


def test_page_says_where_a_run_was_continued_in_another_environment(tmp_path):
    one, other = {"threads": 1, "torch": "2.13.0"}, {"threads": 2, "torch": "2.13.0"}
    for environments, shown in (([one], False), ([one, other], True)):
        report.write_page(tmp_path / "report.html", result() | {"environments": environments})
        page = (tmp_path / "report.html").read_text()
        assert ("one after the other" in page) == ("threads 2, torch 2.13.0" in page) == shown


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


def test_a_fraction_of_an_epoch_is_drawn_where_it_ends():
    values = result()
    values["history"] = {
        "base": [{"epoch": 1, "loss": 1.0}, {"epoch": 1.5, "loss": 0.5}],
        "recover": [{"epoch": 0.25}],
    }
    assert [line["x"] for line in curves_figure(values)["data"]] == [[1, 1.5], [1, 1.5], [1.75], [1.75]]


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


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 3), (200, 10, 30)).save(file, "PNG")
    return file.getvalue()


def every_kind(name: str = "layer1") -> list[dict]:
    """A chart of each kind as a run would write it, with `name` wherever words stand, and with gaps."""
    nan = float("nan")
    words = {"title": name, "note": f"how to read {name}"}
    line = [(0, 1.0), (1, nan), (2, None), (3, 0.25)]
    plane = {"x_label": name, "y_label": name}
    return [
        charts.to_json(chart)
        for chart in (
            charts.Lines(
                **words, **plane, series={name: line}, references={name: line}, thin={name: [line, line]}
            ),
            charts.Heat(
                **words,
                rows=[name, "layer2"],
                x=np.arange(3),
                x_label=name,
                values=torch.tensor([[0.5, nan, 1.0], [0.2, 0.1, float("inf")]], requires_grad=True),
                value_label=name,
            ),
            charts.Points(
                **words, **plane, groups={name: [(1, nan, name), (2, np.float32(0.5), name)]}, front=line
            ),
            charts.Bars(**words, labels=[name, "layer2"], value_label=name, series={name: [3, None]}),
            charts.Picture(**words, png=picture()),
        )
    ]


def drawn(tmp_path, charts_: list[dict]) -> tuple[str, dict]:
    """The page with these charts, less plotly's own text, and its figures by the place they go to."""
    report.write_page(tmp_path / "report.html", result() | {"charts": charts_})
    ours = (tmp_path / "report.html").read_text().replace(plotly_js(), "")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return ours, json.loads(re.search(r"const figures = (.*);\n", ours)[1], parse_constant=refuse)


class Seen(HTMLParser):
    """The tags of a page, and the text between them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_charts_are_plain_json_with_gaps_for_what_is_no_number():
    lines, heat, points, _, image = every_kind()
    assert json.loads(json.dumps([lines, heat, points], allow_nan=False)) == [lines, heat, points]
    assert lines["series"]["layer1"] == [[0, 1.0], [1, None], [2, None], [3, 0.25]]
    assert heat["x"] == [0, 1, 2] and heat["values"][0] == [0.5, None, 1.0] and heat["values"][1][2] is None
    assert points["groups"]["layer1"][1] == [2, 0.5, "layer1"]
    assert base64.b64decode(image["png"]) == picture()
    assert [chart["kind"] for chart in every_kind()] == ["lines", "heat", "points", "bars", "picture"]


def test_every_kind_of_chart_is_on_the_page_with_its_words(tmp_path):
    page, figures = drawn(tmp_path, every_kind())
    seen = Seen(page)
    places = {attrs["id"] for tag, attrs in seen.tags if tag == "div" and "id" in attrs}
    assert {f"chart{i}" for i in range(4)} <= places & figures.keys()
    (shown,) = [attrs["src"] for tag, attrs in seen.tags if tag == "img"]
    assert base64.b64decode(shown.removeprefix("data:image/png;base64,")) == picture()
    assert seen.text.count("how to read layer1") == 5
    order = [
        page.index(f">{heading}<") for heading in ("What was kept", "How the units were chosen", "Training")
    ]
    assert order == sorted(order)
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?!data:)[\w/]", page) and "http" not in page


def test_examples_are_images_side_by_side_with_their_captions(tmp_path):
    chart = charts.Panels(
        title="Test image 1", note="how to judge", panels=[("input: 20 dB", picture()), ("truth", picture())]
    )
    report.write_page(tmp_path / "report.html", result() | {"examples": [charts.to_json(chart)]})
    seen = Seen((tmp_path / "report.html").read_text().replace(plotly_js(), ""))
    images = [attrs for tag, attrs in seen.tags if tag == "img"]
    assert [attrs["alt"] for attrs in images] == ["input: 20 dB", "truth"]
    assert all(base64.b64decode(attrs["src"].partition(",")[2]) == picture() for attrs in images)
    assert {"Examples", "Test image 1", "how to judge", "input: 20 dB", "truth"} <= set(seen.text)
    page, _ = drawn(tmp_path, [charts.to_json(chart)])  # as a method's chart too
    assert [tag for tag, _ in Seen(page).tags].count("img") == 2 and "Examples" not in Seen(page).text
    with pytest.raises(ValueError, match="panel 'truth' of 'x' should be the bytes of a PNG file"):
        charts.Panels(title="x", note="", panels=[("truth", b"GIF89a")])


def test_examples_are_texts_as_they_are_with_their_captions(tmp_path):
    text = "a <b>bold</b> & {{ line }}\n  and $another$"
    chart = charts.to_json(
        charts.Passages(title="Test text 1", note="how to judge", passages=[("text", text), ("truth", "sea")])
    )
    report.write_page(tmp_path / "report.html", result() | {"examples": [chart]})
    seen = Seen((tmp_path / "report.html").read_text().replace(plotly_js(), ""))
    assert [tag for tag, _ in seen.tags].count("pre") == 2 and "b" not in [tag for tag, _ in seen.tags]
    assert {text, "sea", "text", "truth", "Examples", "how to judge"} <= {
        each.strip("\n") for each in seen.text
    }
    page, figures = drawn(tmp_path, [chart])  # as a method's chart too
    assert text in Seen(page).text and "chart0" not in figures


@pytest.mark.parametrize("key", ["examples", "charts"])
@pytest.mark.parametrize(
    ("part", "message"),
    [({"passages": [["text", 3]]}, "passages"), ({"kind": "panels", "panels": [["a", "%"]]}, "panels")],
)
def test_a_damaged_example_is_refused(key, part, message, tmp_path):
    chart = charts.to_json(charts.Passages(title="Test text 1", note="", passages=[("text", "a")]))
    values = result() | {"input": {"shape": [4]}, "format": 1}
    write_json(tmp_path / "result.json", values | {key: [chart]})
    assert report.read_result(tmp_path / "result.json")[key] == [chart]
    write_json(tmp_path / "result.json", values | {key: [chart | part]})
    with pytest.raises(FileError, match=message):
        report.read_result(tmp_path / "result.json")


def test_examples_may_be_charts_of_any_kind(tmp_path):
    report.write_page(tmp_path / "report.html", result() | {"examples": every_kind(), "charts": every_kind()})
    page = (tmp_path / "report.html").read_text().replace(plotly_js(), "")
    places = {attrs["id"] for tag, attrs in Seen(page).tags if tag == "div" and "id" in attrs}
    figures = json.loads(re.search(r"const figures = (.*);\n", page)[1])
    assert {f"{name}{i}" for name in ("example", "chart") for i in range(4)} <= places & figures.keys()


def test_further_metrics_have_rows_of_their_own():
    more = {"key": "ssim", "unit": "", "higher_is_better": True, "factor": 1.0, "digits": 4}
    values = result() | {"further_metrics": [more]}
    for stage in ("before", "pruned", "after"):
        values[stage] = values[stage] | {"ssim": 0.75}
    text = text_of(report.summary(values))
    assert "ssim on the test set" in text and "0.7500" in text and "+0.0000" in text


def test_figures_hold_the_numbers_of_their_charts(tmp_path):
    _, figures = drawn(tmp_path, every_kind())
    lines, heat, points, bars = (figures[f"chart{i}"]["data"] for i in range(4))
    thin, series, reference = lines
    assert series["x"] == [0, 1, 2, 3] and series["y"] == [1.0, None, None, 0.25]
    assert thin["x"] == [0, 1, 2, 3, None] * 2 and "dash" in reference["line"]
    assert heat[0]["z"] == [[0.5, None, 1.0], [0.2, 0.1, None]] and (heat[0]["zmin"], heat[0]["zmax"]) == (
        0,
        1,
    )
    assert points[0]["x"] == [0, 1, 2, 3] and points[1]["y"] == [None, 0.5]
    assert bars[0]["x"] == [3, None]


@pytest.mark.parametrize("name", [HOSTILE, "{% raw %}", "x" * 200, ""])
def test_words_in_charts_cannot_break_the_page(tmp_path, name):
    page, figures = drawn(tmp_path, every_kind(name))
    assert page.count("<script>") == 2 and "alert(1)</script>" not in page
    seen = Seen(page)
    assert not [tag for tag, _ in seen.tags if tag == "b"]
    assert seen.text.count(f"how to read {name}") == 5

    def words(value: object) -> list[str]:
        if isinstance(value, dict | list):
            return [
                word
                for inner in (value.values() if isinstance(value, dict) else value)
                for word in words(inner)
            ]
        return [value] if isinstance(value, str) else []

    for i in range(4):
        for word in words(figures[f"chart{i}"]):
            assert not re.search(r"<(?!br>)|\$", word), "plotly would read this as markup"


def test_empty_charts_are_drawn():
    words = {"title": "nothing yet", "note": ""}
    plane = {"x_label": "x", "y_label": "y"}
    for chart in (
        charts.Lines(**words, **plane, log_y=True),
        charts.Lines(**words, **plane, series={"a": []}, thin={"b": [[]]}),
        charts.Points(**words, **plane, groups={}),
        charts.Heat(**words, rows=[], x=[], x_label="x", values=[], value_label="v", middle=0),
        charts.Heat(**words, rows=["a"], x=[1], x_label="x", values=[[None]], value_label="v"),
        charts.Bars(**words, labels=[], value_label="v", series={}),
    ):
        assert figure(charts.to_json(chart))["layout"]["height"] > 0


def test_many_thin_lines_are_one_trace_of_a_colour_each():
    line = [(step, step / 50) for step in range(50)]
    chart = charts.Lines(
        title="", note="", x_label="", y_label="", thin={"kept": [line] * 60, "removed": [line] * 20}
    )
    kept, removed = figure(charts.to_json(chart))["data"]
    assert len(kept["x"]) == 60 * 51 and len(removed["x"]) == 20 * 51
    assert kept["line"]["color"] != removed["line"]["color"]


def test_many_series_leave_room_for_the_plot():
    def height(series: int) -> int:
        lines = {f"layer{i}.0.conv1": [(0, i)] for i in range(series)}
        chart = charts.Lines(title="", note="", x_label="", y_label="", series=lines)
        return figure(charts.to_json(chart))["layout"]["height"]

    assert height(1) == height(2) < height(9) < height(30)


def test_charts_that_do_not_fit_together_are_refused():
    words = {"title": "widths", "note": "", "value_label": ""}
    with pytest.raises(ValueError, match=r"'widths' needs 2 rows of 1 values, has rows of \[1, 2\]"):
        charts.Heat(**words, rows=["a", "b"], x=[1], x_label="", values=[[1], [1, 2]])
    with pytest.raises(ValueError, match=r"'widths' need 2 values of each series, 'winner' has 1"):
        charts.Bars(**words, labels=["a", "b"], series={"winner": [1]})
    with pytest.raises(ValueError, match="PNG"):
        charts.Picture(title="prompt", note="", png=b"GIF89a")
    with pytest.raises(UserError, match=r"kind of chart 'line'. Did you mean lines"):
        figure({"kind": "line"})


def test_charts_go_from_the_method_to_the_page(tmp_path, monkeypatch):
    """And a folder that was begun before methods drew any can be gone on with."""
    from prunus.run import Settings, prune

    chosen, nan = magnitude.prune, float("nan")

    def drawing(task, budget, config, run) -> Pruned:
        found = chosen(task, budget, config, run)
        lines = charts.Lines(
            title="cost", note="n", x_label="x", y_label="y", series={"a": [(0, nan), (1, 2.0)]}
        )
        return Pruned(keep=found.keep, charts=[lines])

    monkeypatch.setattr(magnitude, "prune", drawing)
    asked = {
        "data": "digits",
        "out": tmp_path,
        "settings": Settings(method="magnitude", base_epochs=1, epochs=1),
    }
    first = prune("zoo:digits_resnet", **asked).values["charts"]
    assert (
        first
        == read_json(tmp_path / "result.json")["charts"]
        == read_json(tmp_path / "stages/prune.json")["charts"]
    )
    assert first[0]["series"] == {"a": [[0, None], [1, 2.0]]}
    assert '<div id="chart0">' in (tmp_path / "report.html").read_text()
    record = read_json(tmp_path / "stages/prune.json")
    del record["charts"]
    write_json(tmp_path / "stages/prune.json", record)
    assert prune("zoo:digits_resnet", **asked, resume=True).values["charts"] == []
    assert "How the units were chosen" not in (tmp_path / "report.html").read_text()
