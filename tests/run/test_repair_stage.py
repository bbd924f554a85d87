"""The stage repair: the better model goes on and it is said, whatever the task; refusals, kills, and earlier runs."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import prunus
from prunus import report
from prunus.errors import FileError, PruningError, UserError
from prunus.export import load
from prunus.files import read_json, write_json
from prunus.inputs import count_examples
from prunus.methods import Pruned
from prunus.recover import calibration_batches, renew_norms
from prunus.run import Settings, prune, repairing
from prunus.selection import Sparsity, cost
from prunus.testing import tiny_task
from prunus.testing.networks import TinyClassification
from tests.lib import own_tasks
from tests.lib.killing import Killed

SHORT = {"method": "magnitude", "base_epochs": 10, "epochs": 1}


def tiny(out: Path, *, resume: bool = False, task=None, progress=None, **settings) -> dict:
    """The result.json of a short run of a tiny network."""
    task = task or tiny_task("residual")
    options = {"progress": progress} if progress else {}
    chosen = Settings(**(SHORT | settings))
    return prune(task=task, out=out, settings=chosen, resume=resume, **options).values


@pytest.fixture(scope="module")
def repaired(tmp_path_factory) -> Path:
    """The folder of a run that repairs."""
    folder = tmp_path_factory.mktemp("repaired") / "run"
    tiny(folder)
    return folder


@pytest.fixture(scope="module")
def unrepaired(tmp_path_factory) -> Path:
    """The folder of the same run without repair."""
    folder = tmp_path_factory.mktemp("unrepaired") / "run"
    tiny(folder, repair="off")
    return folder


def events(folder: Path, name: str) -> list[dict]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == name]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def without_clock(value):
    """JSON without what a clock said."""
    if isinstance(value, dict):
        timed = ("seconds", "latency_ms", "latency_spread_ms", "time")
        return {key: without_clock(each) for key, each in value.items() if key not in timed}
    return [without_clock(each) for each in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------ what it does and says
def test_the_repaired_model_goes_on_and_its_figures_are_its_own(repaired, unrepaired):
    result, task = read_json(repaired / "result.json"), tiny_task("residual")
    found = result["repaired"]
    assert found["kept"] == "repaired" and found["how"] == "order" and found["layers"] > 1
    model = load(repaired / "repaired", task.model)
    assert found["on_val"]["repaired"] == task.evaluate(model, task.data.val)["accuracy"]
    assert found["test"] == pytest.approx(task.evaluate(model, task.data.test))
    cut = load(repaired / "pruned", task.model)
    renew_norms(cut, calibration_batches(task.data.train, 0))
    assert found["on_val"]["cut"] == task.evaluate(cut, task.data.val)["accuracy"]
    assert found["on_val"]["repaired"] >= found["on_val"]["cut"]
    before, after = found["unexplained"]
    assert 0 < after < min(before, 1)
    (line,) = events(repaired, "repair")
    assert line["on_val"] == found["on_val"] and line["layers"] == found["layers"] and line["seconds"] > 0
    assert weights(repaired) != weights(unrepaired)


def test_recovery_begins_with_the_repaired_model(tmp_path):
    result = tiny(tmp_path / "run", epochs=0)
    final = load(tmp_path / "run", tiny_task("residual").model).state_dict()
    kept = load(tmp_path / "run" / "repaired", tiny_task("residual").model).state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in final.items())
    assert result["after"]["accuracy"] == result["repaired"]["test"]["accuracy"]


def test_a_run_without_repair_has_no_such_stage(unrepaired):
    result = read_json(unrepaired / "result.json")
    assert "repaired" not in result and "repair" not in result["seconds"]
    assert not (unrepaired / "stages" / "repair.json").exists() and not events(unrepaired, "repair")


def test_in_one_pass_it_says_the_same_things(tmp_path):
    found = tiny(tmp_path / "run", repair="once")["repaired"]
    assert found["how"] == "once" and found["layers"] > 1
    assert 0 < found["unexplained"][1] < found["unexplained"][0] < 1


def test_a_model_that_repair_makes_worse_goes_on_as_it_was_cut(tmp_path, unrepaired, monkeypatch):
    def damage(*arguments, **options):
        small, fitted = usual(*arguments, **options)
        with torch.no_grad():
            small.head.weight.neg_()
        return small, fitted

    usual = repairing.cut_and_fit
    monkeypatch.setattr(repairing, "cut_and_fit", damage)
    found = tiny(tmp_path / "run")["repaired"]
    assert found["kept"] == "cut" and found["on_val"]["repaired"] < found["on_val"]["cut"]
    assert "test" not in found and not (tmp_path / "run" / "repaired").exists()
    assert weights(tmp_path / "run") == weights(unrepaired)


# ------------------------------------------------------------------------------------------------ refusals
def refuse(*_, **__):
    raise PruningError("the models went apart at a.weight.")


def test_a_model_that_cannot_be_repaired_goes_on_as_it_was_cut_and_it_is_said(
    tmp_path, unrepaired, monkeypatch
):
    monkeypatch.setattr(repairing, "cut_and_fit", refuse)
    result = tiny(tmp_path / "run")
    assert result["repaired"] == {
        "how": "order",
        "kept": "cut",
        "refused": "the models went apart at a.weight.",
    }
    assert events(tmp_path / "run", "repair")[0]["refused"] in (tmp_path / "run" / "report.html").read_text()
    assert weights(tmp_path / "run") == weights(unrepaired)
    report.read_result(tmp_path / "run" / "result.json")


def test_asked_for_by_name_a_repair_that_is_refused_is_the_error(tmp_path, monkeypatch):
    monkeypatch.setattr(repairing, "cut_and_fit", refuse)
    with pytest.raises(PruningError, match=r"went apart at a\.weight"):
        tiny(tmp_path / "run", repair="order")
    assert not (tmp_path / "run" / "stages" / "repair.json").exists()
    tiny(tmp_path / "run", repair="off", resume=True)  # the setting may still be corrected


class Widening(torch.nn.Module):
    """A network that runs another layer where it is narrow, which changes no answer."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.more = inner, torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.inner(x)
        return logits if self.inner.stem.out_channels == 16 else logits + 0 * self.more(logits)


