"""Bad and unusual input to trace, shrink and crop: what is refused, with which words, and what is kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus import surgery
from prunus.errors import FileError, PruningError, PrunusError, TraceError, UserError
from prunus.graph import axes
from tests.lib import nets

X = torch.linspace(-1, 1, 70).view(2, 5, 7)


def perceptron():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(7, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)
    )
    return model.eval()


class Body(nn.Module):
    """Two layers, with a function between them."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b = nn.Linear(7, 6), nn.Linear(6, 3)
        self.between = between

    def forward(self, x):
        return self.b(self.between(self.a(x)))


# ----------------------------------------------------------------------------------------------- tracing
def half_or_not(x):
    if x.sum() > 0:  # this line is named
        x = x / 2
    return x


READS = {
    "if": half_or_not,
    "item": lambda x: x * x.max().item(),
    "int": lambda x: x[: 1 + int(x.abs().mean())],
    "nonzero": lambda x: x[:, x.mean((0, 2)).argsort().ge(0).nonzero().flatten()],
}


@pytest.mark.parametrize("name", READS)
def test_control_flow_on_data_is_named_with_its_line(name):
    with pytest.warns(UserWarning, match=r"real tensors.*test_surgery_input\.py:\d+"):
        prunus.trace(Body(READS[name]), X)


def test_the_line_and_the_operator_are_the_right_ones():
    with pytest.warns(UserWarning, match=r"(_local_scalar_dense|is_nonzero|item).*if x\.sum\(\) > 0:"):
        graph = prunus.trace(Body(half_or_not), X)
    assert list(graph.axes) == ["a"]


@pytest.mark.parametrize(
    "model, example",
    [
        (nn.Linear(7, 3), X),
        (nn.ReLU(), X),
        (nn.Sequential(nn.Linear(7, 3), nn.Softmax(-1)), X),
        (Body(lambda x: x.flip(-1)), X),
        (Body(lambda x: x.sort(-1).values), X),
        (nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3)), X),
    ],
)
def test_nothing_to_prune(model, example):
    with pytest.raises(TraceError):
        prunus.trace(model, example)


@pytest.mark.parametrize("example", [None, "text", X[..., :4], (X, X), (), {"y": X}, X.numpy()])
def test_an_example_the_model_cannot_take(example):
    with pytest.raises(TraceError, match="example"):
        prunus.trace(perceptron(), example)


@pytest.mark.parametrize("model", [nn.Linear, F.relu, None, {}])
def test_what_is_no_module(model):
    with pytest.raises(UserError, match=r"nn\.Module"):
        prunus.trace(model, X)


def test_parameters_that_are_never_used_stay_and_are_named():
    model = Body(torch.relu).eval()
    model.spare = nn.Linear(6, 6)
    with pytest.warns(UserWarning, match=r"never used.*spare\.weight"):
        graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, {"a": [0, 1]})
    assert torch.equal(small.spare.weight, model.spare.weight)


def test_parameters_of_one_unit_are_not_called_unused():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1), nn.BatchNorm2d(1), nn.PReLU(1), nn.Conv2d(1, 2, 1)
    )
    prunus.trace(model.eval(), torch.randn(2, 3, 4, 4))  # warnings are errors here


def test_buffers_no_operator_meets_stay():
    model = Body(torch.relu).eval()
    model.register_buffer("spare", torch.arange(5.0))
    graph = prunus.trace(model, X)
    assert {member.tensor for member in graph.members("a")} == {"a.weight", "a.bias", "b.weight"}
    assert graph.explain("a")
    assert torch.equal(prunus.shrink(model, graph, {"a": [3]}).spare, model.spare)


