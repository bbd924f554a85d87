"""Only some widths: those given, or the whole; the budget is spent as far as they allow."""

import itertools

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import BudgetError, UserError
from prunus.selection import Budget, cost, select


def made(*sizes):
    """A perceptron with these hidden widths, its graph, and scores that fall."""
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise((7, *sizes, 5))]
    model = nn.Sequential(*itertools.chain(*((layer, nn.ReLU()) for layer in layers)))
    graph = prunus.trace(model, torch.randn(1, 7))
    return graph, {axis: torch.rand(entry.size) for axis, entry in graph.axes.items()}


WIDTHS = {"0": [3, 8, 12, 20], "2": [5, 6, 24], "4": [2, 16]}


@pytest.mark.parametrize("how", ["global", "per_cost", "curves", "uniform", "isomorphic"])
@pytest.mark.parametrize("share", [0.2, 0.4, 0.7])
def test_only_these_widths_are_chosen_and_no_other_of_them_fits(how, share):
    graph, scores = made(24, 32, 20)
    keep = select(graph, scores, Budget(macs=share), how=how, widths=WIDTHS)
    whole = {axis: entry.size for axis, entry in graph.axes.items()}
    allowed = {axis: [*WIDTHS[axis], whole[axis]] for axis in whole}
    chosen = graph.widths(keep)
    assert all(chosen[axis] in allowed[axis] for axis in whole)
    limit = share * prunus.macs(graph)
    assert prunus.macs(graph, keep) <= limit
    for axis in whole:  # what rounding leaves over is spent: no single axis could take its next width
        wider = [width for width in allowed[axis] if width > chosen[axis]]
        if wider:
            more = torch.tensor([[(chosen | {axis: wider[0]})[name] for name in whole]], dtype=torch.float64)
            assert cost.of(graph, "macs", more).item() > limit
        best = scores[axis].topk(chosen[axis]).indices.sort().values.tolist()
        assert keep[axis] == best


def test_an_axis_left_out_keeps_any_number_and_floors_and_freezes_hold():
    graph, scores = made(24, 32, 20)
    keep = select(graph, scores, Budget(macs=0.5), widths={"0": [8]}, floor={"2": 13}, freeze=["4"])
    widths = graph.widths(keep)
    assert widths["0"] in (8, 24) and widths["2"] >= 13 and widths["4"] == 20
    assert prunus.macs(graph, keep) <= 0.5 * prunus.macs(graph)
    above = select(graph, scores, Budget(macs=0.9), widths={"0": [2, 4]}, floor={"0": 10})
    assert graph.widths(above)["0"] == 24  # no width from the floor on is allowed but the whole


def test_what_is_wrong_is_refused_in_words():
    graph, scores = made(24, 32, 20)
    with pytest.raises(UserError, match="widths and round_to=8 say two things"):
        select(graph, scores, Budget(macs=0.5), widths=WIDTHS, round_to=8)
    with pytest.raises(UserError, match="widths of axis 0: expected whole numbers from 1 to 24, got 25"):
        select(graph, scores, Budget(macs=0.5), widths={"0": [25]})
    with pytest.raises(UserError, match="axis"):
        select(graph, scores, Budget(macs=0.5), widths={"nowhere": [3]})
    with pytest.raises(BudgetError, match=r"cannot be met.*of the widths allowed"):
        select(graph, scores, Budget(macs=0.05), widths={"0": [20], "2": [24], "4": [16]})