@pytest.mark.filterwarnings("ignore:2 parameters are never used")
def test_a_model_that_runs_other_operators_is_pruned_all_the_same(tmp_path):
    task = tiny_task("residual")
    task = task.on(Widening(task.model))
    found = tiny(tmp_path / "run", task=task, base_epochs=1, options=("how=uniform",))["repaired"]
    assert found["kept"] == "cut" and "same operators" in found["refused"]


def test_repair_of_single_weights_is_refused_before_anything_is_written(tmp_path):
    sparse = {"method": "lookahead", "budget": Sparsity(0.5), "task": tiny_task("residual")}
    with pytest.raises(UserError, match="lookahead sets single weights"):
        prunus.prune(out=tmp_path / "run", settings=Settings(repair="once"), **sparse)
    assert not (tmp_path / "run").exists()
    result = prunus.prune(out=tmp_path / "run", settings=Settings(base_epochs=0, epochs=0), **sparse)
    assert "repaired" not in result.values


# ------------------------------------------------------------------------------------------------- inputs
@pytest.mark.parametrize("make", [own_tasks.regression, own_tasks.multilabel, own_tasks.answering])
def test_inputs_by_keyword_and_by_position_are_repaired(tmp_path, make):
    task = make()
    found = tiny(tmp_path / "run", task=task, base_epochs=1)["repaired"]
    assert "refused" not in found and found["layers"]
    assert found["examples"] == len(task.data.train)
    metric, both = task.metric, found["on_val"]
    assert metric.is_worse(both["repaired"], both["cut"]) == (found["kept"] == "cut")


def test_a_network_of_attention_is_repaired(tmp_path):
    found = tiny(tmp_path / "run", task=tiny_task("attending"))["repaired"]
    assert found["layers"] > 1 and found["unexplained"][1] < found["unexplained"][0]


