"""Small models of transformers, saved by `save_pretrained`, come back from `from_pretrained` as they were."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunus import scores
from prunus.errors import FileError, UserError
from prunus.export import check_config, load, save
from prunus.graph import trace
from prunus.selection import Budget, params, select
from prunus.surgery import shrink
from tests.lib.families import FAMILIES, OUTPUTS, family

FAST = ("llama", "gpt2", "bert", "whisper")
SHARE = 0.6


def marked(names):
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


def pruned(name, uniform=True, share=SHARE, **options):
    """A model of a family, its inputs, graph, keep, and the small one."""
    model, inputs = family(name)
    graph = trace(model, inputs, outputs=OUTPUTS.get(name))
    keep = select(graph, scores.random(graph, 0), Budget(params=share), uniform=uniform, **options)
    return model, inputs, graph, keep, shrink(model, graph, keep)


def answers(model, inputs):
    with torch.no_grad():
        output = model(**inputs)
    return [value for value in output.values() if isinstance(value, torch.Tensor)]


def same(one, other, inputs):
    """Whether two models answer alike but for rounding, which depends on where in memory their weights lie."""
    pairs = zip(answers(one, inputs), answers(other, inputs), strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("round_to", [None, 1], ids=["usual widths", "any widths"])
@pytest.mark.parametrize("name", marked(FAMILIES))
def test_every_family_is_loaded_as_it_was_saved(name, round_to, tmp_path):
    model, inputs, graph, keep, small = pruned(name, round_to=round_to)
    check_config(small)
    small.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert same(small, loaded, inputs)
    assert params(graph, keep) <= SHARE * params(graph)
    assert loaded.num_parameters() == small.num_parameters() < model.num_parameters()
    assert trace(loaded, inputs, outputs=OUTPUTS.get(name)).ties.tied  # which may be pruned again


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_config_of_generation_and_dtype_come_along_and_files_may_be_several(name, tmp_path):
    model, inputs = family(name)
    model.generation_config.max_new_tokens = 7
    model = model.to(torch.bfloat16)
    graph = trace(model, inputs)
    keep = select(graph, scores.random(graph, 0), Budget(params=SHARE), uniform=True)
    small = shrink(model, graph, keep)
    small.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = type(model).from_pretrained(tmp_path, dtype="auto").eval()
    assert loaded.dtype == torch.bfloat16 and loaded.generation_config.max_new_tokens == 7
    assert same(small, loaded, inputs)


def test_sizes_with_which_a_factor_or_a_frequency_would_change_stay_whole():
    model, inputs = family("gemma3")
    graph = trace(model, inputs)
    held = graph.ties.held
    assert "config.hidden_size" in held["model.layers.0.self_attn.o_proj"]
    assert "embed_scale" in held["model.layers.0.self_attn.o_proj"]
    assert "inv_freq" in held["model.layers.0.self_attn.q_proj#2"]
    with pytest.raises(
        UserError, match=r"o_proj keeps 32 of 32 .config.hidden_size says its size, and changes"
    ):
        select(graph, scores.random(graph, 0), Budget(params=0.1), uniform=True)


def test_heads_shrink_with_the_width_where_a_config_says_both_by_one_another():
    graph = trace(*family("bert"))
    tie = next(tie for tie in graph.ties.tied if len(tie.fields) == 2)
    assert tie.fields == {("config", "hidden_size"): 32, ("config", "num_attention_heads"): 4}
    assert tie.parts == 4 and len(tie.axes) == 4
    keep = select(graph, scores.random(graph, 0), Budget(params=0.5), uniform=True)
    shares = {len(keep[name]) / graph.axes[name].size for name in tie.axes}
    assert len(shares) == 1 and shares.pop() < 1


def test_a_config_may_state_what_it_left_open(tmp_path):
    """Qwen2's has no head_dim and GPT-2's no n_inner: the class computes them, unless they are stated."""
    for name, field, value in (("qwen2", "head_dim", 8), ("gpt2", "n_inner", None)):
        _, _, graph, keep, small = pruned(name, round_to=1)
        mlp = next(axis for axis in keep if "mlp" in axis)
        assert getattr(small.config, field) == (value or len(keep[mlp]))
        assert getattr(graph.maker.kept["config"], field, None) is None


def test_a_config_that_makes_another_model_is_refused_with_its_fields():
    model, inputs = family("llama")
    graph = trace(model, inputs)
    layer = "model.layers.0.mlp.gate_proj"
    small = shrink(model, graph, {layer: range(20)})
    with pytest.raises(UserError) as error:
        check_config(small)
    for words in (layer, "is 20", "config.intermediate_size still says 64", "uniform=True", "prunus.save"):
        assert words in str(error.value)
    with pytest.raises(UserError, match="does not keep the arguments"):
        check_config(torch.nn.Linear(3, 4))


def test_a_config_that_its_own_class_refuses_is_named():
    model, inputs = family("bert")
    graph = trace(model, inputs)
    width = next(axis for axis in graph.axes if graph.axes[axis].size == 32)
    with pytest.raises(UserError, match=r"refuses the config .ValueError"):
        check_config(shrink(model, graph, {width: range(30)}))


class Largest(TorchDispatchMode):
    """Notes how many bytes the largest tensor with data has that is made."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and not t.is_meta]
        self.bytes = max([self.bytes, *(t.nbytes for t in made)])
        return out


def largest(model):
    return max(tensor.nbytes for tensor in model.state_dict().values())


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_a_saved_model_is_loaded_into_one_without_weights(name, uniform, tmp_path):
    model, inputs, graph, keep, small = pruned(name, uniform, round_to=1)
    save(tmp_path, small, keep, graph)
    with torch.device("meta"):
        empty = type(model)(model.config).eval()
    with Largest() as made:
        loaded = load(tmp_path, empty)
    assert 0 < made.bytes <= largest(small) < largest(model)
    assert same(small, loaded, inputs)
    assert loaded.config.to_dict() == small.config.to_dict()
    assert all(parameter.is_meta for parameter in empty.parameters())


def test_what_no_file_holds_is_missed_in_a_model_without_weights(tmp_path):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = torch.nn.Linear(6, 8), torch.nn.Linear(8, 6)
            self.places = torch.arange(8)

        def forward(self, x):
            return self.down(self.up(x))

    model = Scaled()
    graph = trace(model, torch.zeros(2, 6))
    keep = {"up": [1, 5]}
    save(tmp_path, shrink(model, graph, keep), keep, graph)
    with torch.device("meta"):
        empty = Scaled()
    with pytest.raises(FileError, match=r"no numbers for places.*meta device"):
        load(tmp_path, empty)


def test_sizes_that_only_some_others_go_with_are_made_to_go_together():
    """Llama's class wants a hidden size that is a multiple of the heads."""
    model, inputs = family("llama", hidden_size=40, head_dim=4, num_attention_heads=8, num_key_value_heads=8)
    graph = trace(model, inputs)
    heads, hidden = (f"model.layers.0.self_attn.{name}" for name in ("q_proj#0", "o_proj"))
    assert (graph.axes[heads].size, graph.axes[hidden].size) == (8, 40)
    found = set()
    for seed in range(10):
        keep = select(graph, scores.random(graph, seed), Budget(params=0.5), uniform=True, round_to=1)
        widths = graph.widths(keep)
        assert not graph.misfits(widths) and params(graph, keep) <= 0.5 * params(graph)
        found.add((widths[heads], widths[hidden]))
    assert any(40 % h for h, _ in found) and all(n % h == 0 for h, n in found)
