"""Curves against a least-squares fit of every candidate, on small networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.errors import UserError
from prunus.refit import Moments, unread
from prunus.refit.curves import Curve
from tests.lib.refitting import CONSUMERS, HALF, halved, images, made

RIDGE = 1e-2


class Shared(nn.Module):
    """A stream of features that two convolutions and a head read, and that one of them adds to."""

    def __init__(self):
        super().__init__()
        self.enter, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 5)
        self.a, self.norm, self.b = (
            nn.Conv2d(6, 7, 3, bias=False),
            nn.BatchNorm2d(7),
            nn.Conv2d(7, 6, 3, padding=2),
        )

    def forward(self, x):
        x = self.enter(x).relu()
        x = (x + self.b(self.norm(self.a(x)).relu())).relu()
        return self.head(x.mean((2, 3)))


class Heads(nn.Module):
    """Attention with three heads of four features each, and as many that queries and keys are compared by."""

    def __init__(self):
        super().__init__()
        self.heads, self.compared, self.features = 3, 4, 4
        self.query, self.key, self.value = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(5, 12)
        self.out = nn.Linear(12, 4, bias=False)

    def forward(self, x):
        q, k = (
            layer(x).unflatten(-1, (self.heads, self.compared)).transpose(1, 2)
            for layer in (self.query, self.key)
        )
        v = self.value(x).unflatten(-1, (self.heads, self.features)).transpose(1, 2)
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


def plain(last):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), last)


TOKENS = torch.randn(30, 6, 5, generator=torch.Generator().manual_seed(0))
UNITS = torch.arange(8)[:, None]
# name -> model, inputs, a weight that writes the axis and its size, and for each layer that reads it the channels of
# each unit
CASES = {
    "convolution": (lambda: plain(nn.Conv2d(8, 5, 3)), images(), "0.weight", 8, {"2": UNITS}),
    "strided, without a bias": (
        lambda: plain(nn.Conv2d(8, 5, 3, stride=2, padding=1, bias=False)), images(), "0.weight", 8, {"2": UNITS},
    ),
    "flattened": (
        lambda: plain(nn.Sequential(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(32, 5))), images(), "0.weight", 8,
        {"2.2": torch.arange(32).view(8, 4)},
    ),
    "grouped": (
        lambda: plain(nn.Conv2d(8, 6, 3, groups=2)), images(), "0.weight", 4, {"2": torch.arange(8).view(2, 4).T},
    ),
    "stream": (Shared, images(), "enter.weight", 6, {"a": UNITS[:6], "head": UNITS[:6]}),
    "before a batch norm": (Shared, images(), "a.weight", 7, {"b": UNITS[:7]}),
    "heads": (Heads, TOKENS, "value.weight", 3, {"out": torch.arange(12).view(3, 4)}),
    "features of heads": (Heads, TOKENS, "value.weight", 4, {"out": torch.arange(12).view(3, 4).T}),
}  # fmt: skip


def unfolded(layer, x):
    """The inputs of each group of a layer (G, n, K), and their channels (G, K)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1]), torch.arange(x.shape[-1])[None]
    u = (
        F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)
        .transpose(1, 2)
        .flatten(0, 1)
    )
    channels = torch.arange(x.shape[1]).repeat_interleave(layer.weight[0, 0].numel())
    return torch.stack(u.chunk(layer.groups, 1)), torch.stack(channels.chunk(layer.groups))


def equations(layer, x, centred):
    """For each group inputs with rows for the ridge (n + K, K), what the layer makes of them, and the channels."""
    weights = layer.weight.detach().double().flatten(1).chunk(getattr(layer, "groups", 1))
    for u, channels, weight in zip(*unfolded(layer, x.double()), weights, strict=True):
        u = u - u.mean(0) if centred else u
        held = (RIDGE * u.square().sum(0).mean()).sqrt()
        rows = torch.cat([u, held * torch.eye(u.shape[1]).double()])
        yield rows, rows @ weight.T, channels


