"""The mask network of PASS: its inputs, its files."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from prunus.errors import FileError, UserError
from prunus.methods.pass_ import PASS, Config
from tests.lib.dhp import small
from tests.lib.pass_ import HALF, X, masks_of, searched


def test_without_recurrence_no_axis_knows_of_another():
    for recurrent in (False, True):
        search = PASS(small(), X, HALF, config=Config(recurrent=recurrent, init="random", prompt="none"))
        before = search.scores()
        search.inputs[0] += 1.0
        changed = (search.scores() != before)[search.gates.places[search.names[-1]]]
        assert bool(changed.any()) is recurrent


def test_a_statistic_of_ones_own():
    search = PASS(
        small(),
        X,
        HALF,
        statistic=lambda model, graph: {n: torch.arange(a.size) for n, a in graph.axes.items()},
    )
    for name, units in masks_of(search).items():
        size = search.graph.axes[name].size
        assert units == list(range(size - len(units), size))


def test_units_that_are_all_alike_are_told_apart_by_nothing():
    """Not even the rounding of a sum of equal numbers makes a difference."""
    search = PASS(
        small(),
        X,
        HALF,
        statistic=lambda model, graph: {n: torch.full((a.size,), 0.1) for n, a in graph.axes.items()},
    )
    assert not search.statistics.any()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda size: torch.ones(3), r"16 finite numbers, but is of shape \(3,\)"),
        (lambda size: torch.full((size,), math.nan), "NaN"),
    ],
)
def test_a_statistic_that_is_none_is_refused(found, said):
    with pytest.raises(UserError, match=said):
        PASS(
            small(), X, HALF, statistic=lambda model, graph: {n: found(a.size) for n, a in graph.axes.items()}
        )
    with pytest.raises(UserError, match="of shape none"):
        PASS(small(), X, HALF, statistic=lambda model, graph: {})


# ------------------------------------------------------------------------- 10: again, saved, transferred
def test_the_same_seed_gives_the_same_masks():
    first, second, other = (searched(config=Config(init="random"), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.scores(), second.scores()) and first.finish() and second.finish()
    assert first.keep == second.keep and not torch.equal(first.scores(), other.scores())


def test_a_hypernetwork_goes_through_a_file_to_a_network_of_other_weights(tmp_path):
    file = tmp_path / "hypernetwork.safetensors"
    search = searched(config=Config(prompt_speed=10))
    search.save(file)
    again = PASS(small(), X, HALF, steps=0, config=Config(hypernetwork=str(file), prompt_speed=3))
    assert torch.equal(again.hypernetwork.heads, search.hypernetwork.heads)
    torch.testing.assert_close(again.prompt.canvas(), search.prompt.canvas())
    torch.testing.assert_close(again.scores(), search.scores())
    search.finish(), again.finish()
    assert again.keep == search.keep

    config = Config(hypernetwork=str(file), steps=3)
    other = searched(model=small(seed=9), config=config, steps=3)  # a short search goes on from it
    untaught = PASS(small(seed=9), X, HALF)
    assert not torch.allclose(other.scores() - other.statistics, untaught.scores() - untaught.statistics)
    assert torch.equal(other.statistics, untaught.statistics)  # of the new weights
    assert other.finish()(X).shape == (1, 10)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": Config(hidden=32)}, "hidden=64, not 32"),
        ({"config": Config(prompt="none")}, "prompt="),
        ({"model": "other"}, "its axis 0 is stem.16., the network's .*"),
    ],
)
def test_a_hypernetwork_of_another_network_is_refused(tmp_path, change, said):
    file = tmp_path / "hypernetwork.safetensors"
    searched(steps=1).save(file)
    config = replace(change.get("config", Config()), hypernetwork=str(file))
    model = (
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(288, 10)) if "model" in change else small()
    )
    with pytest.raises(FileError, match=said):
        PASS(model, X, HALF, config=config)


def test_files_that_are_no_hypernetworks_are_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(
        FileError,
        match=r"does not. Give a hypernetwork.safetensors of a run",
    ):
        PASS(small(), X, HALF, config=Config(hypernetwork=str(file)))
    with pytest.raises(FileError, match="does not exist"):
        PASS(small(), X, HALF, config=Config(hypernetwork=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda tensors, header: header.update(prunus_hypernetwork="{cut"), "is not readable as JSON"),
        (lambda tensors, header: header.update(prunus_hypernetwork="[1]"), "Expected object, got array"),
        (
            lambda tensors, header: header.update(prunus_hypernetwork='{"format": 1}'),
            "missing required field axes",
        ),
        (
            lambda tensors, header: header.update(prunus_hypernetwork='{"format": 1, "axes": [1]}'),
            r"\$.axes\[0\]: Expected array, got int, there is 1",
        ),
        (lambda tensors, header: tensors["hypernetwork.heads"].fill_(math.nan), "NaN"),
        (lambda tensors, header: tensors.pop("hypernetwork.heads"), "lacks tensors"),
        (lambda tensors, header: tensors.pop("prompt"), "lacks tensors"),
        (lambda tensors, header: tensors.update(prompt=torch.ones(1, 1, 1)), "lacks tensors"),
    ],
)
def test_hypernetworks_that_are_damaged_are_refused(tmp_path, spoil, said):
    file = tmp_path / "hypernetwork.safetensors"
    PASS(small(), X, HALF).save(file)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    tensors = load_file(file)
    spoil(tensors, header)
    save_file(tensors, file, header)
    with pytest.raises(FileError, match=said):
        PASS(small(), X, HALF, config=Config(hypernetwork=str(file)))


def test_a_hypernetwork_is_read_once(tmp_path):
    file = tmp_path / "hypernetwork.safetensors"
    PASS(small(), X, HALF).save(file)
    search = PASS(small(), X, HALF, steps=0, config=Config(hypernetwork=str(file)))
    file.unlink()
    assert search.finish()(X).shape == (1, 10)
