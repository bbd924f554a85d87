"""Files that are missing, damaged, or of another model are refused by `load` and `save`, with a clear message."""

import json

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import FileError
from prunus.export import load_keep

X = torch.linspace(-1, 1, 70).view(2, 5, 7)


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.fixture
def saved(tmp_path):
    """A model, its graph, and a folder in which two of its units are kept."""
    model = perceptron()
    graph = prunus.trace(model, X)
    prunus.save(tmp_path, prunus.shrink(model, graph, {"0": [1, 2]}), {"0": [1, 2]}, graph)
    return model, graph, tmp_path


def test_what_is_saved_is_what_is_loaded(saved):
    model, graph, folder = saved
    assert load_keep(folder) == {"0": [1, 2]}
    small = prunus.load(folder, model)
    assert torch.equal(small(X), prunus.shrink(model, graph, {"0": [1, 2]})(X))


@pytest.mark.parametrize("file", ["keep.json", "model.safetensors"])
@pytest.mark.parametrize("left", [0, 5, 100, -7])
def test_files_cut_short(saved, file, left):
    model, _, folder = saved
    (folder / file).write_bytes((folder / file).read_bytes()[:left])
    with pytest.raises(FileError, match=file):
        prunus.load(folder, model)
    (folder / file).unlink()
    with pytest.raises(FileError, match=file):
        prunus.load(folder, model)


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": 2},
        {"axes": []},
        {"axes": {"0": 3}},
        {"original_shapes": None},
        {"original_shapes": {"0.weight": "ab"}},
        {"attributes": []},
        {"attributes": {"nope": {"a": 1}}},
        {"attributes": {"0": {"nope": 1}}},
        {"attributes": {"0": {"forward": 1}}},
        {"attributes": {"0": {"in_features": "x"}}},
    ],
    ids=str,
)
def test_a_keep_file_with_wrong_content(saved, wrong):
    model, _, folder = saved
    record = json.loads((folder / "keep.json").read_text())
    (folder / "keep.json").write_text(json.dumps(record | wrong))
    with pytest.raises(FileError):
        prunus.load(folder, model)
        load_keep(folder)


def test_files_of_two_keeps_do_not_match(saved, tmp_path):
    model, graph, folder = saved
    prunus.save(tmp_path / "other", prunus.shrink(model, graph, {"0": [0, 3, 4]}), {"0": [0, 3, 4]}, graph)
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(FileError):
        prunus.load(folder, model)


def test_models_that_do_not_fit_a_file(saved):
    model, graph, folder = saved
    for other in (nn.Linear(7, 6), prunus.load(folder, model)):
        with pytest.raises(FileError, match="pruned from another"):
            prunus.load(folder, other)
    with pytest.raises(FileError, match="does not fit the keep"):
        prunus.save(folder, model, {"0": [1, 2]}, graph)
    assert load_keep(folder) == {"0": [1, 2]}
