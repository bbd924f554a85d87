"""Files that are missing, damaged, or of another model are refused by `load` and `save`, with a clear message."""

import json
from functools import reduce

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import FileError
from prunus.export import load_keep
from prunus.files import read_tensors, write_tensors
from tests.lib.saved import unseal

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
    ("wrong", "words"),
    [
        ({"format": 4}, "is of format 4, but this version of Prunus reads formats 1 to 3"),
        ({"axes": []}, r"\$.axes: Expected object, got array. Save the model again"),
        ({"axes": {"0": 3}}, r"\$.axes\['0'\]: Expected object, got int, there is 3"),
        ({"axes": {"0": {"size": 6, "keep": [2, 1]}}}, r"\$.axes\['0'\]: Expected ascending indices below 6"),
        ({"axes": {"0": {"size": 6, "keep": [1, 6]}}}, r"\$.axes\['0'\]: Expected ascending indices below 6"),
        ({"original_shapes": None}, r"\$.original_shapes: Expected object, got null"),
        (
            {"original_shapes": {"0.weight": "ab"}},
            r"\$.original_shapes\['0.weight'\]: Expected array, got str",
        ),
        ({"shapes": {"0.weight": [2**63, 7]}}, r"\$.shapes\['0.weight'\]\[0\]: Expected int <="),
        ({"masks": {"nope": 3}}, "it masks 'nope', which has no shape"),
        ({"attributes": []}, r"\$.attributes: Expected object, got array"),
        ({"attributes": {"nope": {"a": 1}}}, "changes nope.a, which is not an integer of this model"),
        ({"attributes": {"0": {"nope": 1}}}, "changes 0.nope, which is not an integer of this model"),
        ({"attributes": {"0": {"forward": 1}}}, "changes 0.forward, which is not an integer of this model"),
        ({"attributes": {"0": {"in_features": "x"}}}, r"\$.attributes\['0'\]\['in_features'\]: Expected int"),
    ],
    ids=str,
)
def test_a_keep_file_with_wrong_content(saved, wrong, words):
    model, _, folder = saved
    unseal(folder, **wrong)
    with pytest.raises(FileError, match=words):
        prunus.load(folder, model)


def entries(record, *path):
    """The paths of all entries of a record, however deep."""
    inner = record.items() if isinstance(record, dict) else enumerate(record)
    for key, value in inner:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from entries(value, *path, key)


def test_no_entry_of_a_keep_file_can_be_removed_or_changed_unnoticed(saved):
    """Also where what is left fits together, as without the attributes that follow the units."""
    model, _, folder = saved
    file = folder / "keep.json"
    text = file.read_text()
    changes = [None, 1]
    for path in entries(json.loads(text)):
        for change in changes:
            damaged = json.loads(text)
            *outer, last = path
            place = reduce(lambda node, key: node[key], outer, damaged)
            if change is None:
                del place[last]
            elif place[last] == change:
                continue
            else:
                place[last] = change
            file.write_text(json.dumps(damaged))
            with pytest.raises(FileError, match=r"keep\.json"):
                prunus.load(folder, model)
    file.write_text(json.dumps(json.loads(text)))  # other spaces
    prunus.load(folder, model)


@pytest.mark.parametrize("bit", range(8))
def test_no_bit_of_a_weight_can_change_unnoticed(saved, bit):
    model, _, folder = saved
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 1 << bit
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(
        FileError, match=r"model\.safetensors does not match keep\.json: .* Save the model again"
    ):
        prunus.load(folder, model)


def test_a_model_saved_by_version_0_1_0_is_loaded(saved):
    model, _, folder = saved
    expected = prunus.load(folder, model)(X)
    unseal(folder)
    assert torch.equal(prunus.load(folder, model)(X), expected)


def test_tensors_of_another_type_are_refused_and_half_precision_is_not(saved):
    model, graph, folder = saved
    prunus.save(folder, prunus.load(folder, model).half(), {"0": [1, 2]}, graph)
    assert prunus.load(folder, model)[0].weight.dtype == torch.float16
    whole = read_tensors(folder / "model.safetensors")
    unseal(folder)
    write_tensors(folder / "model.safetensors", {name: tensor.int() for name, tensor in whole.items()})
    with pytest.raises(FileError, match=r"0.bias is torch.int32 there, torch.float32 in the model"):
        prunus.load(folder, model)


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
