"""A step of decoding as what milliseconds are measured of."""

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import UserError
from prunus.latency import Decoding, Meter
from prunus.selection import Metered
from tests.lib.latency import Fake
from tests.lib.models import imported_beside_torchvision

TOKENS = torch.arange(2)[:, None]


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers", reason="the model is transformers'")
    imported_beside_torchvision("transformers.models.llama.modeling_llama")
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()


def lengths(output):
    return {
        tensor.shape[2] for layer in output.past_key_values.layers for tensor in (layer.keys, layer.values)
    }


@torch.no_grad()
def test_a_step_is_the_last_token_after_a_cache_and_can_be_timed_again(model):
    step = Decoding(5).prepare(model, {"input_ids": TOKENS})
    whole = model(TOKENS.expand(-1, 6)).logits[:, -1:]
    for _ in range(3):
        output = step()
        torch.testing.assert_close(output.logits, whole)
        assert lengths(output) == {5}  # cut back


def test_small_models_have_caches_of_their_own(model):
    graph = prunus.trace(model, {"input_ids": TOKENS})
    keep = {name: [0] for name, kind in graph.kinds.items() if kind == "groups"}
    output = Decoding(4).prepare(prunus.shrink(model, graph, keep), graph.example)()
    assert {layer.keys.shape[1] for layer in output.past_key_values.layers} == {1}


def test_a_meter_measures_steps(model, tmp_path):
    """The clock counts the steps that it was given, and takes as long as the operators of one token."""
    steps = []

    class Counted(Fake):
        def prepare(self, model, example):
            steps.append(Decoding(4).prepare(model, example)())
            return super().prepare(model, example)

    graph = prunus.trace(model, {"input_ids": TOKENS})
    meter = Meter(model, graph, runtime=Counted(), cache=tmp_path)
    budget = Metered(latency_ms=0.8, meter=meter)
    keep = prunus.select(graph, prunus.scores.magnitude(model, graph), budget, only=["mlp", "groups"])
    assert meter.figures(keep)["measured_ms"] <= 0.8 * meter.figures(keep)["original_ms"]
    assert len(steps) > 2 and all(lengths(step) == {4} for step in steps)


def test_models_without_a_cache_and_empty_caches_are_refused():
    class Plain(nn.Module):
        def forward(self, tokens, use_cache):
            return tokens

    with pytest.raises(UserError, match="a Plain returns no past_key_values"):
        Decoding(3).prepare(Plain(), TOKENS)
    with pytest.raises(UserError, match="from 1, but is 0"):
        Decoding(0)
