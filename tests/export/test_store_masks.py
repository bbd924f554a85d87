"""Masks on disk: bit-packed beside the weights, loadable from the files alone, refused if they do not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import prunus
from prunus.errors import FileError
from prunus.export import store
from prunus.sparse import maskable, masks
from prunus.surgery import copies
from tests.lib.nets import build, random_keep
from tests.lib.saved import unseal

X = torch.linspace(-1, 1, 70).view(2, 5, 7)


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def random_masks(model, graph, share=0.4):
    """Random masks for all weights that may be pruned; about `share` of each stays."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(graph.shapes[name], generator=generator) < share for name in maskable(graph)}


@pytest.fixture
def saved(tmp_path):
    """A model, its graph, a keep, masks, and a folder in which they are saved."""
    model = perceptron()
    graph = prunus.trace(model, X)
    keep = {"0": [1, 2, 5]}
    kept = masks.sliced(graph, keep, random_masks(model, graph))
    small = prunus.shrink(model, graph, keep)
    masks.hold(small, None, kept)
    store.save(tmp_path, small, keep, graph, kept)
    return model, graph, keep, kept, tmp_path


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["residual", "shuffle", "decoder", "norms"])
@pytest.mark.parametrize("final", [False, True])
def test_what_is_saved_is_what_is_loaded(name, final, tmp_path):
    model, example = build(name)
    graph = prunus.trace(model, example)
    keep = random_keep(graph)
    small = prunus.shrink(model, graph, keep)
    kept = masks.sliced(graph, keep, random_masks(model, graph))
    masks.hold(small, None, kept)
    expected = small(example)
    if final:
        masks.finalise(small)
    store.save(tmp_path, small, keep, graph, kept)
    assert same(store.load_masks(tmp_path), kept)
    loaded = prunus.load(tmp_path, model).eval()
    assert masks.held(loaded) == {}
    tensors = copies.effective_tensors(loaded)
    assert not any(tensors[n][~mask].any() for n, mask in kept.items())
    torch.testing.assert_close(loaded(example), expected)


def test_a_mask_takes_a_bit_for_each_weight(saved):
    *_, kept, folder = saved
    bits = load_file(folder / store.MASKS)
    assert {name: bit.numel() for name, bit in bits.items()} == {
        name: (mask.numel() + 7) // 8 for name, mask in kept.items()
    }


def test_folders_without_masks_load_as_before(saved, tmp_path):
    model, graph, keep, *_ = saved
    prunus.save(tmp_path / "dense", prunus.shrink(model, graph, keep), keep, graph)
    record = json.loads((tmp_path / "dense" / "keep.json").read_text())
    assert "masks" not in record and record["format"] == 2
    assert store.load_masks(tmp_path / "dense") == {}
    prunus.load(tmp_path / "dense", model)


def test_saving_without_masks_where_masks_were(saved):
    model, graph, keep, _, folder = saved
    prunus.save(folder, prunus.shrink(model, graph, keep), keep, graph)
    assert store.load_masks(folder) == {}


@pytest.mark.parametrize("left", [0, 5, 60, -1])
def test_files_cut_short(saved, left):
    *_, folder = saved
    file = folder / store.MASKS
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(FileError, match=store.MASKS):
        store.load_masks(folder)
    file.unlink()
    with pytest.raises(FileError, match=store.MASKS):
        store.load_masks(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda bits: bits.pop("0.weight"),
        lambda bits: bits.update(other=torch.zeros(3, dtype=torch.uint8)),
        lambda bits: bits.update({"0.weight": bits["0.weight"][:-1].clone()}),
        lambda bits: bits.update({"0.weight": bits["0.weight"].float()}),
        lambda bits: bits["0.weight"].__setitem__(0, bits["0.weight"][0] ^ 1),
        lambda bits: bits["2.weight"].__setitem__(-1, bits["2.weight"][-1] | 128),
    ],
    ids=["missing", "unknown", "too few", "no bytes", "a bit flipped", "a bit after the end"],
)
def test_masks_that_do_not_match_the_keep_file(saved, spoil):
    *_, folder = saved
    bits = load_file(folder / store.MASKS)
    spoil(bits)
    save_file(bits, folder / store.MASKS)
    with pytest.raises(FileError, match=r"does not match keep\.json: it has been changed"):
        store.load_masks(folder)
    unseal(folder)
    with pytest.raises(FileError, match="differ; save the model again"):
        store.load_masks(folder)


@pytest.mark.parametrize("wrong", [3, [], {"0.weight": "x"}, {"nope": 3}], ids=str)
def test_a_keep_file_with_wrong_masks(saved, wrong):
    *_, folder = saved
    unseal(folder, masks=wrong)
    with pytest.raises(FileError):
        store.load_masks(folder)


def test_what_cannot_be_saved_leaves_what_was_there(saved):
    model, graph, keep, kept, folder = saved
    small = prunus.shrink(model, graph, keep)
    with pytest.raises(FileError, match=r"weight is not zero where its mask"):
        store.save(folder, small, keep, graph, kept)
    with pytest.raises(FileError, match=r"0\.weight should be \(3, 7\)"):
        store.save(folder, small, keep, graph, random_masks(model, graph))
    with pytest.raises(FileError, match="no such weight"):
        store.save(folder, small, keep, graph, {"9.weight": kept["0.weight"]})
    assert same(store.load_masks(folder), kept)