# ------------------------------------------------------------------------------- what a model brings along
def test_training_mode_is_kept_module_by_module():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Conv2d(6, 2, 1)).train()
    model[1].eval()
    x = torch.randn(2, 3, 4, 4)
    graph = prunus.trace(model, x)
    small = prunus.shrink(model, graph, {"0": [1, 4]})
    assert [module.training for module in small.modules()] == [True, True, False, True, True]
    assert [module.training for module in model.modules()] == [True, True, False, True, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_kept_and_proved(dtype):
    model = perceptron().to(dtype)
    graph = prunus.trace(model, X.to(dtype))
    small = prunus.shrink(model, graph, {"0": [1, 2, 5], "3": [0, 3]})
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert small(X.to(dtype)).dtype == dtype


def test_a_precision_written_into_the_forward():
    model = Body(torch.relu).bfloat16().eval()
    wrapped = nn.Sequential(Cast(torch.bfloat16), model)
    graph = prunus.trace(wrapped, X)
    assert prunus.shrink(wrapped, graph, {"1.a": [1, 2]})(X).dtype == torch.bfloat16


class Cast(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


def test_memory_format_frozen_parameters_and_ties_are_kept():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 2, 1))
    model = model.to(memory_format=torch.channels_last).eval()
    model[2].weight.requires_grad_(False)
    model.append(nn.Conv2d(2, 2, 1))
    model[4].bias = model[3].bias
    graph = prunus.trace(model, torch.randn(2, 3, 8, 8))
    small = prunus.shrink(model, graph, {"0": [0, 2, 3]})
    assert small[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not small[0].weight.is_contiguous()
    assert [p.requires_grad for p in small[2].parameters()] == [False, True]
    assert small[4].bias is small[3].bias


def test_hooks_of_the_user_survive_and_do_no_harm():
    model, seen = perceptron(), []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.device.type))
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, {"0": [1, 2]})
    seen.clear()
    small(X)
    assert seen == ["cpu"]


def test_a_model_that_keeps_its_last_activation():
    model = Body(torch.relu)
    model.between = lambda x: setattr(model, "last", x) or x.relu()
    model(X)
    assert model.last.grad_fn is not None
    graph = prunus.trace(model, X)
    assert prunus.shrink(model, graph, {"a": [1, 2]}).a.weight.shape == (2, 7)


@pytest.mark.parametrize("change", [lambda x: x.sub_(0.5), lambda x: F.relu(x, inplace=True)])
def test_a_forward_that_writes_to_its_input(change):
    model = nn.Sequential(Change(change), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    example = X.clone()
    graph = prunus.trace(model, example)
    prunus.shrink(model, graph, {"1": [0, 2]})
    assert torch.equal(example, X)


def test_token_ids_that_the_forward_writes_to():
    model = nn.Sequential(
        Change(lambda ids: ids.clamp_(0).add_(1)), nn.Embedding(9, 6), nn.Linear(6, 3)
    ).eval()
    example = torch.tensor([[1, -1, 7]])
    graph = prunus.trace(model, example)
    prunus.shrink(model, graph, {"1": [0, 2]})
    assert torch.equal(example, torch.tensor([[1, -1, 7]]))


class Change(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x)


def test_what_is_made_where_nothing_is_learnt_can_learn(tmp_path):
    model = perceptron()
    with torch.inference_mode():
        graph = prunus.trace(model, X)
        small, masked = (make(model, graph, {"0": [1, 2]}) for make in (prunus.shrink, prunus.mask))
        prunus.save(tmp_path, small, {"0": [1, 2]}, graph)
        loaded = prunus.load(tmp_path, model)
    for made in (small, masked, loaded):
        made(X).sum().backward()
        assert all(parameter.grad is not None for parameter in made.parameters())


class Words(nn.Module):
    """Keyword arguments, one of them optional; a dict comes out."""

    def __init__(self):
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids, mask=None, *, scale=None):
        x = self.a(self.embed(ids)).relu()
        x = x if mask is None else x * mask.unsqueeze(-1)
        return {"logits": self.b(x if scale is None else x * scale), "tokens": ids.shape[1], "none": None}


IDS = torch.arange(10).view(2, 5) % 9


