"""Widths that are fast by a measured table, and runs that keep to them."""

from itertools import product

import pytest
import torch
from torch import nn

import prunus
from prunus import run
from prunus.errors import UserError
from prunus.export.keep_file import read_keep
from prunus.latency import fast_widths
from prunus.latency.operator_timing import RUNTIMES
from prunus.run import Settings
from prunus.selection import Budget, Selection
from tests.lib.latency import Fake


def test_fast_widths_are_those_that_no_wider_one_matches():
    model = nn.Sequential(
        *(nn.Linear(7, 24), nn.ReLU(), nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU()),
        nn.Linear(20, 5),
    )
    graph = prunus.trace(model, torch.randn(1, 7))
    steps = {"0": 8, "2": 16, "4": 1}  # kernels that compute so many outputs at once

    def price(widths):
        rows = [-(-column // step) * step for column, step in zip(widths.T, steps.values(), strict=True)]
        return torch.stack(rows).sum(0)

    found = fast_widths(graph, price)
    assert found["0"] == [8, 16, 24] and found["2"] == [16, 32, 40]
    assert found["4"][-1] == 20 and {4, 8, 16} <= set(found["4"])
    alike = fast_widths(graph, lambda widths: torch.ones(len(widths)))  # no width is faster than another
    assert {8, 16, 24} <= set(alike["0"]) and len(alike["4"]) > 3


def in_eights(operator, sizes):
    """Milliseconds of kernels that compute eight channels at once; those of a single number take no time."""
    found = 1e-3
    for size in sizes:
        found *= -(-size // 8) * 8
    return found


@pytest.mark.parametrize("options", [(), ("steps=2",)])
def test_a_run_measures_and_keeps_to_fast_widths(monkeypatch, tmp_path, options):
    made = []

    def make():
        made.append(Fake(of_operator=in_eights))
        return made[-1]

    monkeypatch.setitem(RUNTIMES, "torch", make)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = Settings(
        options=("prefer=measured",), base_epochs=1, epochs=2, steps=2 if options else 1, repair="off"
    )
    found = run.prune(
        "zoo:digits_resnet", data="digits", budget=Budget(macs=0.4), out=tmp_path / "run", settings=settings
    )
    assert sum(each.raced for each in made) > 0
    kept = read_keep(tmp_path / "run").axes
    assert {kept[name].size for name in ("conv1", "layer3.0.conv1")} == {32, 64}
    assert all(len(axis.keep) % 8 == 0 or len(axis.keep) == axis.size for axis in kept.values())
    assert any(len(axis.keep) < axis.size for axis in kept.values())
    assert found.values["after"]["macs"] <= 0.4 * found.values["before"]["macs"]


def test_what_needs_a_run_or_has_ways_of_its_own_says_so():
    graph = prunus.trace(nn.Sequential(nn.Linear(7, 24), nn.ReLU(), nn.Linear(24, 5)), torch.randn(1, 7))
    wish = Selection(prefer="measured")
    with pytest.raises(UserError, match="measured widths, which a run finds"):
        wish.select(graph, {"0": torch.rand(24)}, Budget(macs=0.5))
    with pytest.raises(UserError, match="round_to=8 does not"):
        Selection(prefer="measured", round_to=8)
    for method, option in product(("dhp", "metapruning"), ("prefer=measured", "uniform=true")):
        settings = Settings(method=method, options=(option,))
        with pytest.raises(UserError, match="searches for widths itself"):
            run.preview("zoo:digits_resnet", data="digits", settings=settings)
