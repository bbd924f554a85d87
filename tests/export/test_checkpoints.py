"""Checkpoints are cut on disk: the same numbers as `shrink` gives, one tensor at a time, complete or not at all."""

import json
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import prunus
from prunus.errors import FileError, PrunusError, UserError
from prunus.export import checkpoints, tensor_stream
from tests.lib import mixtures
from tests.lib.mixtures import OF_FAMILY, mixture
from tests.lib.models import imported_beside_torchvision


class Tied(nn.Module):
    """An embedding that is the last layer too."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.last = nn.Linear(6, 11, bias=False)
        self.last.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, tokens):
        hidden = self.embed(tokens) * self.scale
        return self.last(hidden + self.down(self.up(hidden).relu()))


TOKENS = torch.arange(5)[None]


@pytest.fixture
def given(tmp_path):
    """A model, its graph, a keep, and its checkpoint in three shards with other files beside."""
    torch.manual_seed(0)
    model = Tied().eval()
    graph = prunus.trace(model, TOKENS)
    keep = {axis: list(range(0, entry.size, 2)) for axis, entry in graph.axes.items()}
    source = tmp_path / "source"
    source.mkdir()
    held = {name: tensor for name, tensor in model.state_dict().items() if name != "embed.weight"}
    held["old.masked_bias"] = torch.tensor(-1e4)  # of a version before
    names = sorted(held)
    shards = {f"model-{k + 1:05}-of-00003.safetensors": names[k::3] for k in range(3)}
    for file, inside in shards.items():
        save_file({name: held[name] for name in inside}, source / file, {"format": "pt"})
    weight_map = {name: file for file, inside in shards.items() for name in inside}
    (source / checkpoints.INDEX).write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    )
    (source / "tokenizer.json").write_text("{}")
    (source / "pytorch_model.bin").write_text("not copied")
    return model, graph, keep, source


def test_the_numbers_are_those_of_shrink_and_names_and_files_stay(given, tmp_path):
    model, graph, keep, source = given
    small = prunus.shrink_checkpoint(source, keep, tmp_path / "out", graph=graph, model=model)
    expected = prunus.shrink(model, graph, keep)
    assert all(parameter.is_meta for parameter in small.parameters())
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in source.iterdir()} - {
        "pytorch_model.bin"
    } | {"keep.json"}
    for path in source.glob("*.safetensors"):
        with safe_open(path, "pt") as before, safe_open(tmp_path / "out" / path.name, "pt") as after:
            assert set(before.keys()) == set(after.keys()) and before.metadata() == after.metadata()
    index = json.loads((tmp_path / "out" / checkpoints.INDEX).read_text())
    written = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        written |= load_file(path)
        assert all(index["weight_map"][name] == path.name for name in load_file(path))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in written.values())
    assert torch.equal(written["last.weight"], expected.embed.weight)  # tied, under the checkpoint's name
    assert torch.equal(written["up.weight"], expected.up.weight)
    loaded = prunus.load(tmp_path / "out", model)
    assert torch.equal(loaded(TOKENS), expected(TOKENS)) and loaded.last.weight is loaded.embed.weight
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_one_file_of_any_type(dtype, tmp_path):
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    graph = prunus.trace(model, torch.randn(2, 3, dtype=dtype))
    (tmp_path / "a").mkdir()
    save_file(model.state_dict(), tmp_path / "a" / checkpoints.SINGLE)
    keep = {"0": [0, 3, 7]}
    prunus.shrink_checkpoint(tmp_path / "a", keep, tmp_path / "b", graph=graph, model=model.to("meta"))
    written = load_file(tmp_path / "b" / checkpoints.SINGLE)
    before = load_file(tmp_path / "a" / checkpoints.SINGLE)
    assert torch.equal(written["0.weight"], before["0.weight"][[0, 3, 7]])
    assert torch.equal(written["2.weight"], before["2.weight"][:, [0, 3, 7]])
    assert written["2.bias"].dtype == dtype


def test_one_tensor_is_in_memory_at_a_time(given, tmp_path, monkeypatch):
    model, graph, keep, source = given
    read, alive = tensor_stream.Source.read, []

    def watched(shard, name):
        assert sum(tensor() is not None for tensor in alive) == 0
        found = read(shard, name)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(tensor_stream.Source, "read", watched)
    prunus.shrink_checkpoint(source, keep, tmp_path / "out", graph=graph, model=model)
    assert len(alive) == 7


def test_a_full_disk_leaves_nothing(given, tmp_path, monkeypatch):
    model, graph, keep, source = given
    read = tensor_stream.Source.read

    def full(shard, name):
        if shard.path.name.startswith("model-00002"):  # the first is written, the second begun
            raise OSError(28, "No space left on device")
        return read(shard, name)

    monkeypatch.setattr(tensor_stream.Source, "read", full)
    with pytest.raises(PrunusError, match="No space left"):
        prunus.shrink_checkpoint(source, keep, tmp_path / "out", graph=graph, model=model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_the_index_of_a_single_shard_stays(given, tmp_path):
    model, graph, keep, source = given
    file = "model-00001-of-00001.safetensors"
    shards = sorted(source.glob("*.safetensors"))
    held = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for shard in shards:
        shard.unlink()
    save_file(held, source / file, {"format": "pt"})
    (source / checkpoints.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(held, file)}))
    prunus.shrink_checkpoint(source, keep, tmp_path / "out", graph=graph, model=model)
    written = json.loads((tmp_path / "out" / checkpoints.INDEX).read_text())
    assert written["weight_map"] == dict.fromkeys(held, file)
    assert load_file(tmp_path / "out" / file).keys() == held.keys()


def test_damage_is_found_before_anything_is_written(given, tmp_path):
    model, graph, keep, source = given
    shard = sorted(source.glob("*.safetensors"))[1]
    whole = shard.read_bytes()

    def refused(match, kind=FileError, **changed):
        arguments = {"source": source, "keep": keep, "out": tmp_path / "out", "graph": graph, "model": model}
        with pytest.raises(kind, match=match):
            prunus.shrink_checkpoint(**arguments | changed)
        assert not (tmp_path / "out").exists()

    shard.write_bytes(whole[:-3])
    refused("not a whole safetensors file")
    shard.unlink()
    refused("does not exist")
    save_file({"up.bias": torch.zeros(8)}, shard)
    refused("do not agree about")
    shard.write_bytes(whole)
    other = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    other_graph = prunus.trace(other, torch.randn(2, 3))
    refused("not of the model that was traced", graph=other_graph, model=other, keep={})
    refused("axis", UserError, keep={"elsewhere": [0]})
    refused("config.json", model=None)
    refused("holds neither", source=tmp_path)


def test_a_folder_in_use_is_refused(given, tmp_path):
    model, graph, keep, source = given
    (tmp_path / "out").mkdir()
    prunus.shrink_checkpoint(source, keep, tmp_path / "out", graph=graph, model=model)  # empty: taken
    with pytest.raises(UserError, match="in use"):
        prunus.shrink_checkpoint(source, keep, tmp_path / "out", graph=graph, model=model)
    with pytest.raises(PrunusError, match="could not write"):
        within = tmp_path / "out" / "keep.json" / "folder"  # of a file
        prunus.shrink_checkpoint(source, keep, within, graph=graph, model=model)


def test_types_that_torch_cannot_index_are_named_before_anything_is_written(given, tmp_path):
    model, graph, keep, source = given
    header = json.dumps({"up.bias": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}}).encode()
    sorted(source.glob("*.safetensors"))[0].write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(FileError, match=r"up\.bias is F8_E8M0, a type that cannot be cut"):
        prunus.shrink_checkpoint(source, keep, tmp_path / "out", graph=graph, model=model)
    assert not (tmp_path / "out").exists()


def test_a_llama_is_cut_from_its_folder_alone(tmp_path):
    transformers = imported_beside_torchvision("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "a", max_shard_size="6KB")
    inputs = {"input_ids": torch.randint(48, (1, 7))}
    graph = prunus.trace(model, inputs)
    keep = {axis: list(range(1, 24, 2)) for axis in graph.axes if axis.endswith("gate_proj")}
    assert len(keep) == 2
    prunus.shrink_checkpoint(tmp_path / "a", keep, tmp_path / "b")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    expected = prunus.shrink(model, graph, keep)
    assert again.config.intermediate_size == 12 and len(list((tmp_path / "b").glob("*.safetensors"))) > 2
    for small in (again, prunus.load(tmp_path / "b", model)):
        there = small.state_dict()
        assert all(torch.equal(tensor, there[name]) for name, tensor in expected.state_dict().items())
        torch.testing.assert_close(small(**inputs).logits, expected(**inputs).logits, rtol=1e-5, atol=1e-6)


def test_a_cut_that_no_config_says_is_written_with_a_warning(tmp_path):
    transformers = imported_beside_torchvision("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=48, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "a")
    inputs = {"input_ids": torch.randint(48, (1, 7))}
    graph = prunus.trace(model, inputs)
    (axis,) = [name for name in graph.axes if name.startswith("transformer.h.1.mlp")]
    keep = {axis: [0, 5, 9]}
    with pytest.warns(UserWarning, match="from_pretrained does not"):
        prunus.shrink_checkpoint(tmp_path / "a", keep, tmp_path / "b", graph=graph, model=model)
    same = [(tmp_path / folder / "config.json").read_text() for folder in "ab"]
    assert same[0] == same[1]
    found = prunus.load(tmp_path / "b", model)(**inputs).logits
    assert torch.equal(found, prunus.shrink(model, graph, keep)(**inputs).logits)


OF_LAYERS = {
    "Llama": {},
    "Qwen2": {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 4}
    | {"use_sliding_window": True},
    "Gemma2": {"head_dim": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "GPTNeoX": {"num_key_value_heads": None},
}


def decoder(transformers, name, **more):
    torch.manual_seed(0)
    sizes = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{name}Config")(**sizes | OF_LAYERS[name] | more)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("widths", [False, True], ids=["depth", "depth+widths"])
@pytest.mark.parametrize("name", OF_LAYERS)
def test_layers_are_left_out_as_shrink_and_save_pretrained_do_it(name, widths, tmp_path):
    transformers = imported_beside_torchvision("transformers")
    model = decoder(transformers, name)
    model.save_pretrained(tmp_path / "a", max_shard_size="6KB")
    inputs = {"input_ids": torch.randint(48, (1, 7))}
    graph = prunus.trace(model, inputs)
    layers = [block for block in graph.blocks.values() if block.module.rpartition(".")[2].isdigit()]
    keep = {layers[number].axis: [] for number in (1, 2)}
    if widths:
        keep |= {axis: list(range(1, 24, 2)) for axis, kind in graph.kinds.items() if kind == "mlp"}
    small = prunus.shrink(model, graph, keep)
    small.save_pretrained(tmp_path / "b")
    prunus.shrink_checkpoint(tmp_path / "a", keep, tmp_path / "c")
    there, here = (_tensors(tmp_path / folder) for folder in "bc")
    assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in there)
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in "bc"]
    assert configs[0] == configs[1] and configs[0]["num_hidden_layers"] == 2
    again = type(model).from_pretrained(tmp_path / "c").eval()
    for loaded in (again, prunus.load(tmp_path / "c", model)):
        torch.testing.assert_close(
            loaded(**inputs).logits, small(**inputs).logits, rtol=1e-5, atol=1e-6, check_dtype=False
        )
    told = [
        each.generate(**inputs, do_sample=False, max_new_tokens=4, min_new_tokens=4)
        for each in (again, small)
    ]
    assert torch.equal(*told)


def _tensors(folder):
    """All tensors of a checkpoint, and that its index names them."""
    found = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    if (folder / checkpoints.INDEX).exists():
        weight_map = json.loads((folder / checkpoints.INDEX).read_text())["weight_map"]
        assert weight_map == {name: file for file, inside in found.items() for name in inside}
    assert all(found.values())  # no file is empty
    return {name: tensor for inside in found.values() for name, tensor in inside.items()}


@pytest.mark.parametrize("skipped", ["model.layers.1.self_attn", "model.layers.2.mlp"])
def test_a_block_that_is_no_layer_is_refused_before_anything_is_written(skipped, tmp_path):
    transformers = imported_beside_torchvision("transformers")
    decoder(transformers, "Llama").save_pretrained(tmp_path / "a")
    keep = {f"{skipped}:depth": [], "model.layers.3:depth": []}
    with pytest.raises(UserError, match=f"keep skips {skipped}, but a checkpoint can lack only whole layers"):
        prunus.shrink_checkpoint(tmp_path / "a", keep, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_layers_of_a_model_of_the_user_are_left_out(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), *(Link() for _ in range(3)), nn.Linear(6, 2)).eval()
    (tmp_path / "source").mkdir()
    save_file(model.state_dict(), tmp_path / "source" / "model.safetensors", {"format": "pt"})
    x = torch.randn(2, 4)
    graph = prunus.trace(model, x)
    keep = {"2:depth": [], "1.inner": [0, 2]} if "1.inner" in graph.axes else {"2:depth": []}
    prunus.shrink_checkpoint(tmp_path / "source", keep, tmp_path / "out", graph=graph, model=model)
    found = prunus.load(tmp_path / "out", model)
    assert len(found) == 4
    assert torch.equal(found(x), prunus.shrink(model, graph, keep)(x))


def test_a_full_disk_leaves_nothing_of_layers(tmp_path, monkeypatch):
    transformers = imported_beside_torchvision("transformers")
    decoder(transformers, "Llama").save_pretrained(tmp_path / "a", max_shard_size="6KB")
    calls = []

    def failing(path, *given):
        calls.append(path)
        if len(calls) == 2:
            raise OSError("No space left on device")
        return tensor_stream.write(path, *given)

    monkeypatch.setattr(checkpoints, "write", failing)
    with pytest.raises(PrunusError, match="No space left"):
        prunus.shrink_checkpoint(tmp_path / "a", {"model.layers.1:depth": []}, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


class Link(nn.Module):
    """A residual block."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.inner(x)


