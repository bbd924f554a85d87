"""The table and the page of a comparison: what they show, and that names cannot break them."""

import io
import json
import re

import pytest
from rich.console import Console

from prunus import report
from prunus.report.board_page import cost_chart, pareto_front

HOSTILE = "</script><script>alert(1)</script>[bold]x[/nothing] {{ 7*7 }} ü"


def figures(recovered: float | None, macs: float, ms: float) -> dict:
    return {
        "as_cut": 0.2,
        "repaired": None,
        "recovered": recovered,
        "macs": macs,
        "macs_share": macs / 40e6,
        "params": 1e5,
        "params_share": 0.5,
        "sparsity": None,
        "latency_ms": ms,
        "latency_spread_ms": 0.1,
        "search_epochs": 0.0,
        "recovery_epochs": 5.0,
    }


def board(name: str = "taylor", second: float | None = 0.85) -> dict:
    """A compare.json: two methods with two seeds, of which one failed."""
    values = {("first", 0): 0.9, ("first", 1): 0.8, (name, 0): second}
    arms = [
        {
            "name": f"{method}-seed{seed}",
            "method": method,
            "limit": {"macs": 0.5},
            "seed": seed,
            "folder": f"runs/{method}-seed{seed}",
            "failed": None if (method, seed) in values else f"because of {name}",
            "figures": figures(values[method, seed], 20e6, 2.0) if (method, seed) in values else None,
        }
        for method in ("first", name)
        for seed in (0, 1)
    ]
    rows = [
        {
            "method": method,
            "limit": {"macs": 0.5},
            "seeds": seeds,
            "asked": 2,
            **{
                key: value if value is None else [value, None]
                for key, value in figures(0.5, 20e6, 2.0).items()
            },
            "recovered": recovered,
            "gain": gain,
        }
        for method, seeds, recovered, gain in (
            ("first", 2, [0.85, 0.0707], None),
            (name, 1, None if second is None else [second, None], None if second is None else [-0.05, None]),
        )
    ]
    return {
        "format": 1,
        "model": name,
        "data": "digits",
        "total_epochs": 5,
        "seeds": [0, 1],
        "metric_shown": {
            "key": "accuracy",
            "unit": "%",
            "higher_is_better": True,
            "factor": 100.0,
            "digits": 2,
        },
        "judged_on": "test",
        "base": {
            "macs": 40e6,
            "params": 2e5,
            "latency_ms": 3.0,
            "again_latency_ms": 3.15,
            "latency_spread_ms": 0.1,
            "metric": [0.92, 0.01],
        },
        "arms": arms,
        "rows": rows,
    }


def text_of(renderable, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_the_table_shows_mean_and_spread_the_difference_to_the_first_and_who_failed():
    text = " ".join(text_of(report.board_table(board())).split())
    assert (
        "macs <= 50 %" in text
        and "the difference to first, the first method" in text
        and "5 % more or less" in text
        and "repaired" not in text
        and "zeros" not in text
    )
    assert "85.00 ± 7.07" in text and "-5.00" in text and "1 of 2" in text and "92.00 ± 1.00" in text
    assert "taylor-seed1 failed: because of taylor" in text and "the same for every arm: 5" in text


def test_a_value_that_was_not_finite_leaves_its_cell_empty(tmp_path):
    values = board(second=None)
    assert "taylor" in text_of(report.board_table(values))
    report.write_board(tmp_path / "compare.html", values)


def test_names_are_shown_as_they_are_and_do_nothing(tmp_path):
    assert "[bold]x[/nothing]" in text_of(report.board_table(board(HOSTILE)), width=400)
    report.write_board(tmp_path / "compare.html", board(HOSTILE))
    page = (tmp_path / "compare.html").read_text()
    assert "<script>alert" not in page and "{{ 7*7 }}" in page


def test_the_page_links_the_runs_and_draws_both_costs(tmp_path):
    report.write_board(tmp_path / "compare.html", board())
    page = (tmp_path / "compare.html").read_text()
    assert 'href="runs/first-seed1/report.html"' in page and "taylor-seed1 failed" in page
    (drawn,) = re.findall(r"const figures = (.*);\n", page)
    assert set(json.loads(drawn)) == {"macs", "latency_ms"}
    assert all(f'<div id="{name}"></div>' in page for name in ("macs", "latency_ms"))


def test_a_picture_has_a_point_for_each_run_and_the_front_of_the_means():
    chart = cost_chart(board(), "macs")
    assert {name: len(points) for name, points in chart.groups.items()} == {
        "(before)": 1,
        "first": 2,
        "taylor": 1,
    }
    assert [tuple(round(each, 6) for each in point) for point in chart.front] == [(20.0, 85.0), (40.0, 92.0)]
    assert chart.groups["taylor"][0][2] == "taylor-seed0\n85.00 %\n20 multiply-adds"


@pytest.mark.parametrize(
    ("points", "higher", "front"),
    [
        ([(1, 1), (2, 3), (3, 2), (4, 4)], True, [(1, 1), (2, 3), (4, 4)]),
        ([(1, 9), (2, 3), (3, 4)], False, [(1, 9), (2, 3)]),
        ([(1, 2), (1, 5), (2, 5)], True, [(1, 5)]),
        ([], True, []),
    ],
)
def test_the_front_is_what_no_other_beats_at_that_cost_or_less(points, higher, front):
    assert pareto_front(points, higher) == front
