"""Costs in closed form against torch's own counter, a real count of parameters, and a replay of memory."""

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import UserError
from prunus.graph import make_skeleton
from prunus.selection import cost
from tests.lib import nets
from tests.lib.graphs import counted_macs
from tests.lib.models import imported_beside_torchvision


@pytest.mark.parametrize("name", nets.NETS)
@pytest.mark.parametrize("seed", range(3))
def test_macs_and_params_equal_what_the_shrunk_module_does(name, seed):
    model, example = nets.build(name)
    graph = prunus.trace(model, example)
    assert prunus.macs(graph) == counted_macs(model, example)
    keep = nets.random_keep(graph, seed)
    small = prunus.shrink(model, graph, keep, verify="off")
    assert prunus.macs(graph, keep) == counted_macs(small, example)
    plain = nets.build(name)[0]
    assert prunus.params(graph) == sum(
        p.numel() for n, p in make_skeleton(plain).named_parameters()
    )  # a parametrised weight counts as what it is after training
    assert prunus.params(graph, keep) == sum(p.numel() for p in make_skeleton(small).parameters())


@pytest.mark.parametrize("name", nets.NETS)
def test_coverage_is_what_goes_when_every_axis_is_halved(name):
    model, example = nets.build(name)
    graph = prunus.trace(model, example)
    keep = {axis: range(max(1, graph.axes[axis].size // 2)) for axis in graph.axes}
    small = prunus.shrink(model, graph, keep, verify="off")
    left, whole = (prunus.params(prunus.trace(each, example)) for each in (small, model))
    assert graph.coverage() == pytest.approx(1 - left / whole)
    assert cost.coverage(graph, "params") == pytest.approx(graph.coverage())
    assert cost.coverage(graph) == pytest.approx(
        1 - counted_macs(small, example) / counted_macs(model, example)
    )


def test_what_only_touches_an_axis_is_not_covered():
    """Half of the second layer's weights stay, for its outputs are the model's."""
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False))
    assert prunus.trace(model, torch.zeros(1, 4)).coverage() == pytest.approx(0.5)


def test_fused_attention_is_counted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
            self.heads = 3

        def forward(self, x):
            q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
            return self.out(y.transpose(1, 2).flatten(2))

    tokens = 10
    graph = prunus.trace(Net(), torch.randn(2, tokens, 12))
    products = 2 * 2 * 3 * tokens * tokens * 4  # batch, two products, heads, queries, keys, features
    assert prunus.macs(graph) == products + 4 * 2 * tokens * 12 * 12


def test_queries_take_thousands_of_candidates_and_agree_with_single_ones():
    model, example = nets.build("attention")
    graph = prunus.trace(model, example)
    keeps = [nets.random_keep(graph, seed) for seed in range(20)]
    widths = torch.tensor([list(graph.widths(keep).values()) for keep in keeps])
    assert cost.of(graph, "macs", widths).tolist() == [prunus.macs(graph, keep) for keep in keeps]
    assert cost.of(graph, "params", widths).tolist() == [prunus.params(graph, keep) for keep in keeps]
    assert cost.of(graph, "memory_mb", widths).tolist() == [prunus.memory_mb(graph, keep) for keep in keeps]


@pytest.mark.parametrize("name", cost.CLOSED_FORMS)
def test_gradients_are_differences(name):
    model, example = nets.build("attention" if name == "cache_mb" else "concat")
    graph = prunus.trace(model, example)
    widths = torch.tensor([[float(axis.size) for axis in graph.axes.values()]], requires_grad=True)
    cost.of(graph, name, widths).sum().backward()
    fewer = widths.detach() - 1e-3 * torch.eye(len(graph.axes))
    slopes = (cost.of(graph, name, widths) - cost.of(graph, name, fewer)) / 1e-3
    assert torch.allclose(widths.grad[0].double(), slopes.detach(), rtol=1e-2)
    assert widths.grad.abs().sum() > 0


def test_memory_is_the_most_that_lives_at_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 100), nn.Linear(100, 50), nn.Linear(50, 8)

        def forward(self, x):
            return x + self.c(self.b(self.a(x)))

    graph = prunus.trace(Net(), torch.randn(4, 8))
    # the input lives to the end; the fullest moment holds it, the output of a and the output of b
    assert prunus.memory_mb(graph) == 4 * 4 * (8 + 100 + 50) / 2**20
    assert prunus.memory_mb(graph, {"a": [0]}) == 4 * 4 * (8 + 50 + 8) / 2**20


def test_the_memory_of_weights_is_that_of_parameters_and_buffers():
    model, example = nets.build("residual")
    graph = prunus.trace(model.to(torch.bfloat16), example.to(torch.bfloat16))
    for keep in ({}, nets.random_keep(graph, 0)):
        small = prunus.shrink(model, graph, keep, verify="off")
        held = sum(tensor.nbytes for tensor in [*small.parameters(), *small.buffers()])
        assert prunus.weights_mb(graph, keep) == held / 2**20


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_memory_of_keys_and_values_is_that_of_the_cache(attention):
    transformers = pytest.importorskip("transformers", reason="the model is transformers'")
    imported_beside_torchvision("transformers.models.llama.modeling_llama")
    sizes = {"vocab_size": 32, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "attn_implementation": attention}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()
    tokens = torch.zeros(3, 7, dtype=torch.long)
    graph = prunus.trace(model, {"input_ids": tokens})
    groups = [name for name, kind in graph.kinds.items() if kind == "groups"]
    for keep in ({}, {name: [1] for name in groups}):
        cache = prunus.shrink(model, graph, keep)(tokens, use_cache=True).past_key_values
        held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
        assert prunus.cache_mb(graph, keep) == held / 2**20 > 0


def test_latency_is_measured_and_the_mode_restored():
    model, example = nets.build("residual")
    model.norm_a.train()
    latency = prunus.latency_ms(model, example, repeats=5)
    assert latency.median_ms > 0 and latency.spread_ms >= 0 and latency.repeats == 5
    assert model.norm_a.training and not model.norm_b.training


def test_wrong_queries_are_named():
    model, example = nets.build("residual")
    graph = prunus.trace(model, example)
    with pytest.raises(UserError, match="Did you mean macs"):
        cost.of(graph, "mac", {})
    with pytest.raises(UserError, match=r"\(candidates, 3\)"):
        cost.of(graph, "macs", torch.ones(2, 4))
