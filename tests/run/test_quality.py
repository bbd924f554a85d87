"""Small real problems that are solved well: what makes results worse without an error fails here.

Digits, seconds. Beside each bound stands what it is for: with the fault it guards against, and without, over three
seeds, on one machine. The faults themselves are made by tests/campaign/guard.py.
"""

import pytest
import torch
from torch import nn

import prunus
from prunus import scores, zoo
from prunus.recover import recover
from prunus.run import Settings, prune
from prunus.tasks import Classification
from prunus.train import Recipe, fit

HALF, QUARTER = prunus.Budget(macs=0.5), prunus.Budget(macs=0.25)


def accuracy(model, data):
    return Classification(model, data).evaluate(model, data.test)["accuracy"]


@pytest.fixture(scope="module")
def trained(digits):
    """A convolutional network after four epochs."""
    torch.manual_seed(0)
    model = zoo.build("digits_resnet")
    task = Classification(model, digits)
    fit(model, task, task.recipe("scratch").adapt(epochs=4))
    return task


def cut(task, budget):
    """What Taylor scores leave of a network, and the units."""
    found = scores.taylor(task.model, task.graph, task.loss, task.data.train.batches(64))
    keep = prunus.select(task.graph, found, budget)
    return prunus.shrink(task.model, task.graph, keep), keep


def test_units_that_matter_stay(digits):
    """Without norms and without training: 0.81 to 0.87; the worst units 0.37 to 0.49."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    task = Classification(model, digits)
    fit(
        model,
        task,
        Recipe(epochs=6, batch_size=64, optimizer="adamw", lr=3e-3, weight_decay=0.01, precision="no"),
    )
    small, _ = cut(task, HALF)
    assert accuracy(small, digits) > 0.65


def test_renewed_norms_bring_most_of_a_cut_network_back(trained, digits):
    """0.85 to 0.90; as cut 0.25 to 0.37."""
    small, _ = cut(trained, HALF)
    recover(small, trained.on(small), trained.recipe("recover").adapt(epochs=0))
    assert accuracy(small, digits) > 0.65


def test_repair_brings_a_network_back_without_training(trained, digits):
    """0.96 to 0.97; norms alone 0.49 to 0.64."""
    _, keep = cut(trained, QUARTER)
    inputs = [x for x, _ in digits.train.batches(256, seed=0)]
    assert accuracy(prunus.repair(trained.model, trained.graph, keep, inputs), digits) > 0.85


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """A run of two epochs before and after, in which the smaller network learns from the base alone."""
    settings = Settings(base_epochs=2, epochs=2, distill_weight=1.0, repair="off")
    out = tmp_path_factory.mktemp("short") / "run"
    return prune("zoo:digits_resnet", data="digits", budget=QUARTER, out=out, settings=settings).values


def test_a_training_of_two_epochs_learns_and_does_not_end_in_its_warm_up(short_run):
    """0.88 to 0.92; with the warm-up of thirty epochs 0.34 to 0.68."""
    assert short_run["before"]["accuracy"] > 0.78


def test_the_smaller_network_learns_from_a_base_that_knows(short_run):
    """0.80 to 0.93; from an untrained base 0.06 to 0.14."""
    assert short_run["history"]["recover"][-1]["accuracy"] > 0.5
