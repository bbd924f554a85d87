"""Language models as their library makes them: caches, configs, layers' numbers, experts, the library's own files."""

import pytest
import torch

import prunus

transformers = pytest.importorskip("transformers", reason="the models are transformers'")
pytest.importorskip(
    "transformers.models.llama.modeling_llama",
    reason="transformers cannot load its models here (a torchvision of another build of torch, for example)",
    exc_type=(ImportError, RuntimeError),
)

TOKENS = torch.arange(12).view(2, 6) % 90


def sizes(**more):
    """A small decoder in the words of transformers' configs."""
    return {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    } | more


def llama(**more):
    torch.manual_seed(0)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes(**more), **tokens)).eval()


def half(model, how="global", budget=0.5):
    """Cut to half of the multiply-adds, proved; the graph and the small model."""
    graph = prunus.trace(model, {"input_ids": TOKENS})
    scores = prunus.scores.magnitude(model, graph)
    keep = prunus.select(graph, scores, prunus.Budget(macs=budget), how=how)
    return graph, prunus.shrink(model, graph, keep)


def writes(model, **options):
    return model.generate(TOKENS[:1] + 3, max_new_tokens=4, do_sample=False, **options)


def test_a_model_with_a_cache_among_its_outputs_shrinks_and_writes_on():
    _, small = half(llama())
    assert small.config.use_cache
    assert torch.equal(writes(small), writes(small, use_cache=False))


@pytest.mark.parametrize(("layers", "heads", "groups"), [(4, 4, 4), (4, 6, 2)])
def test_a_layer_keeps_its_number_though_it_equals_a_size(layers, heads, groups):
    model = llama(
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups, hidden_size=8 * heads
    )
    _, small = half(model, how="uniform")
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == list(range(layers))
    with torch.no_grad():
        cached, plain = (small(TOKENS, use_cache=use).logits for use in (True, False))
    torch.testing.assert_close(cached, plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(writes(small), writes(small, use_cache=False))


def test_groups_of_queries_follow_for_batches_that_are_padded():
    model = llama(num_attention_heads=6, hidden_size=48)
    _, small = half(model, how="uniform")
    mask = torch.ones_like(TOKENS)
    mask[0, :3] = 0
    with torch.no_grad():
        assert small(TOKENS, attention_mask=mask).logits.shape == (2, 6, 96)
    for layer in small.model.layers:
        attention = layer.self_attn
        queries, keys = (
            w.weight.shape[0] // attention.head_dim for w in (attention.q_proj, attention.k_proj)
        )
        assert attention.num_key_value_groups == queries // keys


def test_a_model_cut_evenly_is_loaded_again_by_its_library(tmp_path):
    model = llama()
    graph = prunus.trace(model, {"input_ids": TOKENS})
    inner = [name for name in graph.axes if ".mlp." in name]
    small = prunus.shrink(model, graph, {name: range(32) for name in inner})
    assert small.config.intermediate_size == 32 and model.config.intermediate_size == 64
    small.save_pretrained(tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(small(TOKENS).logits, again(TOKENS).logits)


def test_the_inner_widths_of_experts_shrink():
    torch.manual_seed(0)
    moe = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**sizes(**moe))).eval()
    graph, small = half(model, how="uniform")
    assert any(".experts." in member.tensor for axis in graph.axes for member in graph.members(axis))
    assert sum(p.numel() for p in small.parameters()) < 0.75 * sum(p.numel() for p in model.parameters())
