"""Pruning in steps: the last model is one cut of the original, killed and resumed to the same bits; what is refused."""

import itertools
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus import report
from prunus.errors import PruningError, UserError
from prunus.export import load, load_keep
from prunus.files import read_json
from prunus.methods import Method, Pruned, magnitude
from prunus.run import Settings, loading, preview, prune
from prunus.run.steps import compose, split_epochs, within
from prunus.selection import Budget, Sparsity, cost
from prunus.testing import tiny_task
from tests.lib.killing import Killed

SHORT = {"method": "magnitude", "base_epochs": 4, "epochs": 4, "steps": 3, "options": ("round_to=1",)}
THIRD = Budget(macs=0.3)


def stepped(out: Path, *, task=None, budget=THIRD, resume=False, progress=None, **settings) -> dict:
    """The result.json of a short run in three steps."""
    options = {"progress": progress} if progress else {}
    task = task or tiny_task("residual")
    chosen = Settings(**(SHORT | settings))
    prune(task=task, budget=budget, out=out, settings=chosen, resume=resume, **options)
    return read_json(out / "result.json")


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """The folder of a run in three steps."""
    folder = tmp_path_factory.mktemp("three") / "run"
    stepped(folder)
    return folder


def events(folder: Path, name: str) -> list[dict]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == name]


# ------------------------------------------------------------------------------------------ what is done
@pytest.mark.parametrize("network", ["residual", "concatenating", "attending"])
def test_every_step_cuts_what_the_step_before_kept(tmp_path, network):
    folder, task = tmp_path / "run", tiny_task(network)
    stepped(folder, task=tiny_task(network))
    whole = {name: list(range(axis.size)) for name, axis in task.graph.axes.items()}
    keeps = [whole, load_keep(folder / "prune" / "1"), load_keep(folder / "prune" / "2"), load_keep(folder)]
    costs = [cost.macs(task.graph, keep) / cost.macs(task.graph) for keep in keeps]
    for step, (before, after) in enumerate(itertools.pairwise(keeps), 1):
        assert all(set(after[name]) <= set(before[name]) for name in whole)
        assert costs[step] < costs[step - 1] and costs[step] <= 0.3 ** (step / 3) + 1e-9
    assert costs[3] > 0.2


def test_the_last_cut_is_made_in_the_model_that_the_step_before_trained(three):
    task = tiny_task("residual")
    model = load(three / "prune" / "2", task.model)
    graph = task.on(model).graph
    keep = within(load_keep(three / "prune" / "2"), load_keep(three), graph)
    ours, theirs = prunus.shrink(model, graph, keep), load(three / "pruned", task.model)
    assert all(torch.equal(t, theirs.state_dict()[name]) for name, t in ours.state_dict().items())
    straight = prunus.shrink(load_base(three), task.graph, load_keep(three)).state_dict()
    assert any(not torch.equal(straight[name], tensor) for name, tensor in theirs.state_dict().items())


def load_base(folder: Path) -> nn.Module:
    return loading.load_into(tiny_task("residual").model, folder / "base.safetensors")


def test_the_last_repair_is_to_the_model_that_the_step_before_trained(three):
    """So its layers have little to make good; those of the original, with weights of another network, would have."""
    before, after = read_json(three / "result.json")["repaired"]["unexplained"]
    assert after < before < 1


def test_the_epochs_that_were_asked_for_are_split_over_the_steps(three):
    trained = [(event["stage"], event.get("step")) for event in events(three, "epoch")]
    assert trained == [("base", None)] * 4 + [("prune", 1), ("prune", 2)] + [("recover", None)] * 2
    assert len(read_json(three / "result.json")["history"]["recover"]) == 2


@pytest.mark.parametrize(
    ("epochs", "number", "parts"),
    [
        (10, 1, [10]),
        (10, 3, [3, 3, 4]),
        (4, 3, [1, 1, 2]),
        (1, 3, [0, 0, 1]),
        (0, 2, [0, 0]),
        (2.5, 2, [1, 1.5]),
    ],
)
def test_epochs_are_split_evenly(epochs, number, parts):
    assert split_epochs(epochs, number) == parts


def test_log_and_report_say_what_each_step_did(three):
    steps = events(three, "step")
    assert [step["step"] for step in steps] == [1, 2]
    assert [step["share"] for step in steps] == pytest.approx([0.3 ** (1 / 3), 0.3 ** (2 / 3)])
    assert all({"repaired", "recovered"} <= step.keys() for step in steps)
    (chart,) = report.read_result(three / "result.json")["charts"]
    assert chart["title"] == "Pruned in steps"
    trained = [step["recovered"]["on_val"][step["recovered"]["kept"]] for step in steps]
    assert chart["series"]["trained"] == [[number, value] for number, value in enumerate(trained, 1)]