def test_no_more_examples_are_taken_than_memory_allows(monkeypatch):
    task = tiny_task("residual")
    keep = prunus.select(task.graph, prunus.scores.random(task.graph, 0), prunus.Budget(macs=0.5))
    both_mb = cost.memory_mb(task.graph) + cost.memory_mb(task.graph, keep)
    taken = {}
    for most in (None, 1000.5, 40.5, 0.5):
        if most:
            monkeypatch.setattr(repairing, "MOST_MB", most * both_mb)
        taken[most] = sum(map(count_examples, repairing.take_inputs(task, keep, 0)))
    assert taken == {None: 128, 1000.5: 128, 40.5: 32, 0.5: 1}
    monkeypatch.setattr(repairing, "EXAMPLES", 64)
    assert repairing.count_allowed(task.graph, keep, 1.0) == 1


def test_larger_inputs_than_the_example_count_as_so_much_more(monkeypatch):
    task = tiny_task("residual")
    keep = {name: list(range(axis.size)) for name, axis in task.graph.axes.items()}
    monkeypatch.setattr(repairing, "MOST_MB", 200.5 * cost.memory_mb(task.graph))
    assert [repairing.count_allowed(task.graph, keep, times) for times in (1.0, 4.0)] == [100, 25]


# ------------------------------------------------------------------------------------------ the training
class Unlearning(TinyClassification):
    """Classification whose training raises the loss."""

    def training_loss(self, output, target, recipe):
        return -super().training_loss(output, target, recipe).clamp_max(50)


def test_a_training_that_makes_it_worse_is_not_kept_and_it_is_said(tmp_path, repaired):
    kept = read_json(repaired / "result.json")["recovered"]
    assert kept["kept"] == "end" and kept["on_val"]["end"] >= kept["on_val"]["start"]
    assert "Fine-tuned: on val" in (repaired / "report.html").read_text()
    task = tiny_task("residual")
    worse = Unlearning(task.model, task.data)
    folder = tmp_path / "run"
    shutil.copytree(repaired, folder)
    for stage in ("recover", "evaluate"):
        (folder / "stages" / f"{stage}.json").unlink()
    shutil.rmtree(folder / "recover")
    settings = read_json(folder / "settings.json")
    write_json(folder / "settings.json", settings | {"task": "Unlearning"})
    result = tiny(folder, task=worse, resume=True, lr=0.5)
    found = result["recovered"]
    assert found["kept"] == "start" and found["on_val"]["end"] < found["on_val"]["start"]
    assert found["on_val"]["start"] == result["repaired"]["on_val"]["repaired"]
    assert result["after"]["accuracy"] == result["repaired"]["test"]["accuracy"]
    assert weights(folder) == (folder / "repaired" / "model.safetensors").read_bytes()
    assert events(folder, "recovered")[-1]["kept"] == "start"
    assert "so the model before it was kept" in (folder / "report.html").read_text()
    report.read_result(folder / "result.json")


# --------------------------------------------------------------------------------------- kills and records
def killing_at(label: str):
    """A display of progress that ends the run at the first step of something."""

    @contextmanager
    def progress(shown, total):
        def step(done=1, note=""):
            if shown == label and reached:
                raise Killed

        reached.extend([1] if shown in ("repairing", label) else [])
        yield step

    reached = []
    return progress


@pytest.mark.parametrize("label", ["repairing", "renewing norms", "comparing on val"])
def test_killed_in_the_stage_it_ends_in_the_same_bits(tmp_path, repaired, label):
    with pytest.raises(Killed):
        tiny(tmp_path / "run", progress=killing_at(label))
    assert (tmp_path / "run" / "stages" / "shrink.json").exists()
    assert not (tmp_path / "run" / "stages" / "repair.json").exists()
    tiny(tmp_path / "run", resume=True)
    one, other = (read_json(folder / "result.json") for folder in (repaired, tmp_path / "run"))
    for each in (one, other):
        del each["machine"]
    assert without_clock(one) == without_clock(other)
    assert weights(tmp_path / "run") == weights(repaired)


def test_killed_between_its_files_and_its_record_it_is_computed_again(tmp_path, repaired):
    copy = shutil.copytree(repaired, tmp_path / "copy")
    for stage in ("repair", "recover", "evaluate"):
        (copy / "stages" / f"{stage}.json").unlink()
    shutil.rmtree(copy / "recover")
    (copy / "repaired" / "model.safetensors").unlink()
    tiny(copy, resume=True)
    for name in ("repaired/model.safetensors", "repaired/keep.json", "model.safetensors"):
        assert (copy / name).read_bytes() == (repaired / name).read_bytes()