def _check_reading(folder, model, small):
    """Both ways to read a cut checkpoint give the answers of the small model."""
    with torch.no_grad():
        for loaded in (type(model).from_pretrained(folder).eval(), prunus.load(folder, model)):
            assert torch.equal(loaded(mixtures.TOKENS).logits, small(mixtures.TOKENS).logits)


@pytest.mark.parametrize("name", OF_FAMILY)
def test_experts_that_are_stored_one_by_one_are_cut_as_shrink_and_save_pretrained_do_it(name, tmp_path):
    """The class stacks them as it loads them; transformers itself says how."""
    model = mixture(name, num_hidden_layers=3, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    graph = prunus.trace(model, {"input_ids": mixtures.TOKENS})
    kinds = graph.kinds.items()
    keep = {axis: [0, 2, 3] for axis, kind in kinds if kind == "experts"}
    keep |= {axis: list(range(4, 12)) for axis, kind in kinds if kind == "mlp"} | {"model.layers.1:depth": []}
    small = prunus.shrink(model, graph, keep)
    small.save_pretrained(tmp_path / "b")
    prunus.shrink_checkpoint(tmp_path / "a", keep, tmp_path / "c", graph=graph, model=model)
    there, here = (_tensors(tmp_path / folder) for folder in "bc")
    assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in there)
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in "bc"]
    assert configs[0] == configs[1]
    _check_reading(tmp_path / "c", model, small)


