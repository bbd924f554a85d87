"""Repair makes good the units that others can stand for, the rest as well as it can, and changes nothing else."""

import random
import threading
from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import prunus
from prunus.errors import PruningError, TraceError, UserError
from prunus.inputs import call
from prunus.refit import fit_in_order, repair
from tests.lib import nets
from tests.lib.mutants import drawn_program
from tests.lib.random_nets import build, draws
from tests.lib.refitting import CLOSE, CONSUMERS, EXACT, HALF, halved, images, made


@pytest.mark.parametrize("kind", CONSUMERS)
def test_units_that_others_repeat_are_made_good(kind):
    model, x = made(kind)
    graph, keep = halved(model, x)
    small = repair(model, graph, keep, [x], **EXACT)
    new = images(x.dim() - 2, x.shape[-1], seed=1) if x.dim() > 3 or x.shape[1] == 3 else torch.randn(9, 7, 5)
    assert not torch.allclose(prunus.shrink(model, graph, keep)(new), model(new), rtol=0.1, atol=0.1)
    assert torch.allclose(small(new), model(new), **CLOSE)


def test_the_model_and_the_batches_stay_as_they_were():
    model, x = made("through a norm")
    graph, keep = halved(model, x)
    model.train()
    state, given = {n: t.clone() for n, t in model.state_dict().items()}, x.clone()
    repair(model, graph, keep, [x])
    assert model.training and torch.equal(x, given)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_what_needs_no_repair_is_not_touched():
    """All units stay, and layers that come before the cut keep their weights to the bit."""
    model, x = made("through a norm")
    graph, keep = halved(model, x)
    whole = repair(model, graph, {}, [x])
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), model.state_dict().values(), strict=True)
    )
    small, cut = repair(model, graph, keep, [x]), prunus.shrink(model, graph, keep)
    same = {
        name for name, tensor in small.state_dict().items() if torch.equal(tensor, cut.state_dict()[name])
    }
    assert set(cut.state_dict()) - same == {"last.weight", "last.bias"}


def test_batches_give_what_one_batch_gives():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).double()  # fmt: skip
    x = images().double()
    graph = prunus.trace(model, x[:1])
    keep = {name: range(0, axis.size, 2) for name, axis in graph.axes.items()}
    one, many = repair(model, graph, keep, [x]), repair(model, graph, keep, x.split(13))
    for a, b in zip(one.state_dict().values(), many.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)  # products are summed in float32


def test_the_norms_get_the_statistics_of_what_enters_them():
    model, x = made("before a batch norm")
    graph, keep = halved(model, x)
    small = repair(model, graph, keep, x.split(16), ridge=10)  # far from exact, so that the inputs are new
    convolution, norm = small.last
    seen = convolution(small.between(small.first(x))).transpose(0, 1).flatten(1)
    assert torch.allclose(norm.running_mean, seen.mean(1), rtol=1e-4, atol=1e-4)
    assert torch.allclose(norm.running_var, seen.var(1), rtol=1e-3)
    assert not torch.allclose(norm.running_mean, model.last[1].running_mean, rtol=1e-2)


