"""Adapters (LoRA) around layers, before and after a cut: the model's own, and those of peft where it is installed."""

import warnings

import pytest
import torch
from torch import nn

import prunus
from tests.lib.models import torchvision_models

IDS = {"input_ids": torch.arange(12).view(2, 6)}


class Adapter(nn.Module):
    """A layer with a matrix of low rank beside it, as libraries of adapters write it."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.base_layer, self.in_features, self.out_features = layer, layer.in_features, layer.out_features
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        self.add("first", rank)

    def add(self, name, rank):
        self.down[name] = nn.Linear(self.in_features, rank, bias=False)
        self.up[name] = nn.Linear(rank, self.out_features, bias=False)

    def forward(self, x):
        beside = [self.up[name](self.down[name](x)) for name in self.down]
        return self.base_layer(x) + torch.stack(beside).sum(0)


def test_an_adapter_says_the_sizes_of_its_layer_so_another_can_be_added():
    torch.manual_seed(0)
    model, x = nn.Sequential(Adapter(nn.Linear(8, 8)), nn.ReLU(), Adapter(nn.Linear(8, 4))), torch.randn(3, 8)
    graph = prunus.trace(model, x)
    small = prunus.shrink(model, graph, {"0.base_layer": [1, 2, 5, 6, 7]})
    assert (small[0].in_features, small[0].out_features, small[2].in_features) == (8, 5, 5)
    assert not small.prunus_notes
    for adapter in (small[0], small[2]):
        adapter.add("second", 3)
    assert small(x).shape == (3, 4)


# ------------------------------------------------------------------------------------------- peft
def llama():
    torchvision_models()  # transformers imports it
    transformers = pytest.importorskip("transformers", reason="the model is from transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=16, num_hidden_layers=2, bos_token_id=0, eos_token_id=1, **sizes)
    )


def adapted(model=None, **options):
    model = llama() if model is None else model
    peft = pytest.importorskip("peft", reason="needs peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], **options)
    model = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.1)
    return model.eval()


def halved(model, freeze=()):
    graph = prunus.trace(model, IDS)
    scores = prunus.scores.magnitude(model, graph)
    keep = prunus.select(graph, scores, prunus.Budget(macs=0.6), freeze=freeze)
    return graph, keep, prunus.shrink(model, graph, keep)


pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")


def test_a_model_inside_of_another_one_returns_no_cache_either():
    """Keys and values in the output would fix the heads."""

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = llama()

        def forward(self, **inputs):
            return self.inner(**inputs)

    plain = prunus.trace(llama(), IDS)
    assert [axis.size for axis in prunus.trace(Around(), IDS).axes.values()] == [
        axis.size for axis in plain.axes.values()
    ]


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"lora_dropout": 0.1}, {"bias": "all"}])
def test_adapters_before_the_cut(options, tmp_path):
    model = adapted(**options)
    graph, keep, small = halved(model, freeze=["*lora_A*"])
    plain = prunus.trace(llama(), IDS)
    sizes = [axis.size for name, axis in graph.axes.items() if "lora_" not in name]
    whole = [
        axis.size for name, axis in plain.axes.items() if "o_proj" not in name or "use_dora" not in options
    ]
    assert sizes == whole  # DoRA's norms take all of the width of the stream
    ranks = [p.shape[0] for name, p in small.named_parameters() if "lora_A" in name]
    assert {*ranks} == {4}
    assert {p.requires_grad for name, p in small.named_parameters() if "lora_" not in name} <= {
        False,
        options.get("bias") == "all",
    }
    small.train()(**IDS, labels=IDS["input_ids"]).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in small.parameters())
    prunus.save(tmp_path, small.eval(), keep, graph)
    with torch.no_grad():
        expected = small(**IDS).logits
        assert torch.equal(prunus.load(tmp_path, adapted(**options))(**IDS).logits, expected)
        merged = small.merge_and_unload()
        torch.testing.assert_close(merged(**IDS).logits, expected)
    graph = prunus.trace(merged, IDS)  # which is a plain model, and can be cut again
    assert type(merged) is type(llama()) and graph.axes


def test_adapters_after_the_cut():
    _, _, small = halved(llama())
    with_adapters = adapted(small)
    with_adapters.train()(**IDS, labels=IDS["input_ids"]).loss.backward()
    with torch.no_grad():
        expected = with_adapters.eval()(**IDS).logits
        torch.testing.assert_close(with_adapters.merge_and_unload()(**IDS).logits, expected)


def test_an_adapter_that_is_not_active_is_named_in_a_warning_and_stays():
    peft = pytest.importorskip("peft", reason="needs peft")
    model = adapted()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graph = prunus.trace(model, IDS)
    assert any("lora_A.second" in str(each.message) for each in caught)
    assert not any("second" in name for name in graph.axes)


def test_an_adapter_added_after_the_cut_fits():
    peft = pytest.importorskip("peft", reason="needs peft")
    _, _, small = halved(adapted(), freeze=["*lora_A*"])
    small.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    small.set_adapter("second")
    assert small(**IDS).logits.shape == (2, 6, 16)
