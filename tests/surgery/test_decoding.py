"""The proof calls language models as they are called when they generate, and notices faults that only then matter."""

import pytest
import torch

from prunus.errors import PruningError
from prunus.graph import trace
from prunus.surgery import shrink, verify
from tests.lib.families import family

BOTH = ("decode", "decode padded")
# The shapes of published models in which a wrong integer followed, or a right one did not; tiny in all else.
SHAPES = {
    "Sheared-LLaMA 1.3B": (
        "llama",
        {"num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 24},
    ),
    "Qwen1.5-0.5B": (
        "qwen2",
        {"num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 24},
    ),
    "Gemma-7b": ("gemma", {"num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 28}),
    "Llama-3.2-1B": ("llama", {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 16}),
    "Qwen2.5-0.5B": ("qwen2", {"num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 24}),
}


FAST = ("Sheared-LLaMA 1.3B", "Qwen2.5-0.5B")


def halved(name, **fields):
    """A model of a family, its graph, and half of every axis but the smallest, which would take many proofs."""
    model, inputs = family(name, **fields)
    graph = trace(model, inputs)
    return model, graph, {a: range(n) for a, n in graph.halved().items() if graph.axes[a].size > 3}


@pytest.mark.parametrize(
    ("name", "calls"),
    {
        "llama": BOTH,
        "gemma3": BOTH,
        "gpt2": BOTH,
        "t5": BOTH,
        "whisper": BOTH[:1],
        "bert": (),
        "vit": (),
    }.items(),
)
def test_models_that_generate_are_proved_doing_so(name, calls):
    model, graph, keep = halved(name)
    proof = verify(model, graph, keep)
    assert proof.holds and proof.calls == calls


@pytest.mark.parametrize("name", ["llama", "t5", "whisper"])
def test_a_layer_that_writes_the_cache_of_another_is_noticed(name):
    model, graph, keep = halved(name)
    small = shrink(model, graph, keep, verify="off")
    attention = {
        "llama": lambda: small.model.layers[1].self_attn,
        "t5": lambda: small.decoder.block[1].layer[0].SelfAttention,
        "whisper": lambda: small.model.decoder.layers[1].self_attn,
    }[name]()
    attention.layer_idx = 0
    assert is_refused(model, graph, keep, small)


def is_refused(model, graph, keep, small):
    try:
        return not verify(model, graph, keep, small).holds
    except PruningError as error:  # where the cache of a layer has another shape
        return "does not run" in str(error)


def test_heads_in_groups_of_another_number_are_noticed():
    """Without a mask, the fused attention does not ask how many heads share keys."""
    model, graph, keep = halved("llama", num_attention_heads=8)  # in two groups
    small = shrink(model, graph, keep, verify="off")
    assert small.model.layers[1].self_attn.num_key_value_groups == 2
    small.model.layers[1].self_attn.num_key_value_groups = 4
    with pytest.raises(PruningError, match="does not run"):
        verify(model, graph, keep, small)


def test_a_call_that_the_original_does_not_take_is_not_made():
    class NoCache(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(9, 8)
            self.head = torch.nn.Linear(8, 9)

        def forward(self, input_ids, past_key_values=None, use_cache=False):
            return {"logits": self.head(self.embed(input_ids))}

    model = NoCache()
    graph = trace(model, {"input_ids": torch.ones(1, 5, dtype=torch.long)})
    proof = verify(model, graph, {"embed": [0, 3, 4]})
    assert proof.holds and proof.calls == ()


@pytest.mark.parametrize(
    "shape", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]
)
def test_the_shapes_of_published_models_decode_as_the_masked_original(shape):
    name, fields = SHAPES[shape]
    heads = fields["num_attention_heads"]
    size = 2 * heads
    if name == "gemma":
        fields = fields | {"head_dim": 2}
    model, graph, keep = halved(name, hidden_size=size, intermediate_size=8, **fields)
    small = shrink(model, graph, keep, verify="off")
    proof = verify(model, graph, keep, small)
    assert proof.holds and proof.calls == BOTH
    layers = small.model.layers
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(len(layers)))
    tokens = torch.tensor([[0, 0, 5, 6, 7], [5, 6, 7, 8, 9]])
    answer = small.generate(
        tokens, attention_mask=(tokens > 0).long(), max_new_tokens=3, do_sample=False, pad_token_id=0
    )
    assert answer.shape == (2, 8)