def test_the_setting_may_be_corrected_until_the_stage_is_done(tmp_path, repaired):
    copy = shutil.copytree(repaired, tmp_path / "copy")
    with pytest.raises(UserError, match="repair was None, is now 'once'"):
        tiny(copy, resume=True, repair="once")
    for stage in ("repair", "recover", "evaluate"):
        (copy / "stages" / f"{stage}.json").unlink()
    shutil.rmtree(copy / "recover")
    assert tiny(copy, resume=True, repair="once")["repaired"]["how"] == "once"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kept": "both"}, r"damaged at \$.repaired.kept"),
        ({"test": {}}, "repaired.test, should hold 'accuracy', a finite number"),
        ({"on_val": {"cut": 1.0}}, r"damaged at \$.repaired.on_val"),
        ({"refused": "no"}, "either refused or on_val"),
        ({"unexplained": [0.5]}, r"damaged at \$.repaired.unexplained"),
    ],
)
def test_a_damaged_record_is_found(tmp_path, repaired, change, words):
    copy = shutil.copytree(repaired, tmp_path / "copy")
    file = copy / "stages" / "repair.json"
    record = read_json(file)
    write_json(file, record | {"repaired": record["repaired"] | change})
    with pytest.raises(FileError, match=words):
        tiny(copy, resume=True)


def test_a_damaged_model_is_found(tmp_path, repaired):
    copy = shutil.copytree(repaired, tmp_path / "copy")
    file = copy / "repaired" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        FileError, match=r"repaired/model.safetensors is not the file that stage repair wrote"
    ):
        tiny(copy, resume=True)


# -------------------------------------------------------------------------------------------- earlier runs
def as_earlier(folder: Path) -> Path:
    """Take the setting away, which runs of earlier versions do not have."""
    settings = read_json(folder / "settings.json")
    write_json(folder / "settings.json", {k: v for k, v in settings.items() if k != "repair"})
    return folder


def test_a_run_of_an_earlier_version_ends_as_it_would_have(tmp_path, unrepaired):
    copy = as_earlier(shutil.copytree(unrepaired, tmp_path / "copy"))
    tiny(copy, resume=True)
    for stage in ("recover", "evaluate"):
        (copy / "stages" / f"{stage}.json").unlink()
    shutil.rmtree(copy / "recover")
    as_earlier(copy)
    for _ in range(2):  # the second time from the settings that the first time wrote
        result = tiny(copy, resume=True)
        assert "repaired" not in result and weights(copy) == weights(unrepaired)
        assert "repair" not in result["settings"]


def test_a_run_of_an_earlier_version_can_be_repaired_before_it_is_recovered(tmp_path, unrepaired):
    copy = as_earlier(shutil.copytree(unrepaired, tmp_path / "copy"))
    with pytest.raises(UserError, match="repair was 'off', is now 'order'"):
        tiny(copy, resume=True, repair="order")
    for stage in ("recover", "evaluate"):
        (copy / "stages" / f"{stage}.json").unlink()
    shutil.rmtree(copy / "recover")
    assert tiny(copy, resume=True, repair="order")["repaired"]["how"] == "order"


def test_weights_that_the_method_trained_are_the_ones_that_are_repaired(tmp_path, monkeypatch):
    """A method's weights of another network: the repaired model answers as they do, not as the base."""
    other = tiny_task("residual", seed=1).model

    def choose(self, model):
        keep = {name: list(range(max(1, axis.size - 1))) for name, axis in self.graph.axes.items()}
        return Pruned(keep=keep, weights=dict(other.named_parameters()) | dict(other.named_buffers()))

    monkeypatch.setattr(prunus.run.stages.Pipeline, "choose", choose)
    monkeypatch.setattr(prunus.run.checks, "check_budget", lambda *_: None)
    result = tiny(tmp_path / "run", epochs=0)
    assert result["repaired"]["unexplained"][1] < 0.2
