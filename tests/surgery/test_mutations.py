"""Cuts that are broken on purpose are found by running them: in float32, in float64, and by nothing but the run.

The small model is made by the same wrong graph, so its weights are those that the graph says. The whole campaign is in
`benchmarks/mutations.py`.
"""

import random

import pytest
import torch
from torch import nn

import prunus
from prunus.surgery import attempts
from tests.lib import nets
from tests.lib.mutants import campaign, errors, is_right, mutants, strayed

LIMITS = {"float32": attempts.NO_DOUBT, "float64": attempts.TOLERANCES[torch.float64]}


def check(rows):
    """A right cut passes in both precisions, a wrong one in neither; returns how many were wrong."""
    for row in rows:
        if row["kind"] == "none":
            assert all(row[dtype] <= limit for dtype, limit in LIMITS.items()), row
        elif row["verdict"] != "right":
            assert all(row[dtype] > limit for dtype, limit in LIMITS.items()), row
    return sum(row["verdict"] == "wrong" for row in rows)


@pytest.mark.filterwarnings("ignore")
def test_faults_in_random_networks_are_found():
    assert check(list(campaign(seed=1, count=36, per_network=6))) >= 36


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_faults_in_random_networks_are_found():
    assert check(list(campaign(seed=2, count=400, per_network=10))) >= 400


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["attention", "shuffle"])
def test_swapped_parts_and_stale_integers_are_found(name):
    """Heads for their features, groups for their rest, an attribute that does not follow."""
    model, example = nets.build(name)
    graph = prunus.trace(model, example)
    keep = graph.check_keep({n: range(1, max(2, axis.size // 2 + 1)) for n, axis in graph.axes.items()})
    seen = set()
    for kind, where, wrong, units in mutants(graph, keep, random.Random(0)):
        if kind not in ("parts swapped", "stale integer"):
            continue
        seen.add(kind)
        found = errors(model, wrong, units)
        try:
            right = is_right(model.double(), graph, wrong, keep, units, example.double())
        except Exception:  # it does not run
            right = False
        if not right:
            assert all(found[dtype] > limit for dtype, limit in LIMITS.items()), (kind, where)
    assert "parts swapped" in seen or "stale integer" in seen


def test_what_is_right_all_the_same_is_told_apart():
    """A bias cut elsewhere has no effect if a norm takes it out, and has one otherwise."""
    for norm, right in ((nn.BatchNorm1d(6, track_running_stats=False), True), (nn.Identity(), False)):
        model = nn.Sequential(nn.Linear(5, 6), norm, nn.Linear(6, 3)).double().eval()
        example = torch.randn(3, 5, dtype=torch.float64)
        graph = prunus.trace(model, example)
        bias = next(m for m in graph.members("0") if m.tensor == "0.bias")
        wrong, kept = strayed(graph, bias, graph.axes["0"], [3, 4])
        assert is_right(model, graph, wrong, {"0": [0, 1]}, {"0": [0, 1], "astray": kept}, example) is right