def test_the_solution_is_that_of_least_squares():
    """Against torch.linalg.lstsq, with the weights as they were cut as further equations."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    x = torch.randn(50, 4).double()
    graph = prunus.trace(model, x[:1])
    keep = {next(iter(graph.axes)): [0, 2, 5, 9]}
    small = repair(model, graph, keep, [x], ridge=1e-3)
    u, y = torch.tanh(prunus.shrink(model, graph, keep)[0](x)), model(x)
    u, y = u - u.mean(0), y - y.mean(0)
    held = (1e-3 * (u.T @ u).diagonal().mean()).sqrt()
    rows = torch.cat([u, held * torch.eye(4).double()])
    wanted = torch.cat([y, held * model[2].weight[:, [0, 2, 5, 9]].T])
    assert torch.allclose(small[2].weight.T, torch.linalg.lstsq(rows, wanted).solution, rtol=1e-4, atol=1e-6)
    assert torch.allclose(small(x).mean(0), model(x).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_random_networks_are_explained_no_worse():
    """In every layer that is fitted, and many are: also the ones of residual, grouped and attention networks."""
    draw, layers = random.Random(0), 0
    for _ in range(40):
        model, example = build(drawn_program(draw))
        try:
            graph = prunus.trace(model, example)
        except TraceError:  # nothing in it may shrink
            continue
        keep = graph.check_keep(
            {
                n: draw.sample(range(a.size), w)
                for (n, a), w in zip(graph.axes.items(), graph.halved().values(), strict=True)
            }
        )
        before = prunus.shrink(model, graph, keep, verify="off")
        small = prunus.shrink(model, graph, keep, verify="off")
        try:
            fitted = fit_in_order(model, small, graph, keep, [example, example])
        except PruningError as refused:
            assert draws(model) and "stopped at" in str(refused)
            continue
        for name, layer in fitted.layers.items():
            assert layer.after <= layer.before + 1e-6, name
            layers += 1
        call(small, example)
        assert [t.shape for t in small.state_dict().values()] == [
            t.shape for t in before.state_dict().values()
        ]
    assert layers >= 60


def test_weights_that_are_used_twice_or_computed_stay_as_they_were_cut():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.twice = nn.Linear(3, 8), nn.Linear(8, 8)
            self.computed, self.leave = parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 2)

        def forward(self, x):
            x = F.relu(self.enter(x))
            x = F.relu(self.twice(F.relu(self.twice(x))))
            return self.leave(F.relu(self.computed(x)))

    torch.manual_seed(0)
    model, x = Odd(), torch.randn(64, 3)
    graph = prunus.trace(model, x)
    keep = {name: range(axis.size // 2) for name, axis in graph.axes.items()}
    small, cut = (prunus.shrink(model, graph, keep) for _ in range(2))
    fitted = fit_in_order(model, small, graph, keep, [x])
    assert set(fitted.layers) == {"leave.weight"}
    assert fitted.left == {
        "computed.weight": "a parametrisation computes it",
        "twice.weight": "several products use it",
    }
    assert torch.equal(small.twice.weight, cut.twice.weight)
    assert "left 2 as they were cut" in fitted.summary()


def test_a_table_that_is_also_the_last_layer_stays_a_table():
    model, ids = nets.build("decoder")
    graph = prunus.trace(model, ids)
    keep = nets.random_keep(graph)
    small, cut = (prunus.shrink(model, graph, keep) for _ in range(2))
    fitted = fit_in_order(model, small, graph, keep, [ids])
    tables = [name for name, why in fitted.left.items() if why.startswith("embedding")]
    assert len(tables) == 1 and len(fitted.layers) > 3
    assert torch.equal(small.get_parameter(tables[0]), cut.get_parameter(tables[0]))


def test_parts_of_one_weight_are_fitted_each():
    """Queries, keys and values of torch's attention over other tokens are products with parts of one parameter."""

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.attend = nn.Linear(3, 8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x, y):
            y = self.enter(y)
            return self.attend(self.enter(x), y, y, need_weights=False)[0]

    torch.manual_seed(0)
    model = Reads().eval()
    inputs = torch.randn(16, 5, 3), torch.randn(16, 6, 3)
    graph = prunus.trace(model, inputs)
    keep = {name: range(max(1, axis.size // 2)) for name, axis in graph.axes.items()}
    small = prunus.shrink(model, graph, keep)
    fitted = fit_in_order(model, small, graph, keep, [inputs])
    assert {"attend.in_proj_weight, part 1", "attend.in_proj_weight, part 2"} <= set(fitted.layers)


@pytest.mark.parametrize("how", ["order", "once"])
@pytest.mark.parametrize(
    "given, words",
    [
        ([], "at least one batch"),
        (
            torch.ones(2, 3),
            r"expected an iterable of batches.* got tensor \(2, 3\) float32; give one batch as \[batch\]",
        ),
        (None, "expected an iterable of batches"),
        ([torch.ones(0, 3)], "one example or more in each batch"),
        (["words"], "one example or more in each batch"),
        ([torch.ones(2, 7, 6)], "cannot be called with the batch tensor .2, 7, 6. float32: RuntimeError"),
        ([(torch.ones(2, 7, 5), torch.ones(2))], "cannot be called with the batch tuple .*without labels"),
    ],
)
def test_what_is_no_batch_is_refused(given, words, how):
    model, x = made("linear")
    graph, keep = halved(model, x)
    with pytest.raises(UserError, match=words):
        repair(model, graph, keep, given, how=how)


@pytest.mark.parametrize("how", ["order", "once"])
def test_a_ridge_below_zero_is_refused(how):
    model, x = made("linear")
    graph, keep = halved(model, x)
    with pytest.raises(UserError, match="ridge should be a number from 0, but is -1"):
        repair(model, graph, keep, [x], how=how, ridge=-1)


@pytest.mark.parametrize("how", ["order", "once"])
def test_a_forward_that_writes_to_its_inputs_leaves_the_batches_as_they_were(how):
    class Writes(nn.Sequential):
        def forward(self, input):
            return super().forward(input.mul_(2).sub_(1))

    torch.manual_seed(0)
    model, x = Writes(nn.Linear(4, 2 * HALF), nn.ReLU(), nn.Linear(2 * HALF, 2)), torch.randn(16, 4)
    graph, keep = halved(model, x.clone())
    given = x.clone()
    repair(model, graph, keep, [given], how=how)
    assert torch.equal(given, x)


def test_numbers_that_are_not_finite_are_refused_and_no_thread_stays():
    model, x = made("linear")
    graph, keep = halved(model, x)
    x = x.clone()
    x[0, 0, 0] = float("nan")
    before = set(threading.enumerate())
    with pytest.raises(PruningError, match="not finite"):
        repair(model, graph, keep, [x])
    assert set(threading.enumerate()) <= before


def test_inputs_that_do_not_fit_are_refused():
    model, x = made("linear")
    graph, keep = halved(model, x)
    before = set(threading.enumerate())
    with pytest.raises(UserError, match=r"the batch tensor \(2, 7, 6\) float32: RuntimeError"):
        repair(model, graph, keep, [x, torch.randn(2, 7, 6)])
    assert set(threading.enumerate()) <= before


def test_too_few_examples_are_said():
    model, x = made("flattened")
    graph, keep = halved(model, x)
    small = prunus.shrink(model, graph, keep)
    fitted = fit_in_order(model, small, graph, keep, [x[:5]])
    assert "5 equations for 24 weights, 48 examples would do" in fitted.summary()
    assert torch.isfinite(small(x)).all()


def test_dead_inputs_are_no_obstacle():
    model, x = made("linear")
    graph, keep = halved(model, x)
    with torch.no_grad():
        model.chain.first.weight.zero_(), model.chain.first.bias.zero_()
    small = repair(model, graph, keep, [x], **EXACT)
    assert torch.allclose(small(x), model(x), **CLOSE)


def test_half_precision_is_solved_in_full():
    model, x = made("linear")
    graph, keep = halved(model, x)
    model, x = model.half(), (60 * x).half()  # squares overflow float16
    small = repair(model, graph, keep, [x])
    assert small.chain.last.weight.dtype == torch.float16
    assert (small(x) - model(x)).abs().max() < 0.05 * model(x).abs().max()


def test_inputs_in_a_mapping_that_is_no_dict_are_read_by_keyword():
    """Tokenizers of transformers return such mappings; the error was an empty one."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    given = UserDict(input=torch.randn(4, 3))
    graph = prunus.trace(model, given)
    keep = prunus.select(
        graph, prunus.scores.activation(model, graph, [(given, None)]), prunus.Budget(macs=0.5)
    )
    small = prunus.repair(model, graph, keep, [given])
    expected = prunus.repair(model, graph, keep, [given["input"]])
    assert torch.equal(small(**given), expected(**given))
