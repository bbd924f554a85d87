"""SNIP, GraSP and SynFlow against their definitions on small networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus import zoo
from prunus.errors import UserError
from prunus.sparse import gradients as gradient_scores
from prunus.sparse import scores as weight_scores


@pytest.fixture
def small():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    batches = [(torch.randn(8, 5).double(), torch.randint(3, (8,))) for _ in range(2)]
    return net, prunus.trace(net, torch.zeros(1, 5).double()), batches


def mean_loss(net, batches, scale=1.0):
    return sum(F.cross_entropy(net(x) / scale, y) for x, y in batches) / len(batches)


def test_snip_is_weight_times_gradient(small):
    net, graph, batches = small
    scores = gradient_scores.snip(net, graph, F.cross_entropy, batches)
    mean_loss(net, batches).backward()
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1:
            assert torch.allclose(scores[name], (parameter * parameter.grad).square().float(), rtol=1e-5)


def test_grasp_is_the_change_of_the_gradients_size(small):
    net, graph, batches = small
    scores = gradient_scores.grasp(net, graph, F.cross_entropy, batches)

    def size():
        loss = mean_loss(net, batches, gradient_scores.TEMPERATURE)
        weights = [p for p in net.parameters() if p.dim() > 1]
        return sum(g.square().sum() for g in torch.autograd.grad(loss, weights)) / 2

    places = [("0.weight", (1, 2)), ("2.weight", (3, 4)), ("4.weight", (0, 1)), ("0.weight", (5, 0))]
    found, expected = [], []
    for name, place in places:
        weight, step = net.get_parameter(name).data, 1e-5
        held = weight[place].item()
        weight[place] = held + step
        above = size()
        weight[place] = held - step
        below = size()
        weight[place] = held
        expected.append(held * (above - below) / (2 * step))
        found.append(scores[name][place].double())
    found, expected = torch.stack(found), torch.stack(expected)
    assert torch.allclose(found - found[0], expected - expected[0], rtol=1e-3, atol=1e-12)
    assert min(score.min() for score in scores.values()) == 0


def test_synflow_conserves_the_flow_from_layer_to_layer():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 4, bias=False),
        nn.ReLU(),
        nn.Linear(4, 3, bias=False),
    )
    graph = prunus.trace(net, torch.zeros(1, 5))
    scores = gradient_scores.synflow(net, graph, kept=1.0, rounds=1)
    flows = [float(score.sum()) for score in scores.values()]
    assert max(flows) <= min(flows) * (1 + 1e-5)
    kept = gradient_scores.synflow(net, graph, kept=0.2, rounds=20)
    total = sum(score.numel() for score in kept.values())
    assert sum(int((score > 0).sum()) for score in kept.values()) == round(0.2 * total)
    assert all((score > 0).any() for score in kept.values())  # the paper's point: no layer collapses


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_they_leave_the_model_alone_and_score_what_may_be_pruned(name):
    torch.manual_seed(0)
    net = zoo.build("digits_resnet")
    graph = prunus.trace(net, torch.zeros(1, 1, 8, 8))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    batches = [(torch.randn(4, 1, 8, 8), torch.randint(10, (4,)))]
    scores = getattr(gradient_scores, name)(net, graph, F.cross_entropy, batches)
    assert list(scores) == weight_scores.maskable(graph)
    assert all(score.shape == graph.shapes[key] and (score >= 0).all() for key, score in scores.items())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert net.training and all(parameter.grad is None for parameter in net.parameters())


def test_grasp_goes_through_attention():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(8, n) for n in (8, 8, 8, 3))

        def forward(self, x):
            q, k, v = (f(x).unsqueeze(1) for f in (self.q, self.k, self.v))
            return self.out(F.scaled_dot_product_attention(q, k, v).squeeze(1).mean(1))

    torch.manual_seed(0)
    net = Attention()
    graph = prunus.trace(net, torch.zeros(1, 4, 8))
    batches = [(torch.randn(2, 4, 8), torch.randint(3, (2,)))]
    assert gradient_scores.grasp(net, graph, F.cross_entropy, batches)["k.weight"].any()


def test_operators_without_second_derivatives_are_named():
    net = nn.Sequential(nn.Linear(4, 6), nn.Hardsigmoid(), nn.Linear(6, 3))
    graph = prunus.trace(net, torch.zeros(1, 4))
    batches = [(torch.randn(2, 4), torch.randint(3, (2,)))]
    with pytest.raises(UserError, match=r"grasp needs second derivatives.*hardsigmoid"):
        gradient_scores.grasp(net, graph, F.cross_entropy, batches)


def test_bad_input_is_named(small):
    net, graph, batches = small
    with pytest.raises(UserError, match="no batch"):
        gradient_scores.snip(net, graph, F.cross_entropy, [])
    with pytest.raises(UserError, match="loss of batch 1 is nan"):
        gradient_scores.snip(net, graph, lambda *_: torch.tensor(float("nan")), batches)


def test_synflow_leaves_the_model_alone():
    torch.manual_seed(0)
    net = zoo.build("digits_resnet")
    state = {key: value.clone() for key, value in net.state_dict().items()}
    scores = gradient_scores.synflow(net, prunus.trace(net, torch.zeros(1, 1, 8, 8)), kept=0.1, rounds=5)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(score.isfinite().all() for score in scores.values())


def test_synflow_removes_nothing_of_layers_that_stay():
    torch.manual_seed(0)
    net = zoo.build("digits_resnet")
    graph = prunus.trace(net, torch.zeros(1, 1, 8, 8))
    names = [name for name in weight_scores.maskable(graph) if not name.startswith("layer3")]
    scores = gradient_scores.synflow(net, graph, kept=0.1, rounds=5, names=names)
    total = sum(score.numel() for score in scores.values())
    assert list(scores) == names
    assert sum(int((score > 0).sum()) for score in scores.values()) == round(0.1 * total)
