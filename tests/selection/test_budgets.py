"""Budgets of several costs at once."""

import pytest
import torch
from torch import Tensor

import prunus
from prunus.errors import BudgetError, UserError
from prunus.methods import find
from prunus.selection import Budget, CostMeter, Metered, cost, price_of
from prunus.zoo import build_of_text

MODEL = build_of_text("decoder_tiny", vocabulary=50, length=16).eval()
GRAPH = prunus.trace(MODEL, torch.zeros(1, 16, dtype=torch.long))
SCORES = prunus.scores.magnitude(MODEL, GRAPH)
SIZES = torch.tensor([[axis.size for axis in GRAPH.axes.values()]], dtype=torch.float64)


def shares(keep):
    widths = GRAPH.widths(keep)
    return {name: cost.of(GRAPH, name, widths) / cost.of(GRAPH, name, {}) for name in cost.CLOSED_FORMS}


@pytest.mark.parametrize("how", ["global", "per_cost", "curves", "uniform"])
def test_a_keep_meets_every_limit(how):
    alone = shares(prunus.select(GRAPH, SCORES, Budget(macs=0.6), how=how))
    both = shares(prunus.select(GRAPH, SCORES, Budget(macs=0.6, cache_mb=0.5, weights_mb=0.7), how=how))
    assert both["macs"] <= 0.6 and both["cache_mb"] <= 0.5 and both["weights_mb"] <= 0.7
    assert max(both["macs"] / 0.6, both["cache_mb"] / 0.5, both["weights_mb"] / 0.7) > 0.9
    assert both["macs"] <= alone["macs"] + 0.01


def test_a_limit_that_binds_nothing_changes_nothing():
    alone = prunus.select(GRAPH, SCORES, Budget(macs=0.6))
    assert prunus.select(GRAPH, SCORES, Budget(macs=0.6, params=10**9, cache_mb=1.0)) == alone


def test_the_price_is_the_largest_share_of_a_limit():
    budget = Budget(macs=0.5, params=200_000)
    expected = max(2.0, prunus.params(GRAPH) / 200_000)
    assert price_of(GRAPH, budget)(SIZES).tolist() == [pytest.approx(expected)]
    widths = SIZES.clone().requires_grad_()
    price_of(GRAPH, budget)(widths).sum().backward()
    assert widths.grad is not None and widths.grad.abs().sum() > 0


def test_several_limits_are_parsed_said_and_taken_apart():
    budget = Budget.parse("macs=0.5,cache_mb=3")
    assert budget == Budget(macs=0.5, cache_mb=3) and budget.limits == {"macs": 0.5, "cache_mb": 3}
    assert str(budget) == "macs at most 0.5 of before and cache_mb at most 3"
    assert budget.parts == [Budget(macs=0.5), Budget(cache_mb=3)] and not budget.is_fraction
    for text, words in (("macs=0.5,macs=0.4", "macs twice"), ("macs=0.5,cash=1", "or cache_mb")):
        with pytest.raises(UserError, match=words):
            Budget.parse(text)


def test_what_cannot_be_met_or_saved_is_refused():
    with pytest.raises(BudgetError, match=r"is used up .* times at the least, and .* times by the whole"):
        prunus.select(GRAPH, SCORES, Budget(macs=0.9, params=1e-4))
    with pytest.raises(BudgetError, match="there is nothing to prune"):
        prunus.select(GRAPH, SCORES, Budget(macs=10**12, params=10**9))
    mlp = prunus.trace(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.zeros(1, 4))
    with pytest.raises(
        BudgetError, match=r"cache_mb at most 0\.5 of before: the unpruned model has none of it"
    ):
        prunus.select(mlp, prunus.scores.random(mlp, 0), Budget(cache_mb=0.5))


class Clock(CostMeter):
    """Takes as many milliseconds as there are units, and accepts the first proposal."""

    def price(self, widths: Tensor) -> Tensor:
        return widths.sum(-1)

    def select(self, budget, propose):
        assert budget.limits == {"latency_ms": 0.7}
        return propose(self.price)

    def figures(self, keep):
        raise NotImplementedError

    def local_copy(self):
        return self


def test_milliseconds_are_limited_beside_other_costs():
    keep = prunus.select(GRAPH, SCORES, Metered(latency_ms=0.7, cache_mb=0.5, meter=Clock()))
    assert sum(map(len, keep.values())) <= 0.7 * SIZES.sum() and shares(keep)["cache_mb"] <= 0.5
    with pytest.raises(BudgetError, match="cannot be met: cache_mb come to"):  # before anything is measured
        prunus.select(GRAPH, SCORES, Metered(latency_ms=0.7, cache_mb=1e-4, meter=Clock()))
    with pytest.raises(UserError, match="metapruning measures whole searches by one cost"):
        find("metapruning").config_class().check_together(Budget(latency_ms=0.7, macs=0.5))
