"""Permuting units for N:M: the network computes the same, and more of the scores is kept."""

import itertools

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import UserError
from prunus.sparse import choose, contracted, permutation, permuted
from prunus.sparse import scores as weight_scores
from prunus.sparse.permutation import Permuted
from prunus.surgery import slice_tensor
from tests.lib import nets


def kept_share(model, graph, pattern="2:4"):
    """By choosing the masks anew."""
    scores = weight_scores.magnitude(model, graph)
    masks = choose(scores, 0.5, pattern=pattern, dims=contracted(graph))
    kept = sum(float(scores[name][mask].double().sum()) for name, mask in masks.items())
    return kept / sum(float(scores[name].double().sum()) for name in masks)


@pytest.mark.parametrize("pattern", ["2:4", "1:2"])
@pytest.mark.parametrize("name", nets.NETS)
def test_it_computes_the_same_and_keeps_more(name, pattern):
    model, example = nets.build(name)
    graph = prunus.trace(model, example)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = permuted(model, graph, weight_scores.magnitude(model, graph), pattern)
    with torch.no_grad():
        same, expected = found.model(example), model(example)
    assert (same - expected).abs().max() <= 1e-6 * expected.abs().max().clamp_min(1)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert found.gain >= 0 and (found.gain > 0) == bool(found.order)
    assert kept_share(model, graph, pattern) == pytest.approx(found.before, abs=1e-6)
    assert kept_share(found.model, graph, pattern) == pytest.approx(found.after, abs=1e-6)
    for axis, order in found.order.items():
        assert sorted(order) == list(range(graph.axes[axis].size))


def test_most_networks_gain():
    gains = 0
    for name in nets.NETS:
        model, example = nets.build(name)
        graph = prunus.trace(model, example)
        gains += permuted(model, graph, weight_scores.magnitude(model, graph), "1:2").gain > 0.002
    assert gains >= 4


def mlp(inputs=16, hidden=8):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 12))
    return model, prunus.trace(model, torch.randn(2, inputs))


def test_it_finds_the_best_order_of_a_few_units():
    """All ways to part 8 units into two groups of 4, tried out."""
    for seed in range(5):
        model, graph = mlp()
        with torch.no_grad():
            model[2].weight.copy_(torch.randn(12, 8, generator=torch.Generator().manual_seed(seed)))
        score = model[2].weight.detach().double().square()
        best = max(
            sum(float(score[:, list(g)].topk(2, 1).values.sum()) for g in (one, set(range(8)) - set(one)))
            for one in itertools.combinations(range(8), 4)
        )
        scores = {"2.weight": weight_scores.magnitude(model, graph)["2.weight"]}
        found = permuted(model, graph, scores, "2:4")
        assert found.after * float(score.sum()) >= 0.99 * best


def test_large_units_that_stand_together_are_spread():
    """Half of the units are a hundred times the others, in fours: 2:4 could keep but half of them."""
    model, graph = mlp(hidden=64)
    with torch.no_grad():
        model[2].weight.copy_(torch.rand(12, 64) + 0.5).mul_(
            torch.tensor([10.0, 1.0]).repeat_interleave(4).repeat(8)
        )
    found = permuted(model, graph, {"2.weight": model[2].weight.detach().square()}, "2:4")
    assert found.before < 0.8 and found.after > 0.98


def test_the_same_input_gives_the_same_order():
    model, example = nets.build("attention")
    graph = prunus.trace(model, example)
    scores = weight_scores.magnitude(model, graph)
    assert permuted(model, graph, scores).order == permuted(model, graph, scores).order


def test_the_order_cuts_what_goes_with_the_model():
    model, graph = mlp(hidden=64)
    found = permuted(model, graph, weight_scores.magnitude(model, graph))
    assert isinstance(found, Permuted) and found.order
    for name, tensor in model.state_dict().items():
        moved = slice_tensor(tensor, graph.layouts[name], found.order)
        assert torch.equal(moved, found.model.state_dict()[name])


def test_more_units_than_are_compared_at_once(monkeypatch):
    monkeypatch.setattr("prunus.sparse.permutation.UNITS", 16)
    monkeypatch.setattr("prunus.sparse.permutation.ROWS", 8)
    model, graph = mlp(hidden=128)
    assert permuted(model, graph, weight_scores.magnitude(model, graph)).gain > 0.002


def test_an_axis_whose_order_matters_keeps_it(monkeypatch):
    """Should the proof fail on one axis, the others are permuted all the same, and it is named."""
    model, example = nets.build("attention")
    graph = prunus.trace(model, example)
    scores = weight_scores.magnitude(model, graph)
    usual = permuted(model, graph, scores, "1:2").order
    monkeypatch.setattr(permutation, "_same", lambda model, graph, tensors, order: "up" not in order)
    found = permuted(model, graph, scores, "1:2")
    assert found.order == {axis: order for axis, order in usual.items() if axis != "up"} != usual
    assert found.skipped == {"up": "another order changes the outputs of the model"}


def test_the_proof_sees_a_wrong_order(monkeypatch):
    """Some tensor does not follow: whatever is tried, nothing is permuted."""
    model, example = nets.build("attention")
    graph = prunus.trace(model, example)
    right = permutation._reorder

    def wrong(graph, tensors, order):
        return right(graph, tensors, order) | {"up.bias": tensors["up.bias"]}

    monkeypatch.setattr(permutation, "_reorder", wrong)
    with torch.no_grad():
        model.up.bias.copy_(torch.arange(len(model.up.bias)))
    found = permuted(model, graph, weight_scores.magnitude(model, graph), "1:2")
    assert "up" in found.skipped and "up" not in found.order and found.order


def test_blocks_and_layers_that_do_not_fit_are_refused():
    model, graph = mlp()
    scores = weight_scores.magnitude(model, graph)
    with pytest.raises(UserError, match="blocks have none"):
        permuted(model, graph, scores, "4x4")
    with pytest.raises(UserError, match="fits no layer"):
        permuted(model, graph, scores, "1:3")
