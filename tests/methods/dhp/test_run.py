"""DHP in a run, or in a loop of one's own: killed and resumed, in two processes."""

import io
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.data import load_data
from prunus.errors import UserError
from prunus.files import write_tensors
from prunus.methods.dhp import DHP, Config, prune
from prunus.progress import silent
from prunus.selection import Budget
from prunus.tasks import Classification
from prunus.train import Beside, Recipe, checkpoint, fit, loop
from tests.lib.dhp import X, batches, figure, searched, sgd, small, untouched
from tests.lib.two_processes import assert_trains_as_one


# ---------------------------------------------------------------------------------- I11: resuming
@pytest.fixture(scope="module")
def tiny():
    """160 images for training, 70 for validation."""
    digits = load_data("digits")
    return replace(digits, train=digits.train.take(np.arange(160)))


PLAIN = Recipe(epochs=6, batch_size=32, lr=0.05, warmup_epochs=0.5)  # 5 batches an epoch
SEARCHES = {
    "plain": (PLAIN, Config(round_to=1)),
    "floors": (
        PLAIN,
        Config(round_to=1, floor={"a": 0.8, "stem": 0.6}),
    ),  # reached early: they rest
    "adamw": (
        replace(PLAIN, optimizer="adamw", lr=3e-3),
        Config(round_to=1, start="scratch", cost_aware=True),
    ),
    "constant": (PLAIN, Config(strength=3.0, start="scratch", latents="normal", compact=False)),
    "paper": (PLAIN, Config(mode="paper", strength=0.5, factors=2)),
}


class Stopping(Beside):
    """Records when the weights became smaller and when it was decided; raises KeyboardInterrupt after a step."""

    def __init__(self, search, stop_at=None):
        super().__init__(search)
        self.stop_at, self.events = stop_at, []

    def after_step(self, at, step, lr):
        before = self.search.compacted.kept, self.search.keep
        super().after_step(at, step, lr)
        if (self.search.compacted.kept, self.search.keep) != before:
            self.events.append(step)
        if step == self.stop_at:
            raise KeyboardInterrupt


def search_of(name, tiny, folder, seed=0, stop_at=None):
    recipe, config = SEARCHES[name]
    model = small(seed)
    task = Classification(model, tiny)
    search = DHP(model, X, Budget(macs=0.6), steps=recipe.epochs * 5, config=config)
    along = Stopping(search, stop_at)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fit(model, task, recipe, folder=folder, along=along)
        search.decide()
    return search, along


