"""The units above a threshold and their cost, against surgery's own counts. I7 and I9 of DHP's specification."""

import pytest
import torch

import prunus
from prunus import zoo
from prunus.gates import Thresholds, soft_threshold
from prunus.gates.thresholds import CANDIDATES
from prunus.selection import Budget, price_of
from tests.lib.nets import NETS, build


# ------------------------------------------------------------------------------ I7: the soft threshold
@pytest.mark.parametrize("amount", [0.0, 0.03, 0.5, 2.0])
def test_i7_the_soft_threshold_is_the_least_on_a_grid(amount):
    values = torch.linspace(-1, 1, 41, dtype=torch.float64)
    grid = torch.linspace(-1.5, 1.5, 30001, dtype=torch.float64)
    objective = (grid - values[:, None]) ** 2 / 2 + amount * grid.abs()
    found = soft_threshold(values, torch.tensor(amount), torch.zeros(41))
    assert (found - grid[objective.argmin(1)]).abs().max() < 1e-4
    assert (found * values >= 0).all()  # no sign flips
    assert amount == 0 or not torch.equal(found, values)


def test_i7_zero_stays_zero_and_who_has_to_stay_keeps_its_least():
    values = torch.tensor([0.0, 1e-7, -1e-7, 1e-3, -1e-3, 0.5, -0.5])
    zeros, least = torch.zeros(7), torch.full((7,), 1e-4)
    amount = torch.tensor(0.01)
    assert soft_threshold(values, amount, zeros).tolist() == pytest.approx([0, 0, 0, 0, 0, 0.49, -0.49])
    protected = soft_threshold(values, amount, least).tolist()
    assert protected == pytest.approx([0, 1e-7, -1e-7, 1e-4, -1e-4, 0.49, -0.49])  # nothing grows
    once = soft_threshold(values, torch.tensor(100.0), least)
    assert torch.equal(soft_threshold(once, torch.tensor(100.0), least), once)
    assert torch.equal(soft_threshold(values, torch.zeros(7), zeros), values)  # whose factor is zero, rests


# ------------------------------------------------------------------------------------- I9: counting
def counted(name="residual", budget="macs", floor=1):
    if name in NETS:
        model, example = build(name)
    else:
        model, example = zoo.build(name), torch.randn(1, 3, 32, 32)
    graph = prunus.trace(model, example)
    floors = {axis: min(floor, size.size - 1) for axis, size in graph.axes.items()}
    return graph, Thresholds(graph, floors, price_of(graph, Budget(**{budget: 0.5})))


def kept(graph, left):
    """The keep of a bool per unit."""
    keep, start = {}, 0
    for name, axis in graph.axes.items():
        keep[name] = left[start : start + axis.size].nonzero()[:, 0].tolist()
        start += axis.size
    return keep


@pytest.mark.parametrize("budget", ["macs", "params", "memory_mb"])
@pytest.mark.parametrize("name", [*NETS, "densenet40"])
def test_i9_the_share_is_what_the_keep_costs_and_falls_with_every_unit(name, budget):
    graph, units = counted(name, budget)
    cost = getattr(prunus, budget)
    generator = torch.Generator().manual_seed(0)
    candidates = torch.rand(50, len(units.owners), generator=generator) < torch.rand(
        50, 1, generator=generator
    )
    for index, size in enumerate(axis.size for axis in graph.axes.values()):
        candidates[:, (units.owners == index).nonzero()[0, 0]] = size > 0  # one at least
    shares = units.shares(candidates)
    for left, share in zip(candidates, shares.tolist(), strict=True):
        assert share == pytest.approx(cost(graph, kept(graph, left)) / cost(graph), rel=1e-9)
    assert units.shares(torch.ones(1, len(units.owners), dtype=torch.bool)).item() == 1
    fewer = candidates & (torch.rand(candidates.shape, generator=generator) < 0.9)
    for index in range(len(graph.axes)):
        fewer[:, (units.owners == index).nonzero()[0, 0]] = True
    assert (units.shares(fewer) <= shares + 1e-12).all()
    if budget != "memory_mb":  # away from the peak a unit may cost nothing
        assert torch.equal(units.shares(fewer) < shares, (fewer != candidates).any(1))


def test_an_axis_never_counts_fewer_than_its_floor():
    graph, units = counted(floor=3)
    none = torch.zeros(1, len(units.owners), dtype=torch.bool)
    assert units.counts(none).tolist() == [[3] * len(graph.axes)]
    keep = {name: range(3) for name in graph.axes}
    assert units.shares(none).item() == pytest.approx(prunus.macs(graph, keep) / prunus.macs(graph))


def test_axes_that_are_left_alone_count_whole():
    graph, _ = counted()
    units = Thresholds(graph, {"c": 1}, price_of(graph, Budget(macs=0.5)))
    left = torch.tensor([[True] * 5 + [False] * 7])
    expected = prunus.macs(graph, {"c": range(5)}) / prunus.macs(graph)
    assert units.shares(left).item() == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.62, 0.97])
@pytest.mark.parametrize("name", ["residual", "densenet40"])
def test_the_least_threshold_for_a_share_however_many_units(name, share):
    _, units = counted(name)
    assert name == "residual" or len(units.owners) > 2 * CANDIDATES
    sizes = torch.rand(len(units.owners), generator=torch.Generator().manual_seed(0))
    found = units.threshold_at(sizes, share)
    assert units.shares((sizes > found)[None]).item() <= share
    lower = max(sizes[sizes < found].tolist(), default=0.0)
    assert units.shares((sizes > lower)[None]).item() > share


def test_where_nothing_has_to_go_the_threshold_is_zero_and_where_all_has_to_the_largest():
    _, units = counted(floor=2)
    sizes = 0.5 + torch.rand(len(units.owners))
    assert units.threshold_at(sizes, 1.0) == 0
    assert units.threshold_at(sizes, 1e-6) == sizes.max()
    sizes[:9] = 0
    assert units.threshold_at(sizes, units.shares((sizes > 0)[None]).item()) == 0


@pytest.mark.parametrize("budget", ["macs", "params"])
def test_unit_costs_are_what_a_unit_saves(budget):
    graph, units = counted(budget=budget)
    cost, found = getattr(prunus, budget), units.unit_costs()
    saved = []
    for name, axis in graph.axes.items():
        saved += [cost(graph) - cost(graph, {name: range(axis.size - 1)})] * axis.size
    expected = torch.tensor(saved, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected / expected.mean(), rtol=1e-6, atol=0)
    assert found.std() > 0.1


def test_units_that_cost_nothing_have_costs_that_can_be_divided_by():
    """Away from the peak of memory a unit saves nothing; where two peaks are equal, none does."""
    for name in NETS:
        _, units = counted(name, "memory_mb")
        found = units.unit_costs()
        assert found.isfinite().all() and (found > 0).all() and found.mean().item() == pytest.approx(1)
        assert (torch.rand(len(found)) / found).isfinite().all()


def test_ranks_are_places_within_the_axis():
    graph, units = counted()
    sizes = torch.rand(len(units.owners), generator=torch.Generator().manual_seed(0))
    sizes[:4] = 0.25  # equal ones in order
    start, ranks = 0, units.ranks(sizes)
    for axis in graph.axes.values():
        own = sizes[start : start + axis.size]
        expected = [sum(o > v or (o == v and i < n) for i, o in enumerate(own)) for n, v in enumerate(own)]
        assert ranks[start : start + axis.size].tolist() == expected
        start += axis.size
