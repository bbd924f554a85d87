"""Every method goes through one check, and the check finds what is wrong with a method. Source: ours."""

import random
from dataclasses import dataclass

import pytest
import torch

import prunus
from prunus import methods, scores
from prunus.errors import UserError
from prunus.methods import Pruned, Units
from prunus.selection import Budget
from prunus.testing import check_method, tiny_task

QUICK = {  # options that make a method quick on tiny networks
    "metapruning": ["images=8", "calibration=32", "generations=2", "population=6", "parents=2"],
    "pass": ["steps=24", "snapshots=2"],
    "dhp": ["epochs=20"],
}


@pytest.mark.filterwarnings("ignore:bn_scale. no norm")  # the attending network has axes without one
@pytest.mark.parametrize("name", [name for name in methods.names() if name not in ("structure", "sglp")])
def test_every_method_holds_what_it_should(name):
    check_method(name, options=QUICK.get(name, ()))


@pytest.mark.parametrize("worth", ["loss", "answers", "layers"])
def test_submodular_holds_it_whatever_units_are_worth(worth):
    check_method("submodular", options=[f"worth={worth}", "how=curves", "batches=2"])


@pytest.mark.parametrize("options", [[], ["delete=segments", "segments=2"], ["gradient=outputs"]])
def test_sglp_holds_it_where_there_are_blocks(options):
    check_method("sglp", options=["batches=2", *options], networks=["stacked"])


def test_sglp_refuses_a_network_without_blocks():
    with pytest.raises(UserError, match=r"at least 3 blocks .* has 0"):
        check_method("sglp", networks=["residual"])


def test_taylor_holds_it_when_blocks_compete():
    check_method("taylor", options=["batches=2", "depth=True"])


def test_structure_holds_it_with_a_folder(tmp_path):
    for network in ("residual", "concatenating", "attending"):
        task = tiny_task(network)
        keep = prunus.select(task.graph, scores.random(task.graph, 0), Budget(macs=0.5))
        prunus.save(tmp_path / network, prunus.shrink(task.model, task.graph, keep), keep, task.graph)
        check_method("structure", options=[f"of={tmp_path / network}"], networks=[network])


# ------------------------------------------------------------------- methods with a fault each, by "module:prune"
@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """No options but those of `select`."""


def greedy(task, budget, config, run):
    return Pruned(keep={})


def careless(task, budget, config, run):
    with torch.no_grad():
        next(task.model.parameters()).add_(1.0)
    return Pruned(keep=config.select(task.graph, scores.magnitude(task.model, task.graph), budget))


def fickle(task, budget, config, run):
    return Pruned(keep=config.select(task.graph, scores.random(task.graph, random.randrange(10**9)), budget))


def forgetful(task, budget, config, run):
    """Does not note how far it was, so what it does depends on how often it was begun."""
    begun = run.folder("prune") / "begun"
    begun.write_text((begun.read_text() if begun.exists() else "") + ".")
    with run.progress("scoring", 10) as step:
        for _ in range(10):
            step(1)
    seed = len(begun.read_text())
    return Pruned(keep=config.select(task.graph, scores.random(task.graph, seed), budget))


def test_a_fault_is_found_and_named():
    """Source: ours."""
    with pytest.raises(prunus.errors.PruningError, match="above the budget"):
        check_method(f"{__name__}:greedy")
    with pytest.raises(AssertionError, match="changed the task's model"):
        check_method(f"{__name__}:careless")
    with pytest.raises(AssertionError, match="run twice with one seed, keeps other units"):
        check_method(f"{__name__}:fickle")
    with pytest.raises(AssertionError, match="interrupted at 30 % and started again, keeps other units"):
        check_method(f"{__name__}:forgetful")


def test_a_method_needs_options_of_the_contract():
    with pytest.raises(UserError, match="derives from prunus"):
        check_method("prunus.scores:magnitude")


def test_a_method_needs_a_source(monkeypatch):
    monkeypatch.setattr("tests.testing.test_check.__doc__", "Keeps what it likes.")
    with pytest.raises(AssertionError, match="should name the paper"):
        check_method(f"{__name__}:careless")
