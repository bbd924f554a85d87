"""Every score against a plain loop over units, and that scoring leaves the model as it was."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from prunus import methods, scores, zoo
from prunus.data import load_data
from prunus.errors import UserError
from prunus.graph import trace
from prunus.progress import silent
from prunus.selection import Budget, cost
from prunus.tasks import Classification


class Net(nn.Module):
    """A residual convolutional net with norms, flattened into a linear layer without."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(8)
        self.outer = nn.Conv2d(8, 6, 3, padding=1)
        self.hidden = nn.Linear(6 * 16, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.outer(F.relu(self.inner_norm(self.inner(x))))
        return self.head(F.relu(self.hidden(x.flatten(1))))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = Net()
    for norm in (model.norm, model.inner_norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.running_mean, -0.3, 0.3)
    return model, trace(model, torch.zeros(1, 3, 4, 4))


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, 3, 4, 4, generator=generator), torch.randint(4, (5,), generator=generator))
        for _ in range(3)
    ]


def unit_values(tensor, member, unit):
    return tensor.index_select(member.dim, member.index[unit])


def by_loop(graph, tensors, roles, measure):
    """Per axis and unit the measure of the unit's part of each member: axis -> [[float]]."""
    return {
        name: [
            [measure(unit_values(tensors[m.tensor], m, unit)) for m in graph.members(name) if m.role in roles]
            for unit in range(axis.size)
        ]
        for name, axis in graph.axes.items()
    }


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].cpu(), torch.tensor(expected[name]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(
    ("combine", "fold"), [("sum", sum), ("max", max), ("mean", lambda v: sum(v) / len(v))]
)
def test_magnitude(net, p, combine, fold):
    model, graph = net
    roles = ("produces", "consumes", "scales")
    parts = by_loop(graph, dict(model.named_parameters()), roles, lambda w: w.abs().pow(p).sum().item())
    expected = {name: [fold(unit) ** (1 / p) for unit in units] for name, units in parts.items()}
    found = scores.magnitude(model, graph, p=p, combine=combine, normalize="none")
    assert_close(found, expected)
    for value in scores.magnitude(model, graph, p=p, combine=combine).values():
        torch.testing.assert_close(value.mean(), torch.tensor(1.0))


def test_magnitude_of_producers_is_the_filter_norm(net):
    model, graph = net
    found = scores.magnitude(model, graph, p=1, roles=("produces",), normalize="max")
    norms = model.inner.weight.detach().abs().sum((1, 2, 3))
    torch.testing.assert_close(found["inner"], norms / norms.max())


def test_lamp(net):
    model, graph = net
    for name, found in scores.lamp(model, graph).items():
        square = scores.magnitude(model, graph, normalize="none")[name] ** 2
        expected = [s / sum(t for t in square if t >= s) for s in square]
        torch.testing.assert_close(found, torch.stack(expected))
        assert found.max() == 1


def test_bn_scale_falls_back_on_magnitude_by_name(net):
    model, graph = net
    with pytest.warns(UserWarning, match="no norm on hidden; scored by magnitude instead"):
        found = scores.bn_scale(model, graph)
    torch.testing.assert_close(found["inner"], model.inner_norm.weight.detach().abs())
    level = torch.stack([found["stem"].mean(), found["inner"].mean()]).mean()
    torch.testing.assert_close(found["hidden"].mean(), level)
    assert list(found) == list(graph.axes)


def test_bn_scale_needs_a_norm():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(UserError, match="no norm on any axis"):
        scores.bn_scale(model, trace(model, torch.zeros(1, 4)))


def test_fpgm_scores_the_replaceable_least(net):
    model, graph = copy.deepcopy(net[0]), net[1]
    with torch.no_grad():
        model.inner.weight[5] = model.inner.weight.mean(0)
    filters = model.inner.weight.detach().flatten(1)
    expected = [sum((f - g).norm() for g in filters).item() for f in filters]
    found = scores.fpgm(model, graph, normalize="none")
    assert_close({"inner": found["inner"]}, {"inner": expected})
    assert found["inner"].argmin() == 5


def test_random_depends_on_the_seed_alone(net):
    graph = net[1]
    one, same, other = scores.random(graph, 1), scores.random(graph, 1), scores.random(graph, 2)
    assert all(one[name].equal(same[name]) and not one[name].equal(other[name]) for name in graph.axes)


@pytest.mark.parametrize("roles", [("consumes",), ("produces", "scales", "shifts")])
def test_taylor(net, batches, roles):
    model, graph = net
    plain = copy.deepcopy(model).eval()
    weights = dict(plain.named_parameters())
    total = {name: torch.zeros(axis.size) for name, axis in graph.axes.items()}
    for x, y in batches:
        plain.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        change = {name: (w * w.grad).detach() for name, w in weights.items()}
        for name, units in by_loop(graph, change, roles, lambda part: part.sum().item()).items():
            total[name] += torch.tensor([sum(unit) ** 2 for unit in units])
    found = scores.taylor(model, graph, F.cross_entropy, batches, roles=roles)
    assert_close(found, {name: (sums / len(batches)).tolist() for name, sums in total.items()})


def test_taylor_of_consumers_is_the_gradient_of_gates(net, batches):
    """Scaling the inputs of consumers is scaling their weights: sum of gradient * weight = gradient of a gate at 1."""
    model, graph = net
    x, y = batches[0]
    gate = torch.ones(10, requires_grad=True)
    plain = copy.deepcopy(model).eval()
    plain.hidden.register_forward_hook(lambda module, args, output: F.relu(output) * gate)
    F.cross_entropy(plain(x), y).backward()
    found = scores.taylor(model, graph, F.cross_entropy, batches[:1], roles=("consumes",))
    torch.testing.assert_close(found["hidden"], gate.grad**2)


@pytest.mark.parametrize("score", ["taylor", "activation"])
def test_scoring_leaves_the_model_untouched(net, batches, score):
    model, graph = copy.deepcopy(net[0]).train(), net[1]
    model.norm.eval()
    model.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        if score == "taylor":
            found = scores.taylor(model, graph, F.cross_entropy, batches)
        else:
            found = scores.activation(model, graph, batches)
    assert all(value.sum() > 0 for value in found.values())
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert model.training and model.inner_norm.training and not model.norm.training
    assert not any(module._forward_hooks for module in model.modules())


def test_taylor_says_what_is_wrong(net, batches):
    model, graph = net
    with pytest.raises(UserError, match="at least one batch"):
        scores.taylor(model, graph, F.cross_entropy, [])
    with pytest.raises(UserError, match="the loss of batch 1 is nan"):
        scores.taylor(model, graph, lambda output, y: output.sum() * torch.nan, batches)


def test_activation(net, batches):
    model, graph = net
    plain = copy.deepcopy(model).eval()
    seen = {}
    plain.outer.register_forward_pre_hook(lambda module, args: seen.setdefault("inner", []).append(args[0]))
    plain.hidden.register_forward_pre_hook(lambda module, args: seen.setdefault("flat", []).append(args[0]))
    with torch.no_grad():
        for x, _ in batches:
            plain(x)
    found = scores.activation(model, graph, batches, normalize="none")
    torch.testing.assert_close(found["inner"], torch.cat(seen["inner"]).abs().mean((0, 2, 3)))
    flat = torch.cat(seen["flat"]).abs().mean(0).view(6, 16).mean(1)  # what `hidden` reads of each unit
    alone = scores.activation(model, graph, batches, normalize="none", roles=("produces",))
    assert found["stem"].shape == flat.shape == alone["stem"].shape
    assert not found["stem"].allclose(alone["stem"])


class Tower(nn.Module):
    """A network that reads a dict; `mix` and `last` are used outside of their modules, so no hook sees their input."""

    def __init__(self):
        super().__init__()
        self.first = weight_norm(nn.Linear(4, 6))
        self.mix, self.last = nn.Linear(6, 7, bias=False), nn.Linear(7, 3, bias=False)

    def forward(self, a, b):
        x = F.relu(F.linear(F.relu(self.first(a + b)), self.mix.weight))
        return F.linear(x, self.last.weight)


def test_dict_inputs_parametrisations_and_hidden_modules():
    torch.manual_seed(0)
    model = Tower()
    graph = trace(model, {"a": torch.zeros(2, 4), "b": torch.zeros(2, 4)})
    batches = [({"a": torch.randn(5, 4), "b": torch.randn(5, 4)}, torch.randint(3, (5,)))]
    expected = model.first.weight.detach().norm(dim=1)
    found = scores.magnitude(model, graph, roles=("produces",), normalize="none")
    torch.testing.assert_close(found["first"], expected)
    assert scores.taylor(model, graph, F.cross_entropy, batches)["first"].sum() > 0
    with pytest.warns(
        UserWarning, match="no module computes the activations on mix; scored by magnitude instead"
    ):
        found = scores.activation(model, graph, batches, normalize="none")
    torch.testing.assert_close(found["mix"].mean(), found["first"].mean())
    leaving = model.first(batches[0][0]["a"] + batches[0][0]["b"]).detach()
    torch.testing.assert_close(found["first"], leaving.abs().mean(0))  # shown by its producer alone


def test_half_precision_is_scored_in_single(net):
    model, graph = net
    half = copy.deepcopy(model).to(torch.bfloat16)
    for name, value in scores.magnitude(half, graph).items():
        torch.testing.assert_close(value, scores.magnitude(model, graph)[name], rtol=1e-2, atol=1e-2)


def test_unknown_options_name_the_nearest(net):
    with pytest.raises(UserError, match="Did you mean mean"):
        scores.magnitude(*net, combine="meann")
    with pytest.raises(UserError, match="max, mean, none"):
        scores.fpgm(*net, normalize="l2")
    with pytest.raises(UserError, match="axis stem: expected a weight with a role in"):
        scores.magnitude(*net, roles=("buffer ",))


@pytest.fixture(scope="module")
def task_and_run():
    data = load_data("digits")
    task = Classification(zoo.build("digits_resnet", 10, (1, 8, 8)), data)
    return task, SimpleNamespace(seed=0, progress=silent)


@pytest.mark.parametrize("name", ["activation", "bn_scale", "fpgm", "lamp", "magnitude", "random", "taylor"])
def test_every_score_is_a_method(task_and_run, name):
    task, run = task_and_run
    method = methods.find(name)
    options = ["batches=2"] if name in ("activation", "taylor") else []
    config = methods.configure(method.config_class, options, "option")
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    found = method.prune(task, Budget(macs=0.5), config, run)
    graph = trace(task.model, task.example)
    assert 0.495 * cost.macs(graph) <= cost.macs(graph, found.keep) <= 0.5 * cost.macs(graph)
    assert found.keep == method.prune(task, Budget(macs=0.5), config, run).keep and found.weights is None
    assert all(value.equal(before[key]) for key, value in task.model.state_dict().items())
    assert "arXiv:" in method.doc


WEIGHT_SCORES = ("magnitude", "lamp", "fpgm", "bn_scale")


@pytest.mark.parametrize("name", WEIGHT_SCORES)
def test_scoring_does_not_move_a_spectral_norm_in_training(name):
    torch.manual_seed(0)
    model = nn.Sequential(spectral_norm(nn.Linear(4, 6)), nn.BatchNorm1d(6), nn.Linear(6, 3)).train()
    graph = trace(model, torch.randn(5, 4))
    before = copy.deepcopy(model.state_dict())
    getattr(scores, name)(model, graph)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


class Complex(nn.Module):
    """Two layers with complex weights."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6, dtype=torch.cfloat), nn.Linear(6, 3, dtype=torch.cfloat)

    def forward(self, x):
        return self.b(torch.tanh(self.a(torch.complex(x, x.cos())))).abs()


def test_both_parts_of_complex_weights_are_scored():
    torch.manual_seed(0)
    model, x = Complex(), torch.randn(5, 4)
    graph = trace(model, x)
    expected = model.a.weight.detach().abs().square().sum(1).sqrt()
    found = scores.magnitude(model, graph, roles=("produces",), normalize="none")["a"]
    torch.testing.assert_close(found, expected)
    batches = [(x, torch.randint(3, (5,)))]
    gate = torch.ones(6, requires_grad=True)
    hidden = torch.tanh(model.a(torch.complex(x, x.cos()))) * gate
    loss = F.cross_entropy(model.b(hidden).abs(), batches[0][1])
    (slope,) = torch.autograd.grad(loss, gate)
    torch.testing.assert_close(scores.taylor(model, graph, F.cross_entropy, batches)["a"], slope.square())
    seen = scores.activation(model, graph, batches, normalize="none")["a"]
    torch.testing.assert_close(seen, hidden.detach().abs().mean(0))


def test_random_projections_score_the_change_of_the_answer_without_labels():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(1, 3)
    graph = trace(model, x)
    found = scores.taylor(model, graph, scores.random_projection(0), [(x, None)] * 4000)["0"]
    change = (model[2].weight * model[1](model[0](x))).square().sum(0)
    assert (change > 0).sum() >= 2
    assert torch.allclose(found, change.detach(), rtol=0.1, atol=0)
    again = scores.taylor(model, graph, scores.random_projection(0), [(x, None)] * 4000)["0"]
    other = scores.taylor(model, graph, scores.random_projection(1), [(x, None)] * 4000)["0"]
    assert torch.equal(found, again) and not torch.equal(found, other)


DATA_SCORES = {
    "activation": lambda model, graph, batches: scores.activation(model, graph, batches),
    "taylor": lambda model, graph, batches: scores.taylor(model, graph, mean_answer, batches),
    "influence": lambda model, graph, batches: scores.influence(model, graph, batches),
    "gradient_norms": lambda model, graph, batches: scores.gradient_norms(model, graph, mean_answer, batches),
}


def mean_answer(output, targets):
    return output.mean()


@pytest.mark.parametrize("score", DATA_SCORES)
def test_batches_that_are_no_pairs_are_refused_in_words(score):
    """Two images without targets were read as an image and its target."""
    model = zoo.build("resnet20").eval()
    images = torch.randn(2, 3, 32, 32)
    graph = trace(model, images)
    for wrong in ([images], [{"x": images, "y": images}], [(images, images, images)]):
        with pytest.raises(UserError, match=rf"{score}: expected a pair \(inputs, targets\) as batch 1"):
            DATA_SCORES[score](model, graph, wrong)
    for wrong in (images, {"x": images}, 3):
        with pytest.raises(UserError, match=f"{score}: expected an iterable of"):
            DATA_SCORES[score](model, graph, wrong)
    with pytest.raises(UserError, match=f"{score}: the model cannot be called with the batch dict"):
        DATA_SCORES[score](model, graph, [({"pixels": images}, None)])


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda output, targets: output, "a tensor of one number, but returned tensor"),
        (lambda output, targets: output.mean().item(), "a tensor of one number, but returned float"),
        (lambda output, targets: output.detach().mean(), "does not depend on the model's weights"),
    ],
)
def test_a_loss_that_gives_no_gradient_is_refused_in_words(loss, said):
    model = zoo.build("resnet20").eval()
    images = torch.randn(2, 3, 32, 32)
    graph = trace(model, images)
    for score in (scores.taylor, scores.gradient_norms):
        with pytest.raises(UserError, match=said):
            score(model, graph, loss, [(images, None)])
