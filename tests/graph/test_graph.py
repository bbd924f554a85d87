"""What tracing finds: axes, coverage, attributes that follow, explanations, refusals."""

import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus import zoo
from prunus.errors import TraceError, UserError
from prunus.graph import Graph
from tests.lib import nets
from tests.lib.models import torchvision_models


@pytest.mark.parametrize("name", nets.NETS)
def test_small_networks_shrink_almost_everywhere(name):
    model, example = nets.build(name)
    assert nets.share_on_axes(prunus.trace(model, example)) >= 0.97


ZOO = [
    "resnet20",
    "resnet20_projection",
    "resnet56",
    "resnet56_projection",
    "vgg16_bn",
    "densenet40",
    "mobilenet_v2",
]


@pytest.mark.parametrize("name", ZOO)
def test_zoo_coverage(name):
    model = zoo.build(name, 10, (3, 32, 32)).eval()
    graph = prunus.trace(model, torch.randn(1, 3, 32, 32))
    assert nets.share_on_axes(graph) >= 0.97
    keep = nets.random_keep(graph)
    assert prunus.params(graph, keep) == sum(
        p.numel() for p in prunus.shrink(model, graph, keep).parameters()
    )


TORCHVISION = [
    "resnet50",
    "mobilenet_v3_large",
    "densenet121",
    "shufflenet_v2_x1_0",
    "resnext50_32x4d",
    "googlenet",
    "convnext_tiny",
    "vit_b_16",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_traces_and_shrinks_proved(name):
    models = torchvision_models()
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = models.get_model(name, weights=None, **options).eval()
    graph = prunus.trace(model, torch.randn(1, 3, 224, 224))
    assert nets.share_on_axes(graph) >= 0.97
    prunus.shrink(model, graph, nets.random_keep(graph))


def test_axes_are_named_after_what_produces_them():
    model, example = nets.build("residual")
    graph = prunus.trace(model, example)
    assert {name: axis.size for name, axis in graph.axes.items()} == {"stem": 8, "a": 6, "c": 12}
    assert {m.tensor for m in graph.members("stem")} >= {
        "stem.weight",
        "b.weight",
        "norm_b.running_mean",
        "a.weight",
    }
    assert {m.role for m in graph.members("a")} == {"produces", "consumes", "scales", "shifts", "buffer"}


def test_heads_and_their_attributes_are_found_without_being_asked_for():
    model, example = nets.build("attention")
    graph = prunus.trace(model, example)
    assert (graph.axes["qkv#0"].size, graph.axes["qkv#1"].size) == (3, 8)
    small = prunus.shrink(model, graph, {"qkv#0": [2], "qkv#1": [0, 1, 5]})
    assert (small.num_heads, small.head_dim) == (1, 3)
    assert small.norm.normalized_shape == (24,)


def test_a_number_computed_from_a_size_fixes_it_and_says_so():
    class Net(nets.Attention):
        def forward(self, x):
            self.scale = self.head_dim**-0.5
            return super().forward(x)

    graph = prunus.trace(Net().eval(), torch.randn(2, 6, 7))
    assert "qkv" in graph.axes and graph.axes["qkv"].size == 3  # the heads stay free
    assert "computes with a number made from this size" in graph.explain("qkv")


def test_an_unknown_operator_fixes_its_axes_by_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.c(torch.linalg.qr(self.b(self.a(x)))[0])

    graph = prunus.trace(Net(), torch.randn(5, 4))
    assert list(graph.axes) == ["a"]
    assert "linalg_qr in the model itself" in graph.explain("b")


def test_explain_names_couplings_operators_and_reasons():
    model, example = nets.build("residual")
    graph = prunus.trace(model, example)
    text = graph.explain("b")
    assert "norm_b.weight" in text and "add in the model itself" in text and "stem" in text
    assert "an output of the model" in graph.explain("head")
    with pytest.raises(UserError, match="Did you mean"):
        graph.explain("norm_aa")


class Reads(nn.Module):
    """Takes another way if what `read` reads off the module, its input or its indices says so."""

    def __init__(self, read):
        super().__init__()
        self.a, self.b, self.read = nn.Linear(4, 6), nn.Linear(6, 2), read

    def forward(self, x, indices):
        return self.b(self.a(x) if self.read(self, x, indices) else -self.a(x))


@pytest.mark.parametrize(
    "read",
    [
        lambda self, x, indices: indices.max().item() == 3,
        lambda self, x, indices: torch.equal(indices, indices.clone()),
        lambda self, x, indices: len((indices > 1).nonzero()) == 2 and bool((indices > 1).any()),
        lambda self, x, indices: torch.arange(len(x), device=x.device).sum().item() == 6,
        lambda self, x, indices: len(x[indices > 1]) == 2,
    ],
)
def test_what_depends_on_no_weight_and_no_float_is_computed(read):
    graph = prunus.trace(Reads(read), (torch.randn(4, 4), torch.tensor([0, 1, 2, 3])))
    assert list(graph.axes) == ["a"]


def test_a_value_that_is_read_is_said_to_depend_on_what_it_does():
    example = torch.randn(4, 4), torch.tensor([0, 1, 2, 3])
    with pytest.warns(UserWarning, match="reads a value that depends on an input"):
        prunus.trace(Reads(lambda self, x, indices: x.sum() > 0), example)
    with pytest.warns(UserWarning, match="reads a value that depends on the weights"):
        prunus.trace(Reads(lambda self, x, indices: self.a.weight.sum() > 0), example)


def test_data_dependent_control_flow_is_named_with_its_line():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), nn.Linear(4, 2)

        def forward(self, x):
            x = self.body(x)
            return self.head(x if x.sum() > 0 else -x)

    model = Net()
    with pytest.warns(UserWarning, match=r"test_graph.py:\d+.*x.sum\(\) > 0"):
        assert list(prunus.trace(model, torch.randn(2, 3)).axes) == ["body.0", "body.2"]
    part, example = prunus.part(model, "body", torch.randn(2, 3))
    assert list(prunus.trace(part, example).axes) == ["0"]