@pytest.mark.parametrize("name", SEARCHES)
def test_i11_killed_anywhere_a_search_goes_on_bit_equal(name, tiny, tmp_path, monkeypatch):
    straight, along = search_of(name, tiny, None)
    events = along.events
    assert events and straight.done <= 30
    if name in ("plain", "floors", "adamw"):
        assert len(events) > 2  # cut in between
    last = straight.done - 1
    stops = sorted(
        {1, 2, *(step + after for step in (events[0], events[-1]) for after in (0, 1)), last - 1} - {last}
    )

    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)  # a checkpoint after every step
    for stop_at in stops:
        torch.manual_seed(stop_at)
        if stop_at < last:
            with pytest.raises(KeyboardInterrupt):
                seed = stop_at if stop_at > stops[0] else 0  # all that goes on must come from the checkpoint
                search_of(name, tiny, tmp_path, seed=seed, stop_at=stop_at)
    resumed, _ = search_of(name, tiny, tmp_path, seed=50)
    assert resumed.records == straight.records and resumed.keep == straight.keep
    assert json.dumps(resumed.state()) == json.dumps(straight.state())
    for (n, a), b in zip(
        straight.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), n
    again, along = search_of(name, tiny, tmp_path, seed=60)  # nothing left to do
    assert not along.events and again.keep == straight.keep
    for a, b in zip(straight.finish().parameters(), again.finish().parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("stop_at", [1, 20, 35, 50])
def test_i11_in_ones_own_loop_state_and_restore_go_beside_the_model_and_the_optimiser(stop_at):
    saved = []

    def each(search, optimizer):
        if search.done == stop_at:
            file = io.BytesIO()
            tensors = {"model": search.model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(tensors, file)
            saved.extend([file, json.dumps(search.state())])

    straight = searched(Budget(macs=0.5), Config(round_to=1), each=each)
    model = small(7)
    search = DHP(model, X, Budget(macs=0.5), steps=60, config=Config(round_to=1))
    optimizer = sgd(search.groups(weight_decay=5e-4))
    search.restore(json.loads(saved[1]))
    saved[0].seek(0)
    tensors = torch.load(saved[0], weights_only=True)
    model.load_state_dict(tensors["model"])
    optimizer.load_state_dict(tensors["optimizer"])
    for x, y in list(batches(60))[stop_at:]:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        search.step(optimizer)
    assert search.keep == straight.keep and search.records == straight.records
    for a, b in zip(straight.finish().parameters(), search.finish().parameters(), strict=True):
        assert torch.equal(a, b)


# --------------------------------------------------------------------------------- as a method of a run
class Folder:
    """The part of a run that a method uses."""

    seed, progress = 3, staticmethod(silent)

    def __init__(self, path):
        self.path, self.logged = path, []

    def folder(self, name):
        return self.path / name

    def log(self, event, **values):
        self.logged.append((event, json.loads(json.dumps(values))))


@pytest.mark.parametrize("mode", ["exact", "paper"])
def test_the_method_gives_units_weights_of_full_size_and_images(mode, tiny, tmp_path):
    model = small()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    task = Classification(model, tiny, recipe_fields={"epochs": 6, "batch_size": 32})
    config = Config(mode="paper", strength=0.5, factors=2) if mode == "paper" else Config()
    run = Folder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = prune(task, Budget(macs=0.5), config, run)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()) and untouched(
        model
    )  # left as it was
    graph = prunus.trace(model, X)
    assert prunus.macs(graph, found.keep) <= 0.5 * prunus.macs(graph)
    assert {n: t.shape for n, t in found.weights.items()} == {n: t.shape for n, t in before.items()}
    assert not all(torch.equal(t, before[n]) for n, t in found.weights.items())
    epochs = [values for event, values in run.logged if event == "epoch"]
    assert len(epochs) == 6 if mode == "exact" else 1 <= len(epochs) <= 6
    assert [event for event, _ in run.logged][-1] == "decided"

    cost, widths, fates = found.charts
    (points,) = cost.series.values()
    assert set(cost.references) == ({"plan", "budget"} if mode == "exact" else {"budget"})
    assert all(line[-1][0] == widths.x[-1] for lines in fates.thin.values() for line in lines)  # to the end
    assert points[0][1] > 0.9 and len(points) == len(widths.x) == len(widths.values[0]) > 5
    assert widths.rows == list(graph.axes) and all(0 < v <= 1 for row in widths.values for v in row)
    assert fates.thin["kept"] and fates.thin["removed"]
    kept, removed = ([line[-1][1] for line in fates.thin[fate]] for fate in ("kept", "removed"))
    assert sum(removed) / len(removed) < sum(kept) / len(kept)

    again = prune(task, Budget(macs=0.5), config, Folder(tmp_path))  # from its checkpoint
    assert again.keep == found.keep and all(
        torch.equal(t, found.weights[n]) for n, t in again.weights.items()
    )


def test_a_recipe_without_a_learning_rate_is_refused_at_once(tiny, tmp_path):
    task = Classification(small(), tiny, recipe_fields={"epochs": 6, "lr": 0.0})
    with pytest.raises(UserError, match="learning rate is 0"):
        prune(task, Budget(macs=0.5), Config(), Folder(tmp_path))


# ------------------------------------------------------------------------------- two processes
def train_two(folder):
    """Once without cutting, to be compared tensor by tensor, and once as it is by default, to the budget."""
    folder = Path(folder)
    data = load_data("tests.lib.two_processes:image_items")
    recipe = Recipe(epochs=2, batch_size=20, lr=0.1, precision="no")  # 20 steps
    for compact in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        config = Config(round_to=1, latents="norms", compact=compact)
        search = DHP(model, data.example, Budget(macs=0.5), steps=20, config=config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            where = None if compact else folder
            fit(model, Classification(model, data), recipe, folder=where, along=Beside(search))
            found = search.finish()
        assert figure(search, search.keep) <= 0.5 * figure(search)
        if not compact:
            state = {name: tensor.detach() for name, tensor in found.state_dict().items()}
            state["keep"] = torch.tensor(search.keep["1"])
            write_tensors(folder / checkpoint.NAME, state)


def test_two_processes_search_as_one_does(tmp_path):
    assert_trains_as_one(train_two, tmp_path)


def test_the_search_is_taught_by_the_network_it_starts_from(tiny, tmp_path, monkeypatch):
    """Without a learning rate of its own for tuning, and with the paper's weight decay in its mode."""
    seen = []

    def watched(model, task, recipe, **options):
        seen.append((recipe, options["teacher"]))
        return fit(model, task, recipe, **options)

    monkeypatch.setattr("prunus.methods.dhp.method.fit", watched)
    task = Classification(small(), tiny)
    for name, config in (("given", Config(epochs=1)), ("paper", Config(mode="paper", epochs=1))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            prune(task, Budget(macs=0.5), config, Folder(tmp_path / name))
    (given, teacher), (paper, none) = seen
    advised = task.recipe("recover")
    assert teacher is task.model and given.distill_weight == advised.distill_weight > 0
    assert (given.lr, given.weight_decay, given.epochs) == (advised.lr, advised.weight_decay, 1)
    assert none is None and paper.weight_decay == 1e-4
    task.search_fields = {"weight_decay": 0.3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        prune(task, Budget(macs=0.5), Config(mode="paper", epochs=1), Folder(tmp_path / "asked"))
    assert seen[-1][0].weight_decay == 0.3
