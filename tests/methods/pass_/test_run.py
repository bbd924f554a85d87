"""PASS in a run: killed and resumed, in two processes, its hypernetwork handed on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import prunus
from prunus import cli
from prunus.charts import PNG, Heat, Lines, Picture
from prunus.data import load_data
from prunus.errors import UserError
from prunus.export import load_keep
from prunus.methods.pass_ import PASS, Config, prune
from prunus.tasks import Classification
from prunus.train import Beside, Recipe, fit
from tests.lib.dhp import small
from tests.lib.pass_ import HALF, X, assert_untouched, figure, searched, snapshot
from tests.lib.programs import kill_when_there
from tests.lib.two_processes import assert_trains_as_one


def test_a_keep_found_on_one_data_set_is_taken_on_another(tmp_path):
    """Structure transfer needs files alone: the units that stayed, applied to other weights of the same network."""
    search = searched()
    prunus.save(tmp_path, search.finish(), search.keep, search.graph)
    other = small(seed=5)
    found = prunus.shrink(other, prunus.trace(other, X), load_keep(tmp_path))
    assert prunus.macs(prunus.trace(found, X)) == figure(search, search.keep)
    assert torch.equal(found.stem.weight, other.stem.weight[search.keep["stem"]])


def test_every_image_of_val_is_looked_at_before_a_prompt_is_trained():
    """The third of them has another size; without a prompt sizes may differ."""
    sizes = (8, 8, 12, 8)
    batches = [(torch.randn(1, 1, side, side), torch.zeros(1, dtype=torch.long)) for side in sizes]
    task = prunus.Task(small(), train=batches[:2], val=batches, loss=torch.nn.functional.cross_entropy)
    seen = r"are \(1, 8, 8\), but 1 of 4 of val are not, the first being number 3 with \(1, 12, 12\).*prompt=none"
    with pytest.raises(UserError, match=seen):
        Config().check_task(task)
    Config(prompt="none").check_task(task)


# ------------------------------------------------------------------------------- resuming, and runs
@pytest.fixture(scope="module")
def tiny():
    """320 images for training, 70 for validation."""
    digits = load_data("digits")
    return replace(digits, train=digits.train.take(np.arange(320)))


class Stopping(Beside):
    """Raises KeyboardInterrupt after a step."""

    def __init__(self, search, stop_at):
        super().__init__(search)
        self.stop_at = stop_at

    def after_step(self, at, step, lr):
        super().after_step(at, step, lr)
        if step == self.stop_at:
            raise KeyboardInterrupt


def fitted(tiny, folder, stop_at=None):
    model = small()
    task = Classification(model, tiny)
    x, y = next(tiny.val.batches(64))
    config = Config(snapshots=5, prompt="random")
    score = lambda net: -task.loss(net(x), y).item()  # noqa: E731
    search = PASS(model, X, HALF, steps=12, config=config, score=score)
    recipe = Recipe(epochs=1.2, batch_size=32, optimizer="adamw", lr=1e-2, weight_decay=0.0, precision="no")
    fit(search, task, recipe, folder=folder, along=Stopping(search, stop_at))
    return search


@pytest.mark.parametrize("stop_at", [0, 7, 9])
def test_a_killed_search_goes_on_to_the_same_bits(tiny, tmp_path, monkeypatch, stop_at):
    straight = fitted(tiny, None)
    monkeypatch.setattr("prunus.train.loop.SAVE_EVERY_S", -1.0)
    with pytest.raises(KeyboardInterrupt):
        fitted(tiny, tmp_path, stop_at)
    resumed = fitted(tiny, tmp_path)
    assert json.dumps(resumed.state()) == json.dumps(straight.state())
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    straight.decide(), resumed.decide()
    assert straight.keep == resumed.keep and straight.done == 12


class Running:
    """The part of a run that a method uses."""

    seed = 0

    def __init__(self, path):
        self.path, self.logged = path, []

    def folder(self, name):
        (self.path / name).mkdir(parents=True, exist_ok=True)
        return self.path / name

    def log(self, event, **values):
        json.dumps(values)
        self.logged.append(event)

    def write(self, action):
        action()

    from prunus.progress import silent as progress

    progress = staticmethod(progress)


def test_the_method_in_a_run_and_its_hypernetwork_in_another(tiny, tmp_path):
    model = small()
    task, before = Classification(model, tiny), snapshot(model)
    run = Running(tmp_path / "first")
    found = prune(task, HALF, Config(steps=10, snapshots=2, held_out=30), run)
    graph = prunus.trace(model, X)
    assert prunus.macs(graph, found.keep) <= 0.5 * prunus.macs(graph) and found.weights is None
    assert task.data is tiny  # what was held out is held out of the search alone
    assert_untouched(model, before)
    kinds = [type(chart) for chart in found.charts]
    assert kinds == [Heat, Lines, Lines, Picture]
    assert len(found.charts[1].series["changed"]) == 10 and found.charts[3].png.startswith(PNG)
    assert [step for step, _ in found.charts[2].series["held out"]] == [0, 5, 10]

    file = tmp_path / "first/prune/hypernetwork.safetensors"
    other = Classification(small(seed=3), tiny)
    again = prune(other, HALF, Config(steps=0, hypernetwork=str(file)), Running(tmp_path / "second"))
    assert prunus.macs(graph, again.keep) <= 0.5 * prunus.macs(graph)
    assert [type(chart) for chart in again.charts] == [Picture]


def test_a_head_that_learned_is_handed_on(tiny, tmp_path):
    model = small()
    config = Config(steps=4, snapshots=0, train_also=("head.*",), lr=1e-2)
    found = prune(Classification(model, tiny), HALF, config, Running(tmp_path))
    assert found.weights.keys() == {n for n, _ in [*model.named_parameters(), *model.named_buffers()]}
    assert not torch.equal(found.weights["head.bias"], model.head.bias)
    assert torch.equal(found.weights["stem.weight"], model.stem.weight)


def test_a_run_killed_in_its_search_ends_in_the_same_files(tmp_path):
    common = [
        "run",
        "--model",
        "zoo:digits_resnet",
        "--data",
        "digits",
        "--base-epochs",
        "0",
        "--epochs",
        "0",
    ]
    common += ["--method", "pass", "--set", "steps=30", "--set", "lr=0.01", "--set", "held_out=100", "--out"]
    assert cli.main([*common, str(tmp_path / "straight")]) == 0
    search = tmp_path / "killed/prune/search/checkpoint.safetensors"
    kill_when_there([*common, str(tmp_path / "killed")], search)
    with safe_open(search, "pt") as opened:
        state = json.loads(opened.metadata()["state"])
    assert 0 < state["along"]["done"] < 30 and not (tmp_path / "killed/keep.json").exists()
    assert cli.main([*common, str(tmp_path / "killed"), "--resume"]) == 0
    for file in ("keep.json", "prune/hypernetwork.safetensors", "model.safetensors"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()
    page = (tmp_path / "killed/report.html").read_text()
    for title in ("Kept share of each axis", "Masks that changed in a step", "The prompt"):
        assert title in page


# ---------------------------------------------------------------------------------- several processes
def train_two(folder):
    """A search of six steps; its checkpoint stays in the folder."""
    data = load_data("tests.lib.two_processes:image_items")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    task = Classification(model, data)
    x, y = next(data.val.batches(50))

    def score(network):
        return -task.loss(network(x), y).item()

    search = PASS(model, data.example, HALF, steps=6, config=Config(snapshots=2), score=score)
    recipe = Recipe(epochs=0.6, batch_size=20, optimizer="adamw", lr=1e-3, weight_decay=0.0, precision="no")
    fit(search, task, recipe, folder=folder, along=Beside(search))
    assert len(search.tried) == 3 and search.done == 6


def test_two_processes_search_as_one_does(tmp_path):
    assert_trains_as_one(train_two, tmp_path)
