"""The weights of any cut follow from moments that were gathered once."""

import random

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import PruningError, TraceError, UserError
from prunus.inputs import call
from prunus.refit import Moments, fit_in_order, repair
from prunus.refit.products import Product
from prunus.surgery import clone
from tests.lib.mutants import drawn_program
from tests.lib.random_nets import build
from tests.lib.refitting import CLOSE, CONSUMERS, EXACT, halved, images, made


def fitted(model, graph, keep, batches, **options):
    return prunus.shrink(clone(model, Moments(model, graph, batches).weights(keep, **options)), graph, keep)


@pytest.mark.parametrize("kind", CONSUMERS)
def test_units_that_others_repeat_are_made_good(kind):
    model, x = made(kind)
    graph, keep = halved(model, x)
    small = fitted(model, graph, keep, [x], **EXACT)
    new = images(x.dim() - 2, x.shape[-1], seed=1) if x.dim() > 3 or x.shape[1] == 3 else torch.randn(9, 7, 5)
    assert torch.allclose(small(new), model(new), **CLOSE)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_with_one_cut_above_they_are_those_of_fitting_in_order(groups, bias):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3, groups=groups, bias=bias), nn.ReLU(), nn.Conv2d(12, 2, 1)
    )  # fmt: skip
    x = images()
    graph = prunus.trace(model, x[:1])
    above = [name for name in graph.axes if any(m.tensor == "0.weight" for m in graph.members(name))]
    keep = {name: range(0, graph.axes[name].size, 2) for name in above}
    ours, theirs = fitted(model, graph, keep, [x]), repair(model, graph, keep, [x])
    one = Moments(model, graph, [x]).fit(keep)[1].layers["2.weight"]
    other = fit_in_order(model, prunus.shrink(model, graph, keep), graph, keep, [x]).layers["2.weight"]
    assert (one.before, one.after) == pytest.approx((other.before, other.after), rel=1e-3)
    assert (one.equations, one.columns) == (other.equations, other.columns)
    assert not torch.allclose(ours[2].weight, prunus.shrink(model, graph, keep)[2].weight, rtol=1e-2)
    assert torch.allclose(ours[2].weight, theirs[2].weight, rtol=1e-3, atol=1e-4)
    if bias:
        assert torch.allclose(ours[2].bias, theirs[2].bias, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_what_they_leave_unexplained_is_the_share_of_the_outputs_that_differs(bias):
    """Against the outputs themselves, of the model with other weights and zeros in the inputs that are cut."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3, bias=bias), nn.ReLU(), nn.Conv2d(12, 2, 1)
    )
    x = images(count=256)
    graph = prunus.trace(model, x[:1])
    keep = {
        name: range(0, axis.size, 2)
        for name, axis in graph.axes.items()
        if any(m.tensor == "0.weight" for m in graph.members(name))
    }
    weights, found = Moments(model, graph, [x]).fit(keep)
    assert weights.keys() == Moments(model, graph, [x]).weights(keep).keys()
    layer = found.layers["2.weight"]
    assert found.examples == len(x) and layer.columns == 9 * 16 // 2
    stays = torch.zeros(16)
    stays[::2] = 1
    with torch.no_grad():
        hidden = model[1](model[0](x))
        wanted = model[2](hidden)
        read = clone(model, weights)[2]
        for layer_of, share in ((model[2], layer.before), (read, layer.after)):
            missed = layer_of(hidden * stays[:, None, None]) - wanted
            if bias:  # which a new bias takes care of
                missed = missed - missed.mean((0, 2, 3), keepdim=True)
                wanted = wanted - wanted.mean((0, 2, 3), keepdim=True)
            assert float(missed.square().sum() / wanted.square().sum()) == pytest.approx(share, rel=1e-3)
    assert layer.after < 0.8 * layer.before
    assert found.unexplained() == (layer.before, layer.after)


@pytest.mark.filterwarnings("ignore")
def test_random_networks_are_cut_to_them():
    """The weights have the shapes of the model's own, those that stay whole stay, and the small models run."""
    draw, changed = random.Random(3), 0
    for _ in range(40):
        model, example = build(drawn_program(draw))
        try:
            graph = prunus.trace(model, example)
        except TraceError:  # nothing in it may shrink
            continue
        keep = graph.check_keep({n: range(w) for n, w in graph.halved().items()})
        moments = Moments(model, graph, [example])
        weights = moments.weights(keep)
        assert {name: t.shape for name, t in weights.items()} == {
            name: graph.shapes[name] for name in weights
        }
        assert not moments.weights({})
        call(prunus.shrink(clone(model, weights), graph, keep), example)
        changed += len(weights)
    assert changed >= 60


def test_repair_in_one_pass_fits_the_layers_and_renews_the_norms():
    model, x = made("before a batch norm")
    graph, keep = halved(model, x)
    small, plain = (
        repair(model, graph, keep, x.split(16), how="once", ridge=10),
        fitted(model, graph, keep, [x], ridge=10),
    )
    assert torch.allclose(small.last[0].weight, plain.last[0].weight, rtol=1e-4, atol=1e-5)
    seen = small.last[0](small.between(small.first(x))).transpose(0, 1).flatten(1)
    assert torch.allclose(small.last[1].running_mean, seen.mean(1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(small.last[1].running_mean, plain.last[1].running_mean, rtol=1e-2)
    with pytest.raises(UserError, match="once, order"):
        repair(model, graph, keep, [x], how="twice")


def test_batches_give_what_one_batch_gives():
    model, x = made("convolution")
    graph, keep = halved(model, x)
    one, many = (Moments(model, graph, given).weights(keep) for given in ([x], x.split(16)))
    assert all(torch.allclose(one[name], many[name], rtol=1e-4, atol=1e-5) for name in one)


def test_the_model_stays_as_it_was():
    model, x = made("through a norm")
    graph, keep = halved(model, x)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = Moments(model, graph, [x])
    first, second = moments.weights(keep), moments.weights(keep)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_weight_that_is_used_twice_gets_one_system_for_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.read = nn.Linear(3, 8), nn.Linear(8, 4)

        def forward(self, x):
            x = self.enter(x).relu()
            return self.read(x) + self.read(x.flip(0) * 3)

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(64, 3)
    graph = prunus.trace(model, x)
    keep = {next(iter(graph.axes)): range(4)}
    weight = Moments(model, graph, [x]).weights(keep)["read.weight"]
    enter = model.enter(x).relu()
    u = torch.cat([enter, enter.flip(0) * 3]).detach().double()
    u = u - u.mean(0)
    held = (1e-3 * u[:, :4].square().sum(0).mean()).sqrt()
    rows = torch.cat([u[:, :4], held * torch.eye(4).double()])
    own = model.read.weight.detach().double()
    wanted = torch.cat([u @ own.T, held * own[:, :4].T])
    assert torch.allclose(
        weight[:, :4].double().T, torch.linalg.lstsq(rows, wanted).solution, rtol=1e-3, atol=1e-5
    )
    assert torch.equal(weight[:, 4:], model.read.weight[:, 4:])


def test_no_batch_and_numbers_that_are_not_finite_are_refused():
    model, x = made("linear")
    graph, _ = halved(model, x)
    with pytest.raises(UserError, match="at least one batch"):
        Moments(model, graph, [])
    with pytest.raises(PruningError, match="not finite"):
        Moments(model, graph, [x * float("nan")])


class Pair(nn.Module):
    """Two layers that read the same, or the second a sum of it with something else where the input is positive."""

    def __init__(self, apart: bool):
        super().__init__()
        self.apart, self.up = apart, nn.Linear(5, 12)
        self.one, self.two = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, x):
        hidden = self.up(x).relu()
        other = hidden + 1 if self.apart and x.sum() > 0 else hidden
        return self.one(hidden) * self.two(other)


def test_products_that_read_the_same_share_their_moments(monkeypatch):
    torch.manual_seed(0)
    model = Pair(apart=False)
    graph = prunus.trace(model, torch.randn(2, 5))
    batches, keep = [torch.randn(64, 5) for _ in range(4)], {"up": [0, 2, 3, 7, 8]}
    moments = Moments(model, graph, batches)
    assert len({id(layer.read) for layer in moments._layers.values()}) == 2  # of up, and of one and two
    shared = moments.weights(keep)
    monkeypatch.setattr(Product, "reads_same", lambda self, other: False)
    apart = Moments(model, graph, batches)
    assert len({id(layer.read) for layer in apart._layers.values()}) == 3
    for name, tensor in apart.weights(keep).items():
        assert torch.equal(shared[name], tensor)


@pytest.mark.filterwarnings("ignore:traced with real tensors")
def test_a_product_that_reads_the_same_in_some_batches_alone_is_left_as_it_is():
    torch.manual_seed(0)
    model = Pair(apart=True)
    graph = prunus.trace(model, -torch.ones(2, 5))
    assert list(graph.axes) == ["up"]
    found, fitted = Moments(model, graph, [-torch.ones(64, 5), torch.ones(64, 5)]).fit({"up": [0, 2, 3, 7]})
    assert "one.weight" in found and "two.weight" not in found
    assert "not in every batch" in fitted.left["two.weight"]
