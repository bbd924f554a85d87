"""Fractions of epochs count exactly, warm-ups follow the epochs asked for, schedules end where they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from prunus.errors import UserError
from prunus.files import read_tensors, write_tensors
from prunus.tasks import Classification
from prunus.train import Along, Recipe, checkpoint, fit, loop
from prunus.train.recipe import learning_rate

BRIEF = Recipe(
    epochs=2.4, batch_size=32, lr=0.05, precision="no"
)  # 5 batches an epoch with `tiny`, so 12 steps


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


@pytest.fixture(scope="module")
def tiny(digits):
    """160 images to train on."""
    return replace(digits, train=digits.train.take(np.arange(160)), val=digits.val.take(np.arange(20)))


class Watched(Along):
    """Notes the rates, may stop a training after a step as a kill does, or end it as a search does."""

    def __init__(self, stop_after=None, ends_after=None):
        self.rates, self.stop_after, self.ends_after, self.done = [], stop_after, ends_after, 0

    @property
    def finished(self):
        return self.done == self.ends_after

    def after_step(self, at, step, lr):
        self.rates.append(lr)
        self.done += 1
        if self.done == self.stop_after:
            raise KeyboardInterrupt

    def state(self):
        return {"done": self.done}

    def restore(self, state):
        self.done = state["done"]


def train(data, recipe, folder=None, seed=0, **how):
    model, along = network(seed), Watched(**how)
    history = fit(model, Classification(model, data), recipe, folder=folder, along=along)
    return model, history, along.rates


def assert_equal(model, other):
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize(
    ("epochs", "steps", "rows"),
    [(2.4, 12, [1, 2, 2.4]), (2, 10, [1, 2]), (0.5, 2, [0.4]), (0.01, 1, [0.2]), (0, 0, [])],
)
def test_a_training_takes_as_many_steps_as_its_epochs_say(tiny, epochs, steps, rows):
    recipe = replace(BRIEF, epochs=epochs)
    _, history, rates = train(tiny, recipe)
    assert len(rates) == steps == recipe.count_steps(5)
    assert [row["epoch"] for row in history] == rows
    assert [row["lr"] for row in history][-1:] == rates[-1:]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_falls_to_nothing_at_the_last_step_of_a_fraction(tiny, schedule):
    _, _, rates = train(tiny, replace(BRIEF, schedule=schedule))
    whole = replace(BRIEF, schedule=schedule, epochs=12)  # an epoch for each step
    assert rates == pytest.approx([learning_rate(whole, step) for step in range(12)])
    assert learning_rate(whole, 12) == pytest.approx(0, abs=1e-12)
    assert min(rates) == rates[-1] > 0


def test_schedules_differ_after_the_warm_up_alone():
    recipes = [
        Recipe(epochs=8, lr=0.4, warmup_epochs=2, schedule=name) for name in ("cosine", "linear", "constant")
    ]
    assert [learning_rate(recipe, 2) for recipe in recipes] == pytest.approx([0.4] * 3)
    assert [learning_rate(recipe, 5) for recipe in recipes] == pytest.approx([0.2, 0.2, 0.4])
    assert [learning_rate(recipe, 6.5) for recipe in recipes] == pytest.approx([0.0586, 0.1, 0.4], abs=1e-4)
    assert len({learning_rate(recipe, 1) for recipe in recipes}) == 1


def test_a_fraction_resumes_bit_equal_wherever_it_was_stopped(tiny, tmp_path, monkeypatch):
    straight, history, _ = train(tiny, BRIEF)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)  # a checkpoint after every step
    for stop_after in (3, 5, 11):
        with pytest.raises(KeyboardInterrupt):
            train(tiny, BRIEF, tmp_path, stop_after=stop_after)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):  # while the end is measured
        patch.setattr(Classification, "evaluate", lambda *_: 1 / 0)
        train(tiny, BRIEF, tmp_path)
    resumed, again, rates = train(tiny, BRIEF, tmp_path, seed=5)
    assert not rates  # all steps were done
    assert [row["accuracy"] for row in again] == [row["accuracy"] for row in history]
    assert_equal(straight, resumed)


@pytest.mark.parametrize("ends_after", [4, 5, 7])
def test_a_search_that_has_ended_is_measured_after_a_kill(tiny, tmp_path, monkeypatch, ends_after):
    straight, history, rates = train(tiny, BRIEF, ends_after=ends_after)
    assert len(rates) == ends_after and history[-1]["epoch"] == ends_after / 5
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(loop, "end_epoch", lambda *_: 1 / 0)
        train(tiny, BRIEF, tmp_path, ends_after=min(ends_after, 5))
    resumed, again, _ = train(tiny, BRIEF, tmp_path, ends_after=ends_after)
    assert [row["epoch"] for row in again] == [row["epoch"] for row in history]
    assert_equal(straight, resumed)


def test_a_training_that_an_earlier_version_began_goes_on_with_its_own_warm_up(tiny, tmp_path, monkeypatch):
    """There the warm-up of two epochs out of thirty was as long when three were asked for."""
    recipe = replace(BRIEF, epochs=3, warmup_epochs=2.0)
    straight, *_ = train(tiny, recipe)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, recipe, tmp_path, stop_after=4)
    file = tmp_path / checkpoint.NAME
    with safe_open(file, "pt") as opened:
        state = json.loads(opened.metadata()["state"])
    del state["settings"]["schedule"]
    write_tensors(file, read_tensors(file), {"state": json.dumps(state)})

    with pytest.raises(UserError, match="was made with schedule = cosine, not linear"):
        train(tiny, replace(recipe, schedule="linear", warmup_epochs=0.2), tmp_path)
    resumed, *_ = train(tiny, replace(recipe, warmup_epochs=0.2), tmp_path)
    assert_equal(straight, resumed)


def test_the_warm_up_is_as_large_a_part_of_fewer_epochs_and_no_longer_of_more():
    advised = Recipe(epochs=30, warmup_epochs=2)
    assert [
        advised.adapt(epochs=epochs).warmup_epochs for epochs in (0, 0.5, 3, 15, 30, 60)
    ] == pytest.approx([0, 1 / 30, 0.2, 1, 2, 2])
    assert advised.adapt(lr=1.0) == replace(advised, lr=1.0)
    assert advised.adapt(epochs=None) == advised
    assert advised.adapt(epochs=3, warmup_epochs=1) == replace(advised, epochs=3, warmup_epochs=1)
    assert replace(advised, epochs=0).adapt(epochs=5).warmup_epochs == 2
    assert advised.adapt(epochs=3).adapt(epochs=3) == advised.adapt(epochs=3)


def test_fields_that_are_not_there_are_no_part_of_a_recipe():
    with pytest.raises(TypeError, match="rate"):
        Recipe(epochs=1).adapt(rate=1.0)