def test_nothing_to_shrink_is_an_error_that_says_why():
    with pytest.raises(TraceError, match="an output of the model"):
        prunus.trace(nn.Linear(3, 2), torch.randn(1, 3))


def test_parameters_nothing_uses_stay_and_are_reported():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(self.a(x))

    with pytest.warns(UserWarning, match="2 parameters are never used"):
        graph = prunus.trace(Net(), torch.randn(1, 3))
    assert list(graph.axes) == ["a"]


def test_tracing_leaves_the_model_as_it_was():
    model, example = nets.build("norms")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prunus.trace(model, example)
    assert model.training and classes == [type(module) for module in model.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model(example)


def test_frozen_parameters_and_inference_mode_make_no_difference():
    model, example = nets.build("concat")
    expected = {name: axis.size for name, axis in prunus.trace(model, example).axes.items()}
    with torch.inference_mode():
        graph = prunus.trace(model.requires_grad_(False), example)
    assert {name: axis.size for name, axis in graph.axes.items()} == expected


def test_equal_structures_have_equal_topology():
    model = zoo.build("resnet20", 10, (3, 32, 32))
    graph = prunus.trace(model, torch.randn(1, 3, 32, 32))
    inner = [name for name in graph.axes if name.endswith("conv1") and name != "conv1"]
    assert len({graph.topology(name) for name in inner}) == 1
    assert graph.topology("conv1") != graph.topology(inner[0])


def test_what_lies_between_two_buffers_stays_whole():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("first", torch.randn(10, 8))
            self.register_buffer("second", torch.randn(12, 10))
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            return self.head(F.linear(F.linear(x, self.first).relu(), self.second).relu())

    model, example = Projected(), torch.randn(2, 8)
    graph = prunus.trace(model, example)
    assert {name: axis.size for name, axis in graph.axes.items()} == {"head": 12}
    assert {member.tensor for member in graph.members("head")} == {"head.weight", "second"}
    assert "only buffers lie along it" in graph.explain("second")
    small = prunus.shrink(model, graph, {"head": [0, 3, 4]})
    assert small.second.shape == (3, 10) and small.first.shape == (10, 8)


def test_half_of_an_axis_is_a_multiple_that_operators_take():
    leasts = {"few": (6, "topk"), "many": (2, "topk")}
    axes = {name: SimpleNamespace(size=size) for name, size in {"few": 10, "many": 23, "free": 7}.items()}
    graph = SimpleNamespace(multiples={"few": 4, "many": 4, "free": 1}, leasts=leasts, axes=axes)
    assert Graph.halved(graph) == {"few": 8, "many": 8, "free": 3}
