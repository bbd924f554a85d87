"""One network for each trap: what must be pruned right, what must not be pruned, what must stay."""

import copy
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus.errors import TraceError
from tests.lib.random_blocks import UnitLength

IMAGE, TOKENS = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 7)


class Between(nn.Module):
    """conv a (3 to 6), a function of the module and its output, conv b (6 to 4), mean over space."""

    def __init__(self, function, **parts):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Buffer(part) if type(part) is torch.Tensor else part)

    def forward(self, x):
        return self.b(self.function(self, self.a(x))).mean((2, 3))


class Sizes(NamedTuple):
    heads: int
    dim: int


class Attention(nn.Module):
    """Four heads of six features; `score` makes weights of queries and keys."""

    def __init__(self, score=lambda q, k: (q @ k.transpose(-2, -1)).softmax(-1), **attributes):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(a, b) for a, b in ((7, 24), (7, 24), (7, 24), (24, 3)))
        self.score, self.sizes = score, Sizes(4, 6)
        vars(self).update(attributes)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, *self.sizes).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out((self.score(q, k) @ v).transpose(1, 2).reshape(n, t, -1))


class Router(nn.Module):
    """Chooses rows of a table by the largest of some units."""

    def __init__(self, choose):
        super().__init__()
        self.a, self.router, self.table = nn.Linear(7, 8), nn.Linear(8, 6), nn.Embedding(6, 4)
        self.choose = choose

    def forward(self, x):
        return self.table(self.choose(self.router(self.a(x))))


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(7, 4), nn.Linear(16, 3)

    def forward(self, x):
        x = self.a(x)
        return self.b((x[..., :, None] * x[..., None, :]).flatten(-2))


def blur(self, x):
    n, c, h, w = x.shape
    return F.conv2d(x.reshape(n * c, 1, h, w), self.kernel, padding=1).view(n, c, h, w)


def normed(self, x):
    direction = self.direction / self.direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return F.conv2d(x, self.length * direction)


def centred(self, x):
    return F.conv2d(x.sigmoid(), self.kernel - self.kernel.mean((1, 2, 3), keepdim=True))


def weight(*shape):
    return nn.Parameter(torch.randn(shape))


def linear_attention(q, k):
    return (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-2, -1)


