"""The tensors that a model returns: what is seen, what is named, what is refused."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import prunus
from prunus.errors import TraceError, UserError
from prunus.graph import make_skeleton, output_tensors, quiet_config, select_outputs
from prunus.graph.outputs import check_paths
from tests.lib.models import torchvision_models

A, B, C, D = torch.arange(12.0).view(4, 3).unbind()
Pair = namedtuple("Pair", "first second")


class Layer:
    def __init__(self, keys, values):
        self.keys, self.values, self.dtype, self.ready = keys, values, keys.dtype, True


class Cache:
    def __init__(self, *layers):
        self.layers, self.kind = list(layers), Layer


class Slotted:
    __slots__ = ("left", "unset")

    def __init__(self, left):
        self.left = left


@dataclass
class Answer:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Hidden:
    def __init__(self, tensor):
        self.tensor = lambda: tensor


def seen(output):
    return [tensor.tolist() for tensor in output_tensors(output)]


def listed(*tensors):
    return [tensor.tolist() for tensor in tensors]


@pytest.mark.parametrize(
    ("output", "tensors"),
    [
        (A, (A,)),
        ((A, [B, None], {"c": C}), (A, B, C)),
        (Pair(A, (B, "words")), (A, B)),
        (OrderedDict(b=B, a=A), (B, A)),
        (Answer(A), (A,)),
        ((A, Cache(Layer(B, C), Layer(D, A))), (A, B, C, D, A)),
        (Slotted(A), (A,)),
        (Normal(A, B.exp()), (A, B.exp())),
        ((A, A), (A, A)),
        ((3, "words", None, torch.float32), ()),
    ],
)
def test_tensors_are_found_in_order_in_whatever_holds_them(output, tensors):
    assert seen(output) == listed(*tensors)


def test_objects_that_hold_each_other_end():
    cache = Cache(Layer(A, B))
    cache.owner = [cache]
    nest = [C]
    nest.append(nest)
    assert seen(cache) == listed(A, B)
    assert listed(C)[0] in seen(nest)


def test_the_parameters_of_a_module_in_an_output_are_no_results():
    answer = Answer(A)
    answer.made_by = nn.Linear(2, 3)
    assert seen(answer) == listed(A)


@pytest.mark.parametrize("output", [Hidden(A), (each for each in [A]), (A, object())])
def test_an_object_that_may_hide_tensors_is_refused_by_its_class(output):
    guilty = output[1] if isinstance(output, tuple) else output
    with pytest.raises(TraceError, match=f"returns a {type(guilty).__name__}"):
        output_tensors(output)


NESTED = (Answer(A), {"logits_per_image": B, "logits": C}, Cache(Layer(D, A)))


@pytest.mark.parametrize(
    ("outputs", "tensors"),
    [
        (None, (A, B, C, D, A)),
        ("0.logits", (A,)),
        ("0", (A,)),
        ("1.logits", (C,)),
        ("2.layers.0.keys", (D,)),
        ("2", (D, A)),
        (["1.logits", "0"], (C, A)),
        (lambda output: output[1]["logits"], (C,)),
        (lambda output: {"x": output[2]}, (D, A)),
    ],
)
def test_outputs_are_chosen_by_path_or_by_function(outputs, tensors):
    assert [tensor.tolist() for tensor in select_outputs(NESTED, outputs)] == listed(*tensors)


def test_a_path_is_not_a_prefix_of_a_longer_name():
    assert len(select_outputs({"logits": A, "logits_per_image": B}, "logits")) == 1


def test_an_unknown_path_lists_those_that_there_are():
    with pytest.raises(UserError, match=r"unknown output '0.logit'. Did you mean 0.logits.*2.layers.0.keys"):
        check_paths("0.logit", [NESTED])
    with pytest.raises(UserError, match="one tensor, without a name"):
        check_paths("logits", [A])


def test_a_path_has_to_be_there_in_one_mode_alone():
    check_paths(["logits", "loss"], [{"logits": A}, {"loss": B}])
    assert len(select_outputs({"loss": B, "extra": C}, ["logits", "loss"])) == 1
    assert len(select_outputs({"loss": B, "extra": C}, "logits")) == 2


class Trained(nn.Module):
    """Returns logits and features in evaluation, a loss and a count of features in training."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.side = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 6)

    def forward(self, x):
        h = self.body(x).relu()
        if not self.training:
            return {"logits": self.head(h), "features": h}
        return {"loss": self.head(h).square().mean(), "side": self.side(h)}


def test_outputs_are_named_where_training_returns_others():
    model, x = Trained(), torch.randn(2, 4)
    with pytest.raises(TraceError, match="an output of the model"):
        prunus.trace(model, x)
    for named in ("logits", ["logits", "side"]):  # all that training returns counts, or what is named there
        graph = prunus.trace(model, x, outputs=named)
        assert list(graph.axes) == ["body"] and graph.traced == ("eval", "train")
    graph = prunus.trace(model, x, outputs=["logits", "loss"])
    assert list(graph.axes) == ["body", "side"]
    assert prunus.shrink(model, graph, {"body": range(4), "side": range(2)}).side.weight.shape == (2, 4)