@pytest.mark.parametrize(
    "budget",
    [Budget(params=3000), Budget(macs=200_000), Budget(memory_mb=0.75)],
    ids=lambda budget: budget.name,
)
def test_every_unit_of_a_budget_is_met(tmp_path, budget):
    result = stepped(tmp_path / "run", budget=budget, epochs=0)
    limit = budget.limit(result["before"][budget.name])
    assert 0.75 * limit < result["after"][budget.name] <= limit


def test_the_fewest_units_are_those_of_the_original(tmp_path):
    result = stepped(tmp_path / "run", epochs=0, options=("round_to=1", "floor=0.5"))
    assert all(kept >= size / 2 for kept, size in result["widths"].values())


def test_frozen_layers_stay_whole_in_every_step(tmp_path):
    options = ("round_to=1", "freeze=stem")
    result = stepped(tmp_path / "run", budget=Budget(macs=0.6), epochs=0, options=options)
    assert result["widths"]["stem"] == [16, 16] and result["widths"]["a"][0] < 24


def test_without_repair_it_cuts_and_trains(tmp_path):
    result = stepped(tmp_path / "run", repair="off")
    assert "repaired" not in result and "repaired" not in events(tmp_path / "run", "step")[0]
    assert result["after"]["macs"] <= 0.3 * result["before"]["macs"]


# ------------------------------------------------------------------------------------- kills and settings
def killing_in(event: int):
    """A display of progress that ends the run at the start of the nth training after the base's."""
    seen = []

    @contextmanager
    def progress(label, total):
        seen.extend([label] if label.startswith("recovering") else [])

        def step(done=1, note=""):
            if label.startswith("recovering") and len(seen) == event and done:
                raise Killed

        yield step

    return progress


@pytest.mark.parametrize("event", [1, 2, 3])
def test_killed_in_any_step_it_ends_in_the_same_bits(tmp_path, three, event):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        stepped(folder, progress=killing_in(event))
    done = [step for step in (1, 2) if (folder / "prune" / str(step) / "step.json").exists()]
    assert done == [1, 2][: event - 1]
    stepped(folder, resume=True)
    for name in ("prune/1/model.safetensors", "prune/2/model.safetensors", "model.safetensors", "keep.json"):
        assert (folder / name).read_bytes() == (three / name).read_bytes()


def test_settings_of_the_training_hold_once_it_has_begun_between_steps(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        stepped(folder, progress=killing_in(2))
    for change in ({"epochs": 6}, {"repair": "off"}, {"steps": 2}):
        with pytest.raises(UserError, match=f"{next(iter(change))} was .*compute stage prune anew"):
            stepped(folder, resume=True, **change)


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("method", "budget", "words"),
    [
        ("dhp", THIRD, "while it trains"),
        ("pass", THIRD, "of the whole network"),
        ("metapruning", THIRD, "of the whole network"),
        ("structure", THIRD, "needs the folder|of the whole network"),
        ("lookahead", Sparsity(0.5), "sets single weights to zero"),
        ("magnitude", Budget(latency_ms=0.5), "milliseconds are measured"),
    ],
)
def test_what_does_not_go_with_steps_is_refused_before_anything_is_written(tmp_path, method, budget, words):
    with pytest.raises(UserError, match=words):
        stepped(tmp_path / "run", method=method, budget=budget, options=())
    assert not (tmp_path / "run").exists()


def test_a_method_that_brings_weights_is_refused(tmp_path, monkeypatch):
    def choose(task, budget, config, run):
        found = magnitude.prune(task, budget, config, run)
        return Pruned(keep=found.keep, weights=dict(task.model.state_dict()))

    method = Method("own", "Source: ours", magnitude.Config, choose)
    monkeypatch.setattr(prunus.run.settings, "find", lambda name: method)
    with pytest.raises(UserError, match="method own brings weights of its own"):
        stepped(tmp_path / "run")


def test_weights_behind_a_parametrisation_are_refused(tmp_path):
    task = tiny_task("residual")
    nn.utils.parametrizations.weight_norm(task.model.a)
    with pytest.raises(UserError, match=r"a\.\S+ stands behind a parametrisation"):
        stepped(tmp_path / "run", task=task.on(task.model))


def test_there_is_nothing_to_preview():
    with pytest.raises(UserError, match="training between steps"):
        preview(task=tiny_task("residual"), settings=Settings(**SHORT))


def test_other_axes_than_the_originals_are_refused():
    graph, other = tiny_task("residual").graph, tiny_task("attending").graph
    kept = {name: range(axis.size) for name, axis in graph.axes.items()}
    with pytest.raises(PruningError, match="not those of the original"):
        compose(graph, kept, other, {})
    half = {name: list(units)[::2] for name, units in kept.items()}
    assert compose(graph, kept, graph, half) == half and within(half, half, graph) == {
        name: list(range(len(units))) for name, units in half.items()
    }
