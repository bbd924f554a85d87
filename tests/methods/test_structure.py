"""A structure that another run found, put to use: the same units, or a refusal that says what differs."""

import copy

import pytest
import torch

import prunus
from prunus import cli
from prunus.errors import BudgetError, FileError, UserError
from prunus.export import load_keep
from prunus.methods.structure import Config
from prunus.selection import Budget, CostMeter, Metered
from tests.lib.nets import build


@pytest.fixture
def first(tmp_path):
    """A network, its graph, and the folder in which a half of it is."""
    torch.manual_seed(0)
    model, example = build("residual")
    graph = prunus.trace(model, example)
    keep = prunus.select(graph, prunus.scores.magnitude(model, graph), Budget(macs=0.5))
    prunus.save(tmp_path / "first", prunus.shrink(model, graph, keep), keep, graph)
    return model, example, keep, tmp_path / "first"


def test_another_network_keeps_the_same_units(first):
    model, example, keep, folder = first
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    graph = prunus.trace(other, example)
    found = Config(of=str(folder)).keep(graph, Budget(macs=0.5))
    assert found == {name: list(kept) for name, kept in keep.items()}


def test_what_costs_more_than_the_budget_is_refused(first):
    model, example, _, folder = first
    graph = prunus.trace(model, example)
    with pytest.raises(BudgetError, match=r"comes to .*, 0\.4\d+ of the .* before"):
        Config(of=str(folder)).keep(graph, Budget(macs=0.4))


class Clock(CostMeter):
    """A meter to which every network takes 9 of 10 ms, and which predicts 1."""

    def price(self, widths):
        return torch.ones(len(widths))

    def figures(self, keep):
        return {"original_ms": 10.0, "measured_ms": 9.0}

    def select(self, budget, propose):
        raise AssertionError("a structure is taken as it is")

    def local_copy(self):
        return self


def test_milliseconds_are_measured(first):
    model, example, _, folder = first
    graph, config = prunus.trace(model, example), Config(of=str(folder))
    assert config.keep(graph, Metered(latency_ms=0.95, meter=Clock()))
    with pytest.raises(BudgetError, match=r"0\.9000 of the 10 before"):
        config.keep(graph, Metered(latency_ms=0.5, meter=Clock()))


def test_another_architecture_is_refused_with_what_differs(first):
    other, example = build("concat")
    graph = prunus.trace(other, example)
    with pytest.raises(FileError, match=r"of a network with other axes: \w.* has (no|\d+) units there"):
        Config(of=str(first[3])).keep(graph, Budget(macs=0.5))


def test_a_folder_has_to_be_named_and_to_hold_a_keep(first, tmp_path):
    graph = prunus.trace(*first[:2])
    with pytest.raises(UserError, match="of=FOLDER"):
        Config().keep(graph, Budget(macs=0.5))
    with pytest.raises(FileError):
        Config(of=str(tmp_path / "nothing")).keep(graph, Budget(macs=0.5))


def ran(tmp_path, name, *options):
    """A small run in the folder `name`: its exit status."""
    asked = ["--model", "zoo:digits_resnet", "--data", "digits", "--base-epochs", "0", "--epochs", "0"]
    return cli.main(["run", *asked, "--out", str(tmp_path / name), *options])


def test_a_folder_without_a_structure_is_refused_before_anything_is_trained(tmp_path, capsys):
    assert ran(tmp_path, "run", "--method", "structure", "--set", f"of={tmp_path / 'nothing'}") != 0
    assert "keep.json" in capsys.readouterr().err
    assert not (tmp_path / "run" / "base.safetensors").exists()


def test_two_runs_end_in_the_same_widths(tmp_path):
    assert ran(tmp_path, "a", "--method", "magnitude") == 0
    assert (tmp_path / "a" / "base.safetensors").exists()
    assert ran(tmp_path, "b", "--method", "structure", "--set", f"of={tmp_path / 'a'}", "--seed", "1") == 0
    assert load_keep(tmp_path / "b") == load_keep(tmp_path / "a")
