"""The modules that can be skipped, found from operators and calls. Source: ours."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus import zoo
from prunus.errors import UserError
from tests.lib.blocks import gpt2, llama, names
from tests.lib.models import imported_beside_torchvision, torchvision_models

X = torch.randn(1, 8, 6, 6)
IMAGES = torch.randn(1, 3, 64, 64)


def found(model: nn.Module, x=X) -> dict[str, bool]:
    """The modules that can be skipped, each with whether it is a branch."""
    graph = prunus.trace(model.eval(), x)
    return {block.module: block.branch for block in graph.blocks.values()}


# ---------------------------------------------------------------------------------------- real models
def test_basic_blocks_whose_shapes_agree():
    graph = prunus.trace(zoo.build("resnet20").eval(), torch.randn(1, 3, 32, 32))
    assert names(graph) == "layer1.0 layer1.1 layer1.2 layer2.1 layer2.2 layer3.1 layer3.2".split()
    assert [block.module for block in graph.blocks.values() if block.protected] == ["layer1.0", "layer3.2"]
    assert not any(block.branch or block.ended for block in graph.blocks.values())


def test_bottleneck_blocks():
    model = torchvision_models().resnet50(weights=None)
    wanted = {f"layer{stage}.{i}" for stage, n in ((1, 3), (2, 4), (3, 6), (4, 3)) for i in range(1, n)}
    assert found(model, IMAGES) == dict.fromkeys(wanted, False)


def test_convnext():
    model = torchvision_models().convnext_tiny(weights=None)
    wanted = {f"features.{stage}.{i}" for stage, n in ((1, 3), (3, 3), (5, 9), (7, 3)) for i in range(n)}
    assert found(model, IMAGES) == dict.fromkeys(wanted, False)


def test_vision_transformers_with_the_attention_in_a_block():
    blocks = found(zoo.build("vit_tiny").eval(), torch.randn(1, 3, 32, 32))
    assert blocks == {f"blocks.{i}{part}": bool(part) for i in range(12) for part in ("", ".attention")}


def test_vision_transformers_of_timm():
    timm = imported_beside_torchvision("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3)
    wanted = {f"blocks.{i}{part}": bool(part) for i in range(3) for part in ("", ".attn", ".mlp")}
    assert found(model, IMAGES) == wanted


@pytest.mark.parametrize(
    ("make", "stem", "parts"),
    [(llama, "model.layers", ("self_attn", "mlp")), (gpt2, "transformer.h", ("attn", "mlp"))],
)
def test_decoders_with_attention_and_mlp_in_a_layer(make, stem, parts):
    model, example = make(layers=3)
    blocks = found(model, example)
    assert blocks == {f"{stem}.{i}": False for i in range(3)} | {
        f"{stem}.{i}.{part}": True for i in range(3) for part in parts
    }


def test_encoders_with_norms_after_the_sums():
    transformers = imported_beside_torchvision("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=30, **sizes)).eval()
    graph = prunus.trace(model, {"input_ids": torch.arange(6)[None]})
    assert names(graph) == [f"encoder.layer.{i}{part}" for i in range(3) for part in ("", ".attention")]
    assert all(block.ended for block in graph.blocks.values())


def test_sublayers_where_a_layer_returns_what_others_need():
    transformers = imported_beside_torchvision("transformers")
    sizes = {"d_model": 16, "d_ff": 24, "num_layers": 2, "num_heads": 2, "d_kv": 8, "vocab_size": 30}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).eval()
    tokens = torch.arange(6)[None]
    graph = prunus.trace(model, {"input_ids": tokens, "decoder_input_ids": tokens})
    assert names(graph) == [
        "encoder.block.0.layer.1",
        "encoder.block.1.layer.0",
        "encoder.block.1.layer.1",
        "decoder.block.0.layer.2",
        "decoder.block.1.layer.0",
        "decoder.block.1.layer.1",
        "decoder.block.1.layer.2",
    ]


def test_layers_alone_where_norms_follow_the_branches():
    transformers = imported_beside_torchvision("transformers")
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "vocab_size": 40,
        "head_dim": 4,
    }
    config = transformers.Gemma2Config(num_attention_heads=4, num_key_value_heads=2, **sizes)
    model = transformers.Gemma2ForCausalLM(config).eval()
    graph = prunus.trace(model, {"input_ids": torch.arange(3, 9)[None]})
    assert names(graph) == [f"model.layers.{i}" for i in range(3)]


# ---------------------------------------------------------------------------------------------- traps
class Part(nn.Module):
    """Two convolutions and a rule of how to join them to the input."""

    def __init__(self, join):
        super().__init__()
        self.join, self.a, self.b = join, nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)

    def forward(self, x):
        return self.join(x, self.b(torch.relu(self.a(x))))


class Around(nn.Module):
    """A stem, parts and a head."""

    def __init__(self, *parts: nn.Module, stem=torch.tanh):
        super().__init__()
        self.start, self.stem = nn.Conv2d(8, 8, 1), stem
        self.parts, self.end = nn.ModuleList(parts), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(self.start(x))
        for part in self.parts:
            x = part(x)
        return self.end(torch.tanh(x))


def joined(join, stem=torch.tanh) -> dict[str, bool]:
    return found(Around(Part(join), Part(lambda x, f: x + f), stem=stem))


@pytest.mark.parametrize(
    "join",
    [
        lambda x, f: x + f,
        lambda x, f: f + x,
        lambda x, f: x - f,
        lambda x, f: torch.add(x, f, alpha=0.3),
        lambda x, f: x + 0.3 * f,
        lambda x, f: (x.flatten(2) + f.flatten(2)).view(x.shape),
        lambda x, f: x + f + f.mean((2, 3), keepdim=True),
        lambda x, f: x.add(f).clone(),
        lambda x, f: F.layer_norm(x + f, x.shape[1:]),
    ],
)
def test_a_path_through_additions_alone(join):
    assert joined(join) == {"parts.0": False, "parts.1": False}


@pytest.mark.parametrize(
    "join",
    [
        lambda x, f: f - x,
        lambda x, f: torch.sub(f, x),
        lambda x, f: torch.rsub(x, f),
        lambda x, f: torch.add(f, x, alpha=0.3),
        lambda x, f: 0.5 * x + f,
        lambda x, f: x * f,
        lambda x, f: x.flip(1) + f,
        lambda x, f: x.transpose(2, 3) + f,
        lambda x, f: torch.relu(x + f),
        lambda x, f: torch.tanh(x + f),
        lambda x, f: F.layer_norm(x, x.shape[1:]) + f,
        lambda x, f: x[:, :1] + f,
        lambda x, f: f,
    ],
)
def test_no_path_where_the_input_is_changed_on_the_way(join):
    assert joined(join) == {"parts.1": False}


def test_an_activation_is_passed_where_the_input_went_through_it():
    def rectified(x, f):
        return torch.relu(x + f)

    def clamped(x, f):
        return (x + f).clamp(0, 6)

    assert joined(rectified, stem=torch.relu) == {"parts.0": False, "parts.1": False}
    assert joined(rectified, stem=lambda x: F.max_pool2d(torch.relu(x), 3, 1, 1)) == dict.fromkeys(
        ("parts.0", "parts.1"), False
    )
    assert joined(clamped, stem=lambda x: x.clamp(0, 6)) == {"parts.0": False, "parts.1": False}
    assert joined(clamped, stem=lambda x: x.clamp(0, 4)) == {"parts.1": False}


def reason(model: nn.Module, name: str) -> str:
    graph = prunus.trace(model.eval(), X)
    with pytest.raises(UserError) as error:
        graph.check_keep({f"{name}:depth": []})
    return str(error.value)


def test_a_module_that_is_called_twice_cannot_be_skipped():
    part = Part(lambda x, f: x + f)
    model = Around(part, Part(lambda x, f: x + f), part)
    assert "parts.0 cannot be skipped: it is called 2 times" in reason(model, "parts.0")


def test_a_module_that_shares_a_parameter_cannot_be_skipped():
    model = Around(*(Part(lambda x, f: x + f) for _ in range(3)))
    model.parts[1].a.weight = model.parts[2].a.weight
    assert "parts.1.a.weight and parts.2.a.weight are the same" in reason(model, "parts.1")
    assert found(model) == {"parts.0": False}


def test_a_module_of_which_something_else_is_used_cannot_be_skipped():
    class Leaking(Around):
        def forward(self, x):
            x = self.stem(self.start(x))
            hidden = torch.relu(self.parts[0].a(x))
            x = self.parts[1](self.parts[0].join(x, self.parts[0].b(hidden)))
            return self.end(torch.tanh(x)), hidden

    class Reading(Around):
        def forward(self, x):
            return super().forward(x * self.parts[0].a.bias.mean())

    plain = [Part(lambda x, f: x + f), Part(lambda x, f: x + f)]
    assert "parts.0" not in found(Leaking(*plain))
    assert "a parameter of it is used outside of it" in reason(Reading(*plain), "parts.0")


def test_a_module_that_leaves_work_for_nothing_is_none_but_the_one_around_it_is():
    """As in BERT, whose layers end with a module that is given the hidden features and the input."""

    class Out(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Conv2d(12, 8, 1)

        def forward(self, hidden, x):
            return x + self.b(hidden)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = nn.Conv2d(8, 12, 1), Out()

        def forward(self, x):
            return self.out(torch.relu(self.a(x)), x)

    model = Around(Layer(), Layer())
    assert found(model) == {"parts.0": False, "parts.1": False}
    assert "convolution in parts.0.a would be computed for nothing" in reason(model, "parts.0.out")


def test_a_chain_is_its_links():
    class Chain(nn.Sequential):
        pass

    model = Around(Chain(*(Part(lambda x, f: x + f) for _ in range(3))))
    assert found(model) == {f"parts.0.{i}": False for i in range(3)}
    assert "parts.0 cannot be skipped: it is no more than parts.0.0, parts.0.1" in reason(model, "parts.0")


def test_a_shortcut_with_weights_is_no_branch():
    class Wider(nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.short = Part(lambda x, f: f), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return torch.relu(self.part(x) + self.short(x))

    assert found(Around(Wider(), Part(lambda x, f: x + f))) == {"parts.1": False}


def test_parallel_branches_are_found_each():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Part(lambda x, f: f), Part(lambda x, f: f)
            self.scale = nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x):
            normal = F.layer_norm(x, x.shape[1:])
            return x + (self.scale * self.one(normal) + self.two(normal))

    assert found(Around(Parallel())) == {"parts.0": False, "parts.0.one": True, "parts.0.two": True}


def test_a_block_may_hold_others_in_its_branch():
    """A group of blocks with a convolution after them, around which the input goes, as in RCAN."""

    class Group(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(Part(lambda x, f: x + f), Part(lambda x, f: x + f))
            self.after = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return x + self.after(self.inner(x))

    graph = prunus.trace(Around(Group(), Group(), Group()).eval(), X)
    assert names(graph) == [f"parts.{i}{end}" for i in range(3) for end in ("", ".inner.0", ".inner.1")]
    protected = [block.module for block in graph.blocks.values() if block.protected]
    assert protected == [f"parts.{i}{end}" for i in (0, 2) for end in ("", ".inner.0", ".inner.1")]


def test_default_results_know_nothing_of_blocks():
    graph = prunus.trace(zoo.build("resnet20").eval(), torch.randn(1, 3, 32, 32))
    before = prunus.select(graph, prunus.scores.random(graph, 0), prunus.Budget(macs=0.5))
    assert not any(name.endswith(":depth") for name in (*graph.axes, *graph.widths(), *before))
    assert {axis.kind for axis in graph.axes.values()} == {"width"}
    deep = graph.deep
    assert [name for name, axis in deep.axes.items() if axis.kind == "depth"] == list(graph.blocks)
    assert deep.deep is deep and graph.deep is deep


def test_explain_says_what_a_block_returns():
    graph = prunus.trace(zoo.build("vit_tiny").eval(), torch.randn(1, 3, 32, 32))
    assert graph.explain("blocks.3:depth") == (
        "axis blocks.3:depth: the block blocks.3; skipped, it returns its argument 0"
    )
    assert "returns zeros like its argument 0" in graph.explain("blocks.3.attention:depth")


# ------------------------------------------------------------------------------------------ bad input
def test_keeps_that_no_model_can_have():
    graph = prunus.trace(zoo.build("resnet20").eval(), torch.randn(1, 3, 32, 32))
    with pytest.raises(UserError, match="skips all blocks of the model"):
        graph.check_keep({name: [] for name in graph.blocks})
    with pytest.raises(UserError, match=r"layer1.1:depth'\] must hold 0 to 1 .* got \[1\]"):
        graph.check_keep({"layer1.1:depth": [1]})
    with pytest.raises(UserError, match=r"must hold 1 to 16 .* got \[\]"):
        graph.check_keep({"conv1": []})
    with pytest.raises(UserError, match=r"unknown block 'model.layers.1:depth'\. .*Known: layer1.0:depth"):
        graph.check_keep({"model.layers.1:depth": []})
    with pytest.raises(UserError, match=r"layer2.0 cannot be skipped: no input of it has the layout"):
        graph.check_keep({"layer2.0:depth": []})
    assert graph.check_keep({"layer1.1:depth": [0]}) == {"layer1.1:depth": [0]}
