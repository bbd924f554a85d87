"""Sizes that a forward pass reads: from attributes of any kind, from shapes, and computed from both."""

import functools
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.errors import TraceError, UserError
from prunus.graph.check import Check

TOKENS = torch.randn(2, 5, 7)


class Net(nn.Module):
    """A wide layer, a function of its output with the module as first argument, and a head.

    Attributes are given by keyword.
    """

    def __init__(self, function, width=24, out=24, **attributes):
        super().__init__()
        self.a, self.head = nn.Linear(7, width), nn.Linear(out, 3)
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.head(self.function(self, self.a(x)))


def follows(model, example=TOKENS, keep=0.5):
    """Trace, cut every axis to a share, prove; returns the small model. Fails if the layer `a` is fixed."""
    model = model.eval()
    graph = prunus.trace(model, example)
    assert any(
        member.tensor == "a.weight" and member.dim == 0
        for axis in graph.axes
        for member in graph.members(axis)
    ), graph.explain("a")
    small = prunus.shrink(model, graph, {n: range(max(1, int(a.size * keep))) for n, a in graph.axes.items()})
    assert small.a.weight.shape[0] < model.a.weight.shape[0]
    return small


def heads(model, x):
    """Tokens, cut into heads and joined again."""
    n, t, _ = x.shape
    return (
        x.view(n, t, model.config.heads, model.config.dim)
        .transpose(1, 2)
        .softmax(2)
        .transpose(1, 2)
        .reshape(n, t, -1)
    )


@dataclass(frozen=True)
class Frozen:
    heads: int
    dim: int


class Slotted:
    __slots__ = ("dim", "heads")

    def __init__(self, heads, dim):
        self.heads, self.dim = heads, dim


class Classwide:
    heads, dim = 4, 6


class Cyclic:
    def __init__(self):
        self.heads, self.dim, self.me = 4, 6, self


Pair = namedtuple("Pair", "heads dim")

