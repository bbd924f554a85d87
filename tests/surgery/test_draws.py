"""Random numbers in a forward pass are the same for both sides of a proof, place by place; and both modes are run."""

import dataclasses
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.errors import PruningError
from prunus.surgery import attempts, proof
from tests.lib.mutants import strayed

X = torch.randn(4, 6)


class Drawing(nn.Module):
    """Two layers with something random between them."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(6, 8), nn.Linear(8, 3), between

    def forward(self, x):
        return self.b(self.between(self.a(x)))


BETWEEN = {
    "noise of the same shape": lambda x: x + torch.randn_like(x),
    "noise in place": lambda x: x * torch.empty_like(x).uniform_(0.5, 1.5),
    "a chance from the data": lambda x: x * torch.bernoulli(x.sigmoid()),
    "a chance from the data, in place": lambda x: x * torch.empty_like(x).bernoulli_(x.sigmoid()),
    "dropout": lambda x: F.dropout(x, 0.5),
    "a mean from the data": lambda x: torch.normal(x, 1.0),
    "random slopes": lambda x: F.rrelu(x, training=True),
    "one number for all": lambda x: x * torch.rand([]),
    "a number for each row": lambda x: x * torch.rand(x.shape[0], 1),
    "a generator": lambda x: (
        x * torch.rand(len(x), 1, generator=torch.Generator().manual_seed(random.randrange(9)))
    ),
    "Python's own": lambda x: x * random.random(),
    "Gumbel softmax": lambda x: F.gumbel_softmax(x, dim=-1),
}


def drawn(between):
    torch.manual_seed(0)
    model = Drawing(between).eval()
    return model, prunus.trace(model, X)


@pytest.mark.parametrize("kind", BETWEEN)
def test_draws_are_shared_by_place(kind):
    model, graph = drawn(BETWEEN[kind])
    before = torch.get_rng_state(), random.getstate()
    assert prunus.verify(model, graph, {"a": [1, 4, 6]}).holds
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


@pytest.mark.parametrize("kind", BETWEEN)
def test_a_wrong_index_shows_beside_draws(kind):
    model, graph = drawn(BETWEEN[kind])
    for member in graph.members("a"):
        wrong, kept = strayed(graph, member, graph.axes["a"], [1, 4, 5])
        try:
            assert not prunus.verify(model, wrong, {"a": [1, 4, 6], "astray": kept}).holds, member
        except PruningError:
            pass


class Counting(nn.Module):
    """Draws as often as an attribute says."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.times = nn.Linear(6, 8), nn.Linear(8, 3), 2

    def forward(self, x):
        x = self.a(x)
        for _ in range(self.times):
            x = x + torch.randn_like(x)
        return self.b(x)


@pytest.mark.parametrize("times", [1, 3])
def test_another_number_of_draws_is_a_failed_proof(times):
    model = Counting().eval()
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, {"a": [1, 2]})
    small.times = times
    with pytest.raises(PruningError, match="draws"):
        prunus.verify(model, graph, {"a": [1, 2]}, small)


def in_modes(model, example, *modes):
    """The graph of a model in evaluation, as if these modes had been traced."""
    return dataclasses.replace(
        prunus.trace(model, example), modes=dict.fromkeys(modes, example), traced=tuple(modes)
    )


class Modes(nn.Module):
    """Dropout, a batch norm, and a buffer that only training writes."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.drop, self.b = (
            nn.Linear(6, 8),
            nn.BatchNorm1d(8),
            nn.Dropout(0.5),
            nn.Linear(8, 3),
        )
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x):
        x = self.norm(self.a(x)) + 0 * self.total
        if self.training:
            self.total += x.sum(0)
        return self.b(self.drop(x.relu()))


def test_training_shares_its_draws_and_takes_statistics_of_what_is_kept():
    model = Modes().eval()
    graph = in_modes(model, X, "eval", "train")
    found = prunus.verify(model, graph, {"a": [0, 3, 5]})
    assert found.holds and found.modes == ("eval", "train") and found.dtype == torch.float32
    assert not model.training and not model.total.any()


@pytest.mark.parametrize("buffer", ["norm.running_mean", "norm.running_var", "total"])
def test_a_buffer_that_training_writes_must_be_that_of_its_units(buffer):
    """In evaluation a wrong one may be right by chance: `total` is zero there."""
    model = Modes().eval()
    graph = in_modes(model, X, "train")
    member = next(m for m in graph.members("a") if m.tensor == buffer)
    wrong, kept = strayed(graph, member, graph.axes["a"], [0, 3, 6])
    assert prunus.verify(model, graph, {"a": [0, 3, 5]}).holds
    try:
        assert not prunus.verify(model, wrong, {"a": [0, 3, 5], "astray": kept}).holds
    except PruningError:
        pass


def test_a_stale_size_in_training_alone_is_noticed():
    class Stale(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.first = nn.Linear(6, 8), nn.Linear(8, 3), 2

        def forward(self, x):
            x = self.a(x)
            if self.training:
                x = torch.cat([x[:, : self.first], 0 * x[:, self.first :]], 1)
            return self.b(x)

    model = Stale().eval()
    graph = prunus.trace(model, X, modes=("eval",))
    keep = {"a": [0, 3, 5]}
    assert prunus.verify(model, graph, keep).holds
    both = dataclasses.replace(graph, modes={"eval": X, "train": X}, traced=("eval", "train"))
    small = prunus.shrink(model, graph, keep)
    small.first = 3
    with pytest.raises(PruningError):
        prunus.surgery.prove(model, both, keep, small)


def test_a_model_decides_what_training_is():
    """One whose batch norms stay in evaluation, as its own `train` says."""

    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    model = Frozen(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    example = X[:1]  # of which a batch norm in training takes no statistics
    graph = in_modes(model, example, "train")
    assert prunus.verify(model, graph, {"0": [0, 3, 5]}).holds


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_forward_that_fixes_a_lower_precision_is_compared_in_it(dtype):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(self.a(x.to(dtype)).relu())

    model = Half().to(dtype).eval()
    found = prunus.verify(model, prunus.trace(model, X), {"a": [1, 2, 5]})
    assert found.holds and found.dtype == dtype


def test_a_doubt_is_settled_in_double_precision(monkeypatch):
    """Here every error in float32 is one."""
    monkeypatch.setattr(proof, "ATTEMPTS", (attempts.QUICK._replace(tolerance=-1.0), *attempts.ATTEMPTS[1:]))
    model = Counting().eval()
    found = prunus.verify(model, prunus.trace(model, X), {"a": [1, 2, 5]})
    assert (
        found.holds and found.dtype == torch.float64 and found.tolerance == attempts.TOLERANCES[torch.float64]
    )