@pytest.mark.parametrize(
    "example",
    [
        IDS,
        (IDS,),
        (IDS, torch.ones(2, 5)),
        {"ids": IDS},
        {"ids": IDS, "mask": torch.ones(2, 5, dtype=torch.bool)},
        {"ids": IDS, "scale": torch.rand(2, 5, 1)},
    ],
    ids=["tensor", "one", "two", "dict", "mask", "keyword"],
)
def test_examples_of_every_form(example):
    model = Words().eval()
    graph = prunus.trace(model, example)
    assert set(graph.axes) == {"embed", "a"}
    prunus.shrink(model, graph, {"embed": [1, 2, 3], "a": [0, 7]})


# ------------------------------------------------------------------------------------------------- keeps
@pytest.mark.parametrize(
    "keep",
    [[], [1, 1], [6], [-1], [0, 6], [1.5], "12", None, 3, ["a"], [float("nan")], [True, False], [[0, 1]]],
    ids=str,
)
def test_a_keep_that_does_not_fit(keep):
    model = perceptron()
    graph = prunus.trace(model, X)
    for use in (prunus.shrink, prunus.mask, lambda *args: prunus.crop(*args, X)):
        with pytest.raises(UserError, match="0"):
            use(model, graph, {"0": keep})
    with pytest.raises(UserError):
        prunus.macs(graph, {"0": keep})


def test_keeps_of_other_forms():
    model = perceptron()
    graph = prunus.trace(model, X)
    expected = prunus.shrink(model, graph, {"0": [1, 4]})(X)
    for keep in (torch.tensor([4, 1]), (4, 1), {1, 4}, range(1, 5, 3)):
        assert torch.equal(prunus.shrink(model, graph, {"0": keep})(X), expected)
    assert torch.equal(prunus.shrink(model, graph, {})(X), model(X))


def test_an_axis_nobody_knows():
    model = perceptron()
    graph = prunus.trace(model, X)
    with pytest.raises(UserError, match="unknown axis 'O'"):
        prunus.shrink(model, graph, {"O": [1]})
    with pytest.raises(UserError, match="verify"):
        prunus.shrink(model, graph, {}, verify=False)


def test_another_model_than_the_traced():
    graph = prunus.trace(perceptron(), X)
    for other in (nn.Linear(7, 6), Body(torch.relu), nn.ReLU()):
        with pytest.raises(FileError, match="traced"):
            prunus.shrink(other, graph, {"0": [1]})
    with pytest.raises(PrunusError):
        surgery.verify(perceptron(), graph, {"0": [1]}, nn.Linear(3, 4))


def test_weights_to_cut_from_must_fit():
    model = perceptron()
    graph = prunus.trace(model, X)
    weight = torch.zeros(6, 7, requires_grad=True)
    prunus.crop(model, graph, {"0": [0, 1]}, X, weights={"0.weight": weight}).sum().backward()
    assert weight.grad[:2].any()
    assert not weight.grad[2:].any()
    for wrong in ({"0.wieght": weight}, {"0.weight": weight[:3]}):
        with pytest.raises(UserError, match=r"0\.w"):
            prunus.crop(model, graph, {"0": [0, 1]}, X, weights=wrong)


def test_a_small_model_that_cannot_run_is_a_pruning_error():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), Squeeze(), nn.Linear(6, 4)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = prunus.trace(model, torch.randn(2, 3, 4, 4))
    with pytest.raises(PruningError):
        prunus.shrink(model, graph, {"0": [3]})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Squeeze(nn.Module):
    """Drops the units too, once there is one."""

    def forward(self, x):
        return x.squeeze()


@pytest.mark.parametrize("name", nets.NETS)
def test_a_graph_can_be_used_again(name):
    model, example = nets.build(name)
    graph = prunus.trace(model, example)
    keep = nets.random_keep(graph)
    shapes = [[p.shape for p in prunus.shrink(model, graph, keep).parameters()] for _ in range(2)]
    assert shapes[0] == shapes[1]
    assert all(axes.root(axis) is axis for axis in graph.axes.values())