def test_other_numbers_of_experts_in_each_layer_are_read_by_load_alone(tmp_path):
    model = mixture("Mixtral")
    model.save_pretrained(tmp_path / "a")
    keep = {"model.layers.0.mlp.gate": [1, 2, 3], "model.layers.1.mlp.gate": [0, 3]}
    with pytest.warns(UserWarning, match="from_pretrained does not"):
        prunus.shrink_checkpoint(tmp_path / "a", keep, tmp_path / "b")
    small = prunus.shrink(model, prunus.trace(model, {"input_ids": mixtures.TOKENS}), keep)
    with torch.no_grad():
        assert torch.equal(
            prunus.load(tmp_path / "b", model)(mixtures.TOKENS).logits, small(mixtures.TOKENS).logits
        )


def test_experts_that_are_stored_as_the_class_holds_them_are_cut_too(tmp_path):
    model = mixture("Mixtral")
    model.save_pretrained(tmp_path / "a", save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in _tensors(tmp_path / "a")
    keep = {f"model.layers.{n}.mlp.gate": [1, 2] for n in (0, 1)}
    prunus.shrink_checkpoint(tmp_path / "a", keep, tmp_path / "b")
    small = prunus.shrink(model, prunus.trace(model, {"input_ids": mixtures.TOKENS}), keep)
    _check_reading(tmp_path / "b", model, small)


def test_an_expert_that_is_missing_is_named(tmp_path):
    model = mixture("Mixtral")
    model.save_pretrained(tmp_path / "a")
    held = load_file(tmp_path / "a" / "model.safetensors")
    del held["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    save_file(held, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    with pytest.raises(FileError, match=r"model\.layers\.1\.mlp\.experts\.gate_up_proj is missing there"):
        prunus.shrink_checkpoint(tmp_path / "a", {}, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_conversion_that_computes_is_refused_in_words(tmp_path, monkeypatch):
    model = mixture("Mixtral")
    model.save_pretrained(tmp_path / "a")
    monkeypatch.setattr(
        "transformers.core_model_loading.revert_weight_conversion",
        lambda model, tensors: {name: tensor + 0 for name, tensor in tensors.items()},
    )
    with pytest.raises(FileError, match=r"otherwise than MixtralForCausalLM holds them.*from_pretrained"):
        prunus.shrink_checkpoint(tmp_path / "a", {}, tmp_path / "out")


def test_tensors_that_are_stored_turned_round_are_refused_in_words(tmp_path, monkeypatch):
    model = mixture("Mixtral")

    def turned(model, tensors):
        return {
            name: tensor.transpose(0, 1).contiguous() if name.endswith("q_proj.weight") else tensor
            for name, tensor in tensors.items()
        }

    monkeypatch.setattr("transformers.core_model_loading.revert_weight_conversion", turned)
    (tmp_path / "a").mkdir()
    model.config.architectures = ["MixtralForCausalLM"]
    model.config.save_pretrained(tmp_path / "a")
    held = turned(model, model.state_dict())
    save_file(held, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="stored turned round"):
        prunus.shrink_checkpoint(tmp_path / "a", {}, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_checkpoints_of_models_that_need_images_are_refused_in_words(tmp_path):
    transformers = imported_beside_torchvision("transformers")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=4)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "a")
    with pytest.raises(PrunusError, match=r"does not say on which inputs it runs.*graph="):
        prunus.shrink_checkpoint(tmp_path / "a", {}, tmp_path / "out")


def test_a_model_without_weights_is_refused_in_words(tmp_path):
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = prunus.trace(empty, torch.randn(2, 3))
    scores, keep = prunus.scores.magnitude(empty, graph), {"0": [0, 3]}
    with pytest.raises(UserError, match="hold no numbers, because they are on the meta device"):
        prunus.select(graph, scores, prunus.Budget(macs=0.5))
    for refused in (prunus.shrink, prunus.verify):
        with pytest.raises(UserError, match=r"0\.weight is on the meta device. Prove it with a model"):
            refused(empty, graph, keep)
    small = prunus.shrink(empty, graph, keep, verify="off")
    with pytest.raises(FileError, match=r"nothing to save: 0\.weight of this model holds no numbers"):
        prunus.save(tmp_path / "out", small, keep, graph)
    assert not (tmp_path / "out").exists()


def test_a_save_does_not_overwrite_the_model_before_the_cut(given, tmp_path):
    """In the folder of save_pretrained the original's weights were lost without a word."""
    model, graph, keep, _ = given
    small, folder = prunus.shrink(model, graph, keep), tmp_path / "original"
    folder.mkdir()
    whole = {name: tensor for name, tensor in model.state_dict().items() if name != "last.weight"}
    save_file(whole, folder / checkpoints.SINGLE)
    before = (folder / checkpoints.SINGLE).read_bytes()
    with pytest.raises(FileError, match="holds the model before the cut"):
        prunus.save(folder, small, keep, graph)
    assert (folder / checkpoints.SINGLE).read_bytes() == before and not (folder / "keep.json").exists()
    prunus.save(tmp_path / "new", small, keep, graph)
    (tmp_path / "new" / "keep.json").unlink()  # as an interrupted save leaves it
    prunus.save(tmp_path / "new", small, keep, graph)
