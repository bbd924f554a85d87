"""A run on a model of transformers ends in a folder that transformers loads, with the tokenizer of its own."""

import pytest
import torch

import prunus
from prunus.export import export_pretrained
from prunus.graph import trace
from prunus.run import Settings, export_run
from prunus.surgery import shrink
from tests.lib.families import family
from tests.lib.texts import write_book

BRIEF = {"base_epochs": 0, "epochs": 1, "batch_size": 8, "precision": "no", "task_options": ("length=32",)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_run_on_a_folder_is_exported_to_a_folder(tmp_path):
    model, _ = family("gpt2", vocab_size=258, bos_token_id=257, eos_token_id=257)
    source = tmp_path / "dense"
    model.save_pretrained(source)
    (source / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    settings = Settings(options=("uniform=true",), **BRIEF)
    values = prunus.prune(
        f"hf:{source}",
        data=f"text:{write_book(tmp_path / 'book.txt', 24)}",
        task="lm",
        method="magnitude",
        budget=prunus.Budget(params=0.7),
        out=tmp_path / "run",
        settings=settings,
    ).values
    assert any("pretrained written" in line for line in export_run(tmp_path / "run", values))
    folder = tmp_path / "run" / "pretrained"
    loaded = type(model).from_pretrained(folder).eval()
    small = prunus.load(tmp_path / "run").model
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(tokens).logits, small(tokens).logits, atol=1e-5)
    assert loaded.num_parameters() <= 0.7 * model.num_parameters()
    assert (folder / "tokenizer_config.json").read_text() == (source / "tokenizer_config.json").read_text()


def test_a_model_that_its_config_does_not_make_is_not_written(tmp_path):
    model, inputs = family("llama")
    small = shrink(model, trace(model, inputs), {"model.layers.0.mlp.gate_proj": range(9)})
    line = export_pretrained(tmp_path / "run", small, inputs, tmp_path)
    assert line.startswith("pretrained not written: the config") and "uniform=True" in line
    assert not (tmp_path / "run").exists()


def test_a_folder_is_replaced_as_a_whole_and_gets_the_tokenizer(tmp_path):
    model, inputs = family("llama")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "special_tokens_map.json", "config.json", "old.safetensors"):
        (source / name).write_text(name)
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "old").touch()
    assert "largest difference" in export_pretrained(tmp_path, model, inputs, source)
    found = {file.name: file for file in (tmp_path / "pretrained").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "special_tokens_map.json"} <= found.keys()
    assert found.keys().isdisjoint({"old", "old.safetensors"})
    assert found["tokenizer.json"].read_text() == "tokenizer.json" != found["config.json"].read_text()
    assert {file.name for file in tmp_path.iterdir()} == {"source", "pretrained"}
