"""The kinds of axes, found from operators: in networks written by hand, and in those of three libraries."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import prunus
from prunus.graph import KINDS
from prunus.zoo import build, native_shape
from tests.lib.models import imported_beside_torchvision

TOKENS = torch.arange(12).view(2, 6) % 90


def kinds(model, example, **options):
    return prunus.trace(model.eval(), example, **options).kinds


class ByHand(nn.Module):
    """Attention as a softmax between two products, with names that say nothing."""

    rates: torch.Tensor

    def __init__(self, shared=False, pairs=False, size=32):
        super().__init__()
        self.shared, self.pairs, self.size = shared, pairs, 8
        self.register_buffer("rates", torch.rand(4))
        self.a = nn.Linear(10, size)
        self.b, self.e = nn.Linear(size, 4 * 8), nn.Linear(4 * 8, size)
        self.c, self.d = (nn.Linear(size, (2 if shared else 4) * 8) for _ in range(2))
        self.f, self.g = nn.Linear(size, 48), nn.Linear(48, size)
        self.h, self.i = nn.Linear(size, 20), nn.Linear(20, 3)

    def turn(self, x):
        first, second = x.chunk(2, -1)
        angles = torch.arange(x.shape[2])[:, None] * self.rates
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def forward(self, x):
        x = self.a(x)
        q, k, v = (
            part(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for part in (self.b, self.c, self.d)
        )
        if self.pairs:
            q, k = self.turn(q), self.turn(k)
        if self.shared:
            k, v = (part[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for part in (k, v))
        shares = (q @ k.transpose(-2, -1)).softmax(-1)
        x = x + self.e((shares @ v).transpose(1, 2).flatten(2))
        x = x + self.g(torch.relu(self.f(x)))
        return self.i(torch.tanh(self.h(x.mean(1))))


X = torch.zeros(2, 6, 10)


def test_attention_between_two_products_has_heads_and_a_head_dim():
    assert kinds(ByHand(), X) == {
        "a": "width",
        "b#0": "heads",
        "b#1": "head_dim",
        "f": "mlp",
        "h": "other",
    }


def test_heads_of_keys_that_are_repeated_are_groups():
    found = kinds(ByHand(shared=True), X)
    assert found["b#0"] == "groups" and set(found.values()) == {"width", "groups", "head_dim", "mlp", "other"}


def test_units_that_turn_in_pairs_are_rotary_and_go_in_pairs():
    model = ByHand(pairs=True).eval()
    graph = prunus.trace(model, X)
    (name,) = graph.rotary
    assert graph.kinds[name] == "head_dim" and graph.axes[name].size == 4
    places = [member.index for member in graph.members(name) if member.tensor == "c.weight"]
    assert places[0][1].tolist() == [head * 8 + place for head in range(4) for place in (1, 5)]
    assert not prunus.trace(ByHand(), X).rotary


def test_a_sum_without_a_product_between_its_parts_is_no_stream():
    """GELU written out adds a power of its input to its input."""

    class Bent(nn.Module):
        def forward(self, x):
            return x * (1 + torch.tanh(x + 0.044715 * x**3))

    inner = [nn.Linear(8, 24), Bent(), nn.Linear(24, 16), Bent(), nn.Linear(16, 3)]
    assert set(kinds(nn.Sequential(*inner), torch.zeros(1, 8)).values()) == {"mlp"}


def test_a_recurrent_state_is_no_mlp():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = nn.RNNCell(8, 16), nn.Linear(16, 3)

        def forward(self, x):
            state = x.new_zeros(len(x), self.cell.hidden_size)
            for step in x.unbind(1):
                state = self.cell(step, state)
            return self.out(state)

    assert set(kinds(Loop(), torch.zeros(2, 3, 8)).values()) <= {"other"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet20", {"channels"}),
        ("mobilenet_v2", {"channels"}),
        ("densenet40", {"channels"}),
        ("mlp", {"mlp"}),
        ("vit_tiny", {"width", "heads", "mlp"}),
    ],
)
def test_networks_of_the_zoo(name, expected):
    assert set(kinds(build(name), torch.zeros(1, *native_shape(name))).values()) == expected


def test_all_kinds_have_an_explanation_and_are_shown_by_explain():
    graph = prunus.trace(ByHand().eval(), X)
    assert set(graph.kinds.values()) <= set(KINDS) and graph.kinds.keys() == graph.axes.keys()
    assert "axis f (mlp): 48 units shrink together in" in graph.explain("f")


# ------------------------------------------------------------------------------------- transformers
def language_model(name, **sizes):
    transformers = pytest.importorskip("transformers", reason="the models are transformers'")
    imported_beside_torchvision("transformers.models.llama.modeling_llama")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name[0]}Config")(vocab_size=96, **sizes)
    return getattr(transformers, f"{name[0]}{name[1]}")(config).eval()


USUAL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
"""The endings of the names of axes, by kind."""
GROUPED = {
    "groups": ["layers.0.self_attn.q_proj#0", "layers.1.self_attn.q_proj#0"],
    "heads": ["layers.0.self_attn.q_proj#1", "layers.1.self_attn.q_proj#1"],
    "head_dim": ["layers.0.self_attn.q_proj#2"],  # one for all layers, because they share their angles
    "width": ["layers.0.self_attn.o_proj"],
    "mlp": ["layers.0.mlp.gate_proj", "layers.1.mlp.gate_proj"],
}
MODELS = {
    "llama": (("Llama", "ForCausalLM"), USUAL | {"num_key_value_heads": 2}, GROUPED),
    "llama-eager": (
        ("Llama", "ForCausalLM"),
        USUAL | {"num_key_value_heads": 2, "attn_implementation": "eager"},
        GROUPED,
    ),
    "qwen2": (("Qwen2", "ForCausalLM"), USUAL | {"num_key_value_heads": 2}, GROUPED),
    "gpt2": (
        ("GPT2", "LMHeadModel"),
        GPT2,
        {
            "width": ["transformer.wte"],
            "heads": ["h.0.attn.c_attn#0", "h.1.attn.c_attn#0"],
            "head_dim": ["h.0.attn.c_attn#1", "h.1.attn.c_attn#1"],
            "mlp": ["h.0.mlp.c_fc", "h.1.mlp.c_fc"],
        },
    ),
    "bert": (
        ("Bert", "ForSequenceClassification"),
        USUAL | {"max_position_embeddings": 16},
        {
            "heads": ["layer.0.attention.self.query#0", "layer.1.attention.self.query#0"],
            "head_dim": ["layer.0.attention.self.query#1", "layer.1.attention.self.query#1"],
            "width": ["layer.0.attention.output.dense"],
            "mlp": ["layer.0.intermediate.dense", "layer.1.intermediate.dense"],
            "other": ["pooler.dense"],
        },
    ),
    "albert": (
        ("Albert", "ForSequenceClassification"),
        USUAL | {"max_position_embeddings": 16, "embedding_size": 16},
        {
            "embeddings": ["word_embeddings"],
            "heads": ["attention.query#0"],
            "head_dim": ["attention.query#1"],
            "width": ["embedding_hidden_mapping_in"],
            "mlp": [".ffn"],
            "other": ["pooler"],
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_language_models(name):
    made, sizes, expected = MODELS[name]
    found = kinds(language_model(made, **sizes), {"input_ids": TOKENS})
    wanted = [(ending, kind) for kind, endings in expected.items() for ending in endings]
    assert len(wanted) == len(found), found
    for axis, kind in found.items():
        assert any(axis.endswith(ending) and kind == own for ending, own in wanted), (axis, kind)


def test_an_encoder_and_a_decoder_have_attentions_of_their_own():
    model = language_model(("T5", "ForConditionalGeneration"), **T5)
    found = kinds(model, {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :4]}, outputs="logits")
    assert (
        found["encoder.block.0.layer.0.SelfAttention.o"] == "width"
        and found["decoder.block.1.layer.2.DenseReluDense.wi"] == "mlp"
    )
    assert found["decoder.block.0.layer.1.EncDecAttention.q#0"] == "heads"
    assert {kind for axis, kind in found.items() if axis.endswith("#1")} == {"head_dim"}


# ---------------------------------------------------------------------------------------------- timm
@pytest.mark.parametrize(
    ("name", "sizes", "side", "expected"),
    [
        ("vit_tiny_patch16_224", {"depth": 2, "img_size": 32}, 32, {"width", "heads", "mlp"}),
        (
            "swin_tiny_patch4_window7_224",
            {"depths": (1, 1, 1, 1)},
            224,
            {"width", "heads", "head_dim", "mlp"},
        ),
        ("convnext_tiny", {"depths": (1, 1, 1, 1)}, 64, {"channels", "mlp"}),
        ("resnet18", {}, 64, {"channels"}),
        ("mixer_s32_224", {}, 224, {"width", "mlp"}),
    ],
)
def test_networks_of_timm(name, sizes, side, expected):
    timm = imported_beside_torchvision("timm")
    found = kinds(timm.create_model(name, **sizes), torch.zeros(1, 3, side, side))
    assert set(found.values()) == expected
    parts = {
        "qkv": {"heads", "head_dim"},
        "fc1": {"mlp"},
        "patch_embed": {"width"},
        "stem": {"width", "channels"},
    }
    for axis, kind in found.items():
        assert all(kind in wanted for part, wanted in parts.items() if part in axis), (axis, kind)
    for first, second in pairwise(sorted(axis for axis in found if axis.endswith(("#0", "#1")))):
        assert found[first] != found[second]