HOLDERS = {
    "an object": SimpleNamespace(heads=4, dim=6),
    "a frozen dataclass": Frozen(4, 6),
    "slots": Slotted(4, 6),
    "attributes of a class": Classwide(),
    "an object that holds itself": Cyclic(),
    "a named tuple": Pair(4, 6),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_integers_in_objects_follow(kind):
    net = Net(heads, config=HOLDERS[kind])
    small = follows(net)
    assert (small.config.heads, small.config.dim) == (2, 3)
    assert (net.config.heads, net.config.dim) == (4, 6)


CONTAINERS = {
    "a dict": ({"heads": 4, "dim": 6}, lambda s: (s["heads"], s["dim"])),
    "a list": ([4, 6], tuple),
    "a tuple in a dict in a list": ([{"both": (4, 6)}], lambda s: s[0]["both"]),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_integers_in_containers_follow(kind):
    held, read = CONTAINERS[kind]
    net = Net(lambda m, x: x.view(*x.shape[:2], *read(m.held)).cumsum(1).flatten(2), held=held)
    assert tuple(read(follows(net).held)) == (2, 3)


HEADS, WIDTH, FIRST = {"heads": 4}, {"dim_": 24}, {"first": 10}


def parts(model, x):
    return torch.cat([x.narrow(-1, 0, model.first), x.narrow(-1, model.first, x.size(-1) - model.first)], -1)


def grouped(model, x):
    return F.group_norm(x.transpose(1, 2), model.groups).transpose(1, 2)


FUNCTIONS = {
    "an attribute of a child": (lambda m, x: x.reshape(10, m.a.out_features), {}),
    "a product": (
        lambda m, x: x.reshape(-1, m.heads * m.size).view(10, m.heads, -1).flatten(1),
        {**HEADS, "size": 6},
    ),
    "a quotient": (lambda m, x: x.view(10, m.heads, m.dim_ // m.heads).flatten(1), {**HEADS, **WIDTH}),
    "a quotient of a shape": (lambda m, x: x.view(10, m.heads, x.shape[-1] // m.heads).flatten(1), HEADS),
    "a quotient of attributes": (
        lambda m, x: torch.cat(x.split(m.dim_ // m.paths, -1), -1),
        {**WIDTH, "paths": 2},
    ),
    "halves of an odd number of pairs": (
        lambda m, x: torch.cat(x.view(*x.shape[:2], 2, -1).mT.flatten(2).chunk(2, -1), -1),
        {"width": 26, "out": 26},
    ),
    "half a shape": (lambda m, x: torch.cat(x.split(x.size(-1) // 2, -1), -1), {}),
    "the rest of a shape": (lambda m, x: torch.cat(x.split([m.first, x.shape[-1] - m.first], -1), -1), FIRST),
    "slices from an attribute": (lambda m, x: torch.cat([x[..., m.first :], x[..., : m.first]], -1), FIRST),
    "slices from the end": (lambda m, x: torch.cat([x[..., -m.last :], x[..., : -m.last]], -1), {"last": 10}),
    "parts by start and length": (parts, FIRST),
    "zeros of a size": (lambda m, x: x + torch.zeros(m.dim_), WIDTH),
    "a slice of the whole": (lambda m, x: x[..., : m.dim_], WIDTH),
    "a part that is the whole": (lambda m, x: x.narrow(-1, 0, m.dim_), WIDTH),
    "a size asked by keyword": (lambda m, x: x.reshape(10, x.size(dim=2)), {}),
    "the number of elements": (lambda m, x: x.reshape(x.numel() // x.shape[-1], x.shape[-1]), {}),
    "a check of the code": (lambda m, x: x if x.shape[-1] == m.dim_ else x[..., :1], WIDTH),
    "a layer norm": (lambda m, x: F.layer_norm(x, (m.dim_,)), WIDTH),
    "a group norm": (grouped, {"groups": 6}),
    "as many heads as layers": (
        lambda m, x: x.view(2, 5, m.heads, -1).flatten(2) * m.depth,
        {**HEADS, "depth": 4},
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_computed_sizes_follow(name):
    function, attributes = FUNCTIONS[name]
    small = follows(Net(function, **attributes))
    assert getattr(small, "depth", 4) == 4
    assert small.head.in_features in (
        6,
        12,
        14,
    )  # heads and their features halved, or the whole; all pairs but one


def test_a_number_made_from_a_size_fixes_that_size_alone():
    net = Net(lambda m, x: (x.view(2, 5, m.heads, m.dim) * m.dim**-0.5).flatten(2), heads=4, dim=6)
    small = follows(net)
    assert (small.heads, small.dim) == (2, 6)


def test_a_number_stored_when_the_model_was_made_stays():
    net = Net(lambda m, x: (x.view(2, 5, m.heads, m.dim) * m.scale).flatten(2), heads=4, dim=6, scale=6**-0.5)
    small = follows(net)
    assert (small.heads, small.dim, small.scale) == (2, 3, 6**-0.5)


@pytest.mark.parametrize(("least", "left"), [(1, 2), (0, 1)])
def test_a_size_that_decides_by_order_stays_where_one_fewer_decides_otherwise(least, left):
    def joined(m, x):
        parts = x.view(*x.shape[:2], m.paths, m.dim)
        return (parts if m.paths > m.least_() else parts.abs()).sum(2)

    small = follows(Net(joined, out=12, paths=2, dim=12, least_=lambda: least))
    assert (small.paths, small.dim) == (left, 6)


class Configured(nn.Module):
    """A network that is made from a config, and may compute with a number made from a size in it."""

    def __init__(self, config):
        super().__init__()
        self.config, self.width = config, config.width
        self.a, self.head = nn.Linear(7, config.width), nn.Linear(config.width, 3)

    def forward(self, x):
        x = self.a(x)
        return self.head(x * self.width**-0.5 if self.config.scaled else x)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_stated_size_follows_unless_a_number_is_made_from_it(scaled):
    small = follows(Configured(SimpleNamespace(width=24, scaled=scaled)))
    assert small.a.out_features == 12
    assert small.width == small.config.width == (24 if scaled else 12)


class Joined(nn.Module):
    """Two layers side by side, normed in groups of which none is cut, and a layer normed in groups that may be."""

    def __init__(self, config):
        super().__init__()
        self.config, self.chosen, self.wide = config, config.groups, 3 * config.width
        self.a, self.b = nn.Linear(7, 2 * config.width), nn.Linear(7, config.width)
        self.first = nn.GroupNorm(config.groups, 3 * config.width)
        self.c = nn.Linear(3 * config.width, config.width)
        self.second = nn.GroupNorm(config.groups, config.width)
        self.head = nn.Linear(config.width, 3)

    def forward(self, x):
        x = self.first(torch.cat([self.a(x), self.b(x)], -1).flatten(0, 1))
        x = self.second(self.c(x))
        return self.head(x), x.detach().amax(1).topk(self.chosen).values


def test_integers_that_the_pass_reads_do_not_follow_by_the_construction():
    """The groups of `second` may go; those of `first`, and the `chosen`, are made from the same integer and stay."""
    model = Joined(SimpleNamespace(width=16, groups=4))
    graph = prunus.trace(model, TOKENS)
    small = prunus.shrink(model, graph, {"c#0": [0, 2]})
    assert (small.first.num_groups, small.second.num_groups, small.chosen) == (4, 2, 4)


def test_a_stated_size_follows_what_its_own_layers_say_of_it():
    """`wide` is three times a width in the constructor, but the layers that it describes are as long as a sum."""
    model = Joined(SimpleNamespace(width=16, groups=4))
    graph = prunus.trace(model, TOKENS)
    half = {name: range(axis.size // 2) for name, axis in graph.axes.items() if name.startswith("c#")}
    small = prunus.shrink(model, graph, half)
    assert small.c.out_features < 16 and small.wide == small.c.in_features == 48


class Grouped(nn.Module):
    """Attention with fewer heads for keys; the ratio is stored, and read by other code than this pass runs."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.dim = config.width // config.heads
        self.ratio = config.heads // config.key_heads
        self.a = nn.Linear(7, config.width)
        self.q = nn.Linear(config.width, config.heads * self.dim)
        self.k, self.v = (nn.Linear(config.width, config.key_heads * self.dim) for _ in range(2))
        self.o = nn.Linear(config.heads * self.dim, 3)

    def forward(self, x):
        x = self.a(x)
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, -1, self.dim).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, scale=0.3)
        return self.o(y.transpose(1, 2).reshape(n, t, -1))


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_a_ratio_of_sizes_follows_though_the_pass_does_not_read_it(key_heads):
    small = follows(Grouped(SimpleNamespace(width=32, heads=8, key_heads=key_heads)))
    queries, keys = (layer.weight.shape[0] // small.dim for layer in (small.q, small.k))
    assert queries < 8
    assert small.ratio == queries // keys


def test_a_size_that_is_written_in_the_code_fixes_and_says_so():
    with pytest.raises(TraceError, match="uses the integer 4, written in the code"):
        prunus.trace(Net(lambda m, x: x.reshape(10, 4, 6).flatten(1)).eval(), TOKENS)
    with pytest.raises(TraceError, match=r"slice .* uses the integer 24, written in the code"):
        prunus.trace(Net(lambda m, x: x[..., :24]).eval(), TOKENS)


class Counting(nn.Module):
    """Counts its calls in a buffer, in an attribute and in a list, and keeps a grid for the last shape."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(7, 24), nn.Linear(24, 24), nn.Linear(24, 3)
        self.register_buffer("calls", torch.tensor(24))
        self.count, self.seen, self.shape = 24, [], None

    def forward(self, x):
        self.calls += 1
        self.count += 1
        self.seen.append(x.shape[0])
        x = self.b(self.a(x).relu())
        if self.shape != x.shape:
            self.grid, self.shape = torch.zeros(x.shape), x.shape
        return self.head(x + self.grid)


def test_what_a_pass_stores_is_put_back():
    model = Counting()
    graph = prunus.trace(model.eval(), TOKENS)
    assert [axis.size for axis in graph.axes.values()] == [24, 24]
    assert (model.count, model.seen, model.calls.item(), model.shape) == (24, [], 24, None)
    small = prunus.shrink(model, graph, {name: range(5) for name in graph.axes})
    assert (small.count, small.calls.item()) == (24, 24)
    assert small(TOKENS).shape == (2, 5, 3)


@functools.lru_cache
def _table(size):
    return torch.linspace(0, 1, size)


def test_a_table_kept_by_functools_is_no_other_way():
    graph = prunus.trace(Net(lambda m, x: x.cumsum(1) * _table(x.shape[1])[:, None]).eval(), TOKENS)
    assert graph.axes["a"].size == 24
    assert not hasattr(_table(5), "_prunus_tag") or _table(5).shape == (5,)


def test_code_that_insists_on_plain_integers_is_fixed_and_the_rest_goes_on():
    def strict(model, x):
        if type(model.heads) is not int:
            raise TypeError("an integer, please")
        return x.view(2, 5, model.heads, -1).flatten(2)

    model = nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 7), Net(strict, heads=4))
    graph = prunus.trace(model.eval(), TOKENS)
    assert "0" in graph.axes


class Traced(nn.Module):
    """Asks for its mode itself."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(7, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.a(x)
        return [self.b(x), self.head(x)] if self.training else self.head(self.b(x) + x)


def test_what_training_returns_keeps_its_size():
    graph = prunus.trace(Traced(), TOKENS, modes="eval")
    assert set(graph.axes) == {"a"} and list(graph.modes) == ["eval"]
    with pytest.raises(TraceError, match="an output of the model"):
        prunus.trace(Traced(), TOKENS)


def test_a_mode_that_fails_is_left_out_with_its_reason():
    def needs_targets(model, x):
        if model.training:
            raise ValueError("targets are missing")
        return x.relu()

    with pytest.warns(UserWarning, match="evaluation mode alone.*targets are missing"):
        graph = prunus.trace(Net(needs_targets), TOKENS)
    assert list(graph.modes) == ["eval"]
    with pytest.raises(TraceError, match="targets are missing"):
        prunus.trace(Net(needs_targets), TOKENS, modes=("eval", "train"))


class Measured(nn.Module):
    """Reads a value off the data, in training alone."""

    def __init__(self, read):
        super().__init__()
        self.a, self.head, self.read = nn.Linear(7, 8), nn.Linear(8, 3), read

    def forward(self, x):
        if self.training and self.read(x) > 1e9:
            raise OverflowError
        return self.head(self.a(x))


READS = {"item": lambda x: x.abs().sum().item(), "numpy": lambda x: x.numpy().max()}


@pytest.mark.parametrize("name", READS)
def test_training_that_reads_data_is_traced_with_real_tensors(name):
    with pytest.warns(UserWarning, match="traced with real tensors"):
        graph = prunus.trace(Measured(READS[name]), TOKENS)
    assert graph.traced == ("eval", "train") and list(graph.axes) == ["a"]


def test_modes_are_checked():
    with pytest.raises(UserError, match="mode"):
        prunus.trace(Traced(), TOKENS, modes="training")


@pytest.mark.parametrize("name", ["a quotient", "half a shape", "slices from the end"])
def test_one_trace_takes_two_passes(name, monkeypatch):
    passes = []
    monkeypatch.setattr(Check, "_run", lambda self, *a, run=Check._run: passes.append(1) or run(self, *a))
    function, attributes = FUNCTIONS[name]
    prunus.trace(Net(function, **attributes).eval(), TOKENS)
    assert len(passes) == 1


class Weighed(nn.Module):
    """A layer whose output is multiplied by a number that was made of it outside of torch, and another layer."""

    def __init__(self, number):
        super().__init__()
        self.a, self.b, self.head, self.number = nn.Linear(7, 8), nn.Linear(8, 6), nn.Linear(6, 3), number

    def forward(self, x):
        x = self.a(x)
        return self.head(self.b(x * self.number(x.detach())).tanh())


NUMBERS = {
    "numpy": lambda x: float(x.numpy().mean()),
    "tolist": lambda x: sum(x[0, 0].tolist()),
    "array": lambda x: float(np.asarray(x).mean()),
}


@pytest.mark.filterwarnings("ignore:traced with real tensors")
@pytest.mark.parametrize("name", NUMBERS)
def test_what_leaves_torch_stays_and_the_rest_goes_on(name):
    model = Weighed(NUMBERS[name])
    graph = prunus.trace(model, TOKENS)
    assert list(graph.axes) == ["b"]
    assert any(
        f"{each} in the model itself" in graph.explain("a") for each in ("numpy", "tolist", "__array__")
    )
    prunus.shrink(model, graph, {"b": [0, 2, 5]})


class Tied(nn.Module):
    """A head whose weight is the table's; it keeps a config, or nothing that it is made from."""

    def __init__(self, config, keep):
        super().__init__()
        self.a, self.head = nn.Embedding(20, config.width), nn.Linear(config.width, 20, bias=False)
        self.head.weight = self.a.weight
        if keep:
            self.config, self.keep = config, keep

    def forward(self, x):
        return self.head(self.a(x).tanh())


@pytest.mark.parametrize("keep", [False, True])
def test_layers_with_a_tied_weight_state_its_size(keep):
    model = Tied(SimpleNamespace(width=16), keep).eval()
    graph = prunus.trace(model, torch.arange(6).view(1, 6))
    small = prunus.shrink(model, graph, {name: range(8) for name in graph.axes})
    assert small.head.in_features == small.a.embedding_dim == 8
    assert small.head.weight is small.a.weight and not small.prunus_notes
    assert not keep or small.config.width == 8