def lost(layer, x, channels_gone, centred):
    """What of a layer's outputs the other channels leave unexplained, as a share."""
    left, total = 0.0, 0.0
    for rows, wanted, channels in equations(layer, x, centred):
        stay = rows[:, ~torch.isin(channels, channels_gone)]
        left += (wanted - stay @ torch.linalg.lstsq(stay, wanted, driver="gelsd").solution).square().sum()
        total += wanted.square().sum()
    return float(left / total)


@pytest.mark.parametrize("case", CASES)
def test_each_step_takes_the_unit_that_costs_least_when_all_are_tried(case):
    torch.manual_seed(0)
    make, x, written, size, readers = CASES[case]
    model = make().eval()
    graph = prunus.trace(model, x[:1])
    among = {
        m.tensor: name for name, axis in graph.axes.items() if axis.size == size for m in graph.members(name)
    }
    axis, seen = among[written], {}

    def see(name):
        return model.get_submodule(name).register_forward_hook(
            lambda _, args, __: seen.update({name: args[0].detach()})
        )

    hooks = [see(name) for name in readers]
    model(x)
    for hook in hooks:
        hook.remove()

    def loss(gone):
        layers = [(model.get_submodule(name), channels) for name, channels in readers.items()]
        return sum(
            lost(layer, seen[name], channels[gone].flatten(), layer.bias is not None or name == "a")
            for name, (layer, channels) in zip(readers, layers, strict=True)
        )

    curve = Moments(model, graph, [x]).curves(RIDGE).axes[axis]
    assert curve.products == len(readers)
    gone = []
    for step in range(size - 1):
        tried = {unit: loss([*gone, unit]) for unit in range(size) if unit not in gone}
        unit = curve.order[size - 1 - step]
        assert tried[unit] <= min(tried.values()) * (1 + 1e-4)
        gone.append(unit)
        assert float(curve.losses[size - 1 - step]) == pytest.approx(tried[unit], rel=1e-3)
    assert curve.losses[size] == 0 and float(curve.losses[0]) == pytest.approx(len(readers), rel=1e-6)


@pytest.mark.parametrize("kind", CONSUMERS)
def test_units_that_others_repeat_go_first_and_cost_nothing(kind):
    model, x = made(kind)
    graph, keep = halved(model, x)
    (axis,) = keep
    curve = Moments(model, graph, [x]).curves(1e-6).axes[axis]
    assert sorted(unit % HALF for unit in curve.order[:HALF]) == list(range(HALF))
    assert curve.unexplained(HALF) < 1e-4 < 1e-3 < curve.unexplained(HALF - 1)


def test_outputs_that_go_with_a_unit_are_no_loss():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 5, 1)
    )
    graph = prunus.trace(model, images()[:1])
    (curve,) = Moments(model, graph, [images()]).curves().axes.values()
    assert curve.products == 1 and float(curve.losses[0]) == pytest.approx(1)


def test_scores_are_the_falls_of_the_convex_curve_in_its_order():
    losses = torch.tensor(
        [8.0, 3.0, 2.5, 0.5, 0.0], dtype=torch.float64
    )  # the second unit saves less than the third
    curve = Curve([2, 0, 3, 1], losses, 1)
    assert torch.allclose(curve.scores(), torch.tensor([1.25, 0.5, 5.0, 1.25], dtype=torch.float64))
    assert curve.scores().argsort(descending=True).tolist() == curve.order
    assert torch.allclose(
        curve.scores(torch.tensor([4.0, 9.0, 1.0, 2.0])), torch.tensor([4.0, 1.0, 9.0, 2.0]).double()
    )


def test_axes_that_no_product_reads_have_no_curve():
    torch.manual_seed(0)
    model = Heads()
    graph = prunus.trace(model, TOKENS[:1])
    curves = Moments(model, graph, [TOKENS]).curves()
    assert set(curves.axes) | set(curves.left) == set(graph.axes) and not set(curves.axes) & set(curves.left)
    assert list(curves.left.values()) == ["no product with a weight reads it"]
    assert list(curves.left) == unread(graph)


def test_the_ridge_is_checked():
    model, x = made("linear")
    graph, _ = halved(model, x)
    with pytest.raises(UserError, match="ridge"):
        Moments(model, graph, [x]).curves(-1)
