"""`uniform=True`: blocks of equal widths, chosen as a plain loop over shares would, with every other option."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunus.errors import BudgetError, UserError
from prunus.graph import trace
from prunus.selection import Budget, Selection, cost, select
from tests.lib.blocks import Block


class Stack(nn.Module):
    """Three blocks on a stream, and a layer beside them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.blocks = nn.Sequential(*(Block(6, 8) for _ in range(3)))
        self.side, self.head = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x):
        return self.head(F.relu(self.side(self.blocks(self.stem(x)))))


GRAPH = trace(Stack(), torch.zeros(1, 5))
TIE = ("blocks.0.up", "blocks.1.up", "blocks.2.up")
LOW = {"floor": 1, "round_to": 1}


def scores_of(seed):
    """Scores that are whole eighths, so that means are exact."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randint(0, 40, (a.size,), generator=generator) / 8.0 for n, a in GRAPH.axes.items()}


def widths_of(keep):
    return {name: len(units) for name, units in keep.items()}


def tied_widths():
    """All widths at which the blocks are equal."""
    for stream, inner, side in product(range(1, 7), range(1, 9), range(1, 8)):
        yield {"stem": stream, **dict.fromkeys(TIE, inner), "side": side}


def greedy(scores, limit, name):
    """Shares taken one by one in the order of their mean score; a variable whose next does not fit is closed."""
    variables = [("stem",), TIE, ("side",)]
    sorted_ = {n: s.sort(descending=True).values.double() for n, s in scores.items()}
    queue = [
        (
            -float(torch.stack([sorted_[n][unit] for n in names]).mean()),
            unit / GRAPH.axes[names[0]].size,
            i,
            names,
        )
        for i, names in enumerate(variables)
        for unit in range(1, GRAPH.axes[names[0]].size)
    ]
    widths, closed = dict.fromkeys(GRAPH.axes, 1), set()
    for _, _, _, names in sorted(queue):
        wider = widths | {n: widths[n] + 1 for n in names}
        if names not in closed and cost.of(GRAPH, name, wider) <= limit:
            widths = wider
        else:
            closed.add(names)
    return widths


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["params", "macs", "memory_mb"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_it_takes_what_a_plain_loop_takes(seed, name, share):
    scores = scores_of(seed)
    keep = select(GRAPH, scores, Budget(**{name: share}), uniform=True, **LOW)
    widths, limit = widths_of(keep), share * cost.of(GRAPH, name, {})
    assert widths == greedy(scores, limit, name)
    assert cost.of(GRAPH, name, widths) <= limit
    for axis, units in keep.items():  # each axis keeps its own best
        assert sorted(scores[axis][units].tolist()) == sorted(scores[axis].topk(len(units)).values.tolist())


def test_units_differ_between_blocks_and_widths_do_not():
    keep = select(GRAPH, scores_of(0), Budget(params=0.5), uniform=True, **LOW)
    assert len({len(keep[name]) for name in TIE}) == 1 and len({tuple(keep[name]) for name in TIE}) > 1


@pytest.mark.parametrize("limit", [10, 30, 37, 38, 39, 60, 120])
def test_a_budget_is_refused_just_where_no_equal_widths_meet_it(limit):
    can = min(cost.of(GRAPH, "params", widths) for widths in tied_widths()) <= limit
    if can:
        keep = select(GRAPH, scores_of(1), Budget(params=limit), uniform=True, **LOW)
        assert cost.of(GRAPH, "params", widths_of(keep)) <= limit
    else:
        with pytest.raises(BudgetError) as error:
            select(GRAPH, scores_of(1), Budget(params=limit), uniform=True, **LOW)
        assert error.value.min_units == dict.fromkeys(GRAPH.axes, 1)


@pytest.mark.parametrize("how", ["global", "per_cost", "curves", "uniform", "isomorphic"])
def test_every_ranking_keeps_blocks_equal(how):
    keep = select(GRAPH, scores_of(2), Budget(macs=0.5), uniform=True, how=how, **LOW)
    assert len({len(keep[name]) for name in TIE}) == 1
    assert cost.of(GRAPH, "macs", widths_of(keep)) <= 0.5 * cost.of(GRAPH, "macs", {})


def test_curves_leave_out_no_more_than_the_best_by_far():
    """Against all equal widths: the multiplier comes as near as one part of one variable lets it."""
    scores, limit = scores_of(3), 0.5 * cost.of(GRAPH, "params", {})

    def left_out(widths):
        return sum(float(s.sort().values[: len(s) - widths[n]].sum()) for n, s in scores.items())

    keep = select(GRAPH, scores, Budget(params=0.5), uniform=True, how="curves", **LOW)
    best = min(left_out(w) for w in tied_widths() if cost.of(GRAPH, "params", w) <= limit)
    part = max(sum(float(scores[n].max()) for n in names) for names in (TIE, ("stem",), ("side",)))
    assert best <= left_out(widths_of(keep)) <= best + part


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"floor": {"*": 1, "blocks.1.up": 5}}, 5),
        ({"cap": {"blocks.2.up": 2}, "floor": 1}, 6),
        ({"freeze": ["blocks.0.up"], "floor": 1}, 8),
    ],
)
def test_what_holds_for_one_block_holds_for_all(options, least):
    keep = select(GRAPH, scores_of(4), Budget(params=0.75), uniform=True, round_to=1, **options)
    assert {len(keep[name]) for name in TIE} == {max(least, len(keep[TIE[0]]))}
    with pytest.raises(BudgetError, match=r"blocks\.\d\.up \(and 2 tied to it\) keeps"):
        select(GRAPH, scores_of(4), Budget(params=20), uniform=True, round_to=1, **options)


def test_widths_are_multiples_and_stay_within_what_may_be_chosen():
    keep = select(GRAPH, scores_of(5), Budget(params=0.7), uniform=True, floor=1, round_to=2)
    assert {len(keep[name]) % 2 for name in TIE} == {0}
    within = {"blocks.1.up": [0, 2, 3, 7]}
    keep = select(GRAPH, scores_of(5), Budget(params=1.0), uniform=True, within=within, **LOW)
    assert {len(keep[name]) for name in TIE} == {4} and keep["blocks.1.up"] == [0, 2, 3, 7]


def test_prices_that_are_given_hold_for_the_blocks_together():
    def price(widths):
        return widths[:, [list(GRAPH.axes).index(name) for name in TIE]].sum(1)

    keep = select(GRAPH, scores_of(6), Budget(params=12), price=price, uniform=True, **LOW)
    assert {len(keep[name]) for name in TIE} == {4}


def test_it_is_an_option_of_methods():
    found = Selection(uniform=True, floor=1, round_to=1).select(GRAPH, scores_of(7), Budget(params=0.5))
    assert len({len(found[name]) for name in TIE}) == 1
    with pytest.raises(UserError, match="uniform should be True or False"):
        select(GRAPH, scores_of(7), Budget(params=0.5), uniform="yes")