def test_a_path_that_no_mode_returns_is_refused_with_all_that_there_are():
    with pytest.raises(UserError, match=r"unknown output 'logit'.*features, logits, loss, side"):
        prunus.trace(Trained(), torch.randn(2, 4), outputs=["logit", "loss"])


def test_a_function_that_returns_no_tensor_is_told_what_there_is():
    with pytest.raises(TraceError, match=r"returned none.*0\.logits, 1\.logits_per_image"):
        select_outputs(NESTED, lambda output: None)


class Remembers(nn.Module):
    """Two layers; the output carries what the first computed, in an object, as a cache does."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        kept = self.first(x)
        return {"logits": self.third(self.second(kept).relu()), "cache": Cache(Layer(kept, kept))}


def test_a_cache_among_the_outputs_is_fixed_and_the_rest_shrinks():
    graph = prunus.trace(Remembers(), torch.randn(2, 4))
    assert list(graph.axes) == ["second"]
    assert ("first.weight, dimension 0", "an output of the model") in graph.fixed


class Config:
    def __init__(self, use_cache):
        self.use_cache = use_cache


class Cached(nn.Module):
    def __init__(self, use_cache=True):
        super().__init__()
        self.config, self.layer = Config(use_cache), nn.Linear(2, 2)
        self.layer.config = self.config

    def forward(self, x, use_cache=None):
        use_cache = self.config.use_cache if use_cache is None else use_cache
        return (self.layer(x), x) if use_cache else (self.layer(x),)


def test_a_skeleton_returns_no_cache_and_the_users_model_still_does():
    model = Cached()
    bare = make_skeleton(model, real=True)
    quiet_config(bare)
    assert len(bare(torch.ones(1, 2))) == 1 and len(model(torch.ones(1, 2))) == 2
    assert len(bare(torch.ones(1, 2), use_cache=True)) == 2, "an example that asks for a cache gets it"


def test_a_config_stays_where_the_forward_takes_no_use_cache():
    class Other(Cached):
        def forward(self, x):
            return super().forward(x)

    bare = make_skeleton(Other(), real=True)
    quiet_config(bare)
    assert bare.config.use_cache is True


def test_the_cache_of_transformers_is_seen_and_switched_off():
    torchvision_models()  # transformers imports torchvision where it is installed
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model, ids = transformers.LlamaForCausalLM(config).eval(), torch.arange(6).view(1, 6)
    output = model(input_ids=ids)
    heads = (1, 1, 6, 8)
    assert [tensor.shape for tensor in output_tensors(output)] == [(1, 6, 20), heads, heads, heads, heads]
    assert len(select_outputs(output, "logits")) == 1
    bare = make_skeleton(model, real=True)
    assert len(output_tensors(bare(input_ids=ids))) == 1
    assert model.config.use_cache is True


TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TIED = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
PAIRS = {  # models with side outputs: class, config, its arguments, and the output that counts
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": TEXT | {"eos_token_id": 8, "bos_token_id": 3, "pad_token_id": 1},
            "vision_config": VISION,
            "projection_dim": 12,
        },
        "logits_per_image",
    ),
    "siglip": (
        "SiglipModel",
        "SiglipConfig",
        {"text_config": TEXT, "vision_config": VISION},
        "logits_per_image",
    ),
    "t5": ("T5ForConditionalGeneration", "T5Config", TIED | {"tie_word_embeddings": False}, "logits"),
}


def small_transformer(kind, config, given):
    torchvision_models()  # transformers imports torchvision where it is installed
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return getattr(transformers, kind)(getattr(transformers, config)(**given)).eval()


def inputs_of(model):
    ids = torch.arange(3, 9).view(1, 6)
    other = (
        {"decoder_input_ids": ids}
        if "T5" in type(model).__name__
        else {"pixel_values": torch.rand(1, 3, 16, 16)}
    )
    return {"input_ids": ids, **other}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PAIRS)
def test_side_outputs_fix_no_more_once_the_output_is_named(name):
    *made, path = PAIRS[name]
    model = small_transformer(*made)
    inputs = inputs_of(model)
    whole, named = (prunus.trace(model, inputs, outputs=chosen) for chosen in (None, path))
    assert len(named.axes) > len(whole.axes)
    small = prunus.shrink(model, named, {axis: range(0, units.size, 2) for axis, units in named.axes.items()})
    sizes = [sum(map(torch.Tensor.numel, each.parameters())) for each in (small, model)]
    assert sizes[0] < 0.55 * sizes[1]
    assert small(**inputs)[path].shape == model(**inputs)[path].shape


@pytest.mark.filterwarnings("ignore")
def test_a_width_whose_number_scales_the_logits_shrinks_and_the_number_stays():
    model = small_transformer("T5ForConditionalGeneration", "T5Config", TIED)
    graph = prunus.trace(model, inputs_of(model), outputs="logits")
    small = prunus.shrink(model, graph, {axis: range(0, units.size, 2) for axis, units in graph.axes.items()})
    assert small.shared.weight.shape[1] < model.shared.weight.shape[1]
    assert small.model_dim == model.model_dim