RIGHT = {
    "divided by a buffer": (lambda: Between(lambda m, x: x / m.std, std=torch.rand(1, 6, 1, 1) + 0.5), [6]),
    "centred weights": (lambda: Between(centred, kernel=weight(6, 6, 1, 1)), [6, 6]),
    "normed weights": (
        lambda: Between(normed, direction=weight(6, 6, 1, 1), length=weight(6, 1, 1, 1)),
        [6, 6],
    ),
    "blur": (lambda: Between(blur, kernel=weight(1, 1, 3, 3)), [6]),
    "gate expanded": (lambda: Between(lambda m, x: x * m.c(x).expand_as(x), c=nn.Conv2d(6, 1, 1)), [6]),
    "cosine": (lambda: Between(lambda m, x: F.normalize(x, dim=1)), [6]),
    "in place": (lambda: Between(lambda m, x: x.clone().add_(x.mean(1, keepdim=True)).relu_()), [6]),
    "largest unit": (lambda: Between(lambda m, x: x * x.amax(1, keepdim=True)), [6]),
    "zeros joined": (
        lambda: Between(
            lambda m, x: m.c(torch.cat([x, x.new_zeros(2, m.pad, 8, 8)], 1)), c=nn.Conv2d(8, 6, 1), pad=2
        ),
        [2, 6, 6],
    ),
    "weight norm": (
        lambda: nn.Sequential(weight_norm(nn.Conv2d(3, 6, 1)), weight_norm(nn.Conv2d(6, 2, 1))),
        [6],
    ),
    "spectral norm": (
        lambda: nn.Sequential(spectral_norm(nn.Conv2d(3, 6, 1)), spectral_norm(nn.Conv2d(6, 2, 1))),
        [6],
    ),
    "unit length, then a norm": (
        lambda: nn.Sequential(nn.Linear(7, 8), UnitLength(), nn.LayerNorm(8), nn.Linear(8, 3)),
        [8],
    ),
    "root mean square": (lambda: nn.Sequential(nn.Linear(7, 8), nn.RMSNorm(8), nn.Linear(8, 3)), [8]),
    "outer product": (Outer, [4]),
    "separate heads": (Attention, [4, 6]),
    "linear attention": (lambda: Attention(linear_attention), [4, 6]),
    "a number in a tensor": (
        lambda: Attention(lambda q, k: (q @ k.mT / torch.tensor(k.size(-1)).sqrt()).softmax(-1)),
        [4],
    ),
    "attributes in vain": (lambda: Attention(depth=4, patch=(6, 4), classes=6), [4, 6]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_pruned_right(name):
    torch.manual_seed(0)
    make, sizes = RIGHT[name]
    model = make().eval()
    example = IMAGE if takes_images(model) else TOKENS
    graph = prunus.trace(model, example)
    assert sorted(axis.size for axis in graph.axes.values()) == sizes
    for count in (1, 2):
        keep = {axis: list(range(count)) for axis in graph.axes}
        small = prunus.shrink(model, graph, keep)
        if name != "normed weights":  # zeros over their own length are no numbers
            assert prunus.mask(model, graph, keep)(example).isfinite().all()
        torch.testing.assert_close(prunus.crop(model, graph, keep, example), small(example))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            small(example)
        assert 2 * prunus.macs(graph, keep) == counter.get_total_flops()


def takes_images(model):
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


NEVER = {
    "argmax": (lambda: Router(lambda x: x.argmax(-1)), "router"),
    "argmin": (lambda: Router(lambda x: x.argmin(-1)), "router"),
    "max with place": (lambda: Router(lambda x: x.max(-1).indices), "router"),
    "min with place": (lambda: Router(lambda x: x.min(-1)[1]), "router"),
    "topk": (lambda: Router(lambda x: x.topk(1).indices[..., 0]), "router"),
    "sort": (lambda: Router(lambda x: x.sort(-1).indices[..., 0]), "router"),
    "numbered units": (lambda: Between(lambda m, x: x * torch.arange(6.0).view(1, -1, 1, 1)), "a"),
    "counted units": (lambda: Between(lambda m, x: x * torch.ones(6).cumsum(0).view(1, -1, 1, 1)), "a"),
    "rolled units": (lambda: Between(lambda m, x: x.roll(1, 1)), "a"),
    "one unit by number": (lambda: Between(lambda m, x: x * x[:, 3:4] + x[:, 2, None]), "a"),
    "a list of units": (lambda: Between(lambda m, x: x[:, [5, 3, 1, 0, 2, 4]]), "a"),
    "places written to": (lambda: Between(lambda m, x: x.index_fill(1, torch.tensor([2]), 0)), "a"),
}


@pytest.mark.parametrize("name", NEVER)
def test_never_pruned(name):
    """Indices, orders and numbers of units lose their meaning if units go."""
    make, layer = NEVER[name]
    model = make().eval()
    example = IMAGE if takes_images(model) else TOKENS
    try:
        graph = prunus.trace(model, example)
    except TraceError as error:
        assert "may shrink" in str(error)
        return
    touched = {member.tensor for axis in graph.axes for member in graph.members(axis) if member.dim == 0}
    assert f"{layer}.weight" not in touched


class Handle:
    """An output that nobody can look into."""

    __slots__ = ("__weakref__",)


def test_outputs_that_cannot_be_seen_are_refused():
    class Net(nn.Sequential):
        def forward(self, x):
            super().forward(x)
            return Handle()

    with pytest.raises(TraceError, match="Handle"):
        prunus.trace(Net(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)), TOKENS)


# --------------------------------------------------------------------------------------- what must stay
def test_attributes_that_mean_something_else_stay():
    model = Attention(depth=4, classes=6, patch=(6, 4)).eval()
    graph = prunus.trace(model, TOKENS)
    small = prunus.shrink(model, graph, {axis: [0, 1] for axis in graph.axes})
    assert (small.depth, small.classes, small.patch) == (4, 6, (6, 4))
    assert small.sizes == Sizes(2, 2)
    assert type(small.sizes) is Sizes
    assert model.sizes == Sizes(4, 6)


def test_a_size_of_the_same_name_stays():
    """num_features means the second dimension here, not the first of `weight`."""
    model = Between(
        lambda m, x: x * m.weight.view(1, m.num_features, 1, 1), weight=weight(1, 6, 1, 1), num_features=6
    )
    graph = prunus.trace(model.eval(), IMAGE)
    assert prunus.shrink(model, graph, {axis: [1, 3] for axis in graph.axes}).num_features == 2


def test_layers_tell_their_new_sizes():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 8, 1, groups=2), nn.GroupNorm(2, 8), nn.Flatten(),
        nn.Linear(512, 5), nn.LayerNorm(5), nn.Linear(5, 2),
    )  # fmt: skip
    graph = prunus.trace(model.eval(), IMAGE)
    keep = {name: list(range(1, axis.size)) for name, axis in graph.axes.items() if axis.size > 2}
    small = prunus.shrink(model, graph, keep)
    rebuilt = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 1, groups=2), nn.GroupNorm(2, 6), nn.Flatten(),
        nn.Linear(384, 4), nn.LayerNorm(4), nn.Linear(4, 2),
    )  # fmt: skip
    assert repr(small) == repr(rebuilt)


@pytest.mark.parametrize("norm", [nn.Identity(), weight_norm], ids=["plain", "weight norm"])
def test_crop_leaves_statistics_and_modes_alone(norm):
    model = nn.Sequential(
        norm(nn.Conv2d(3, 6, 1)),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 2, 1),
    )
    model.train()
    model[1].eval()
    graph = prunus.trace(model, IMAGE)
    before = copy.deepcopy(model.state_dict())
    cropped = prunus.crop(model, graph, {"0": [0, 1, 2, 3, 4, 5]}, IMAGE)
    prunus.crop(model, graph, {"0": [0, 4]}, IMAGE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(cropped, model(IMAGE))  # the first norm frozen, the second in training mode


def test_tracing_does_not_turn_a_spectral_norm():
    """Its power iteration goes on at every look in training mode."""
    model = nn.Sequential(spectral_norm(nn.Linear(7, 6)), nn.ReLU(), nn.Linear(6, 3)).train()
    before = copy.deepcopy(model.state_dict())
    graph = prunus.trace(model, TOKENS)
    prunus.shrink(model, graph, {"0": [1, 2]})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_units_of_an_axis_within_itself():
    """A unit of an outer product owns its row and its column."""
    graph = prunus.trace(Outer().eval(), TOKENS)
    index = next(member.index for member in graph.members("a") if member.tensor == "b.weight")
    assert [sorted(set(row.tolist())) for row in index] == [
        sorted({4 * u + i for i in range(4)} | {4 * i + u for i in range(4)}) for u in range(4)
    ]
