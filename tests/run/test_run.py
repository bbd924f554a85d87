"""A run: what its folder holds, that it resumes to the same bits after a kill, and what it refuses."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch

import prunus
from prunus import zoo
from prunus.data import load_data
from prunus.errors import BudgetError, FileError, PrunusError, UserError
from prunus.export import load
from prunus.files import read_json, read_tensors
from prunus.recover import finetune
from prunus.report.rows import budget_text
from prunus.run import RunFolder, Settings, loading, preview, prune, read_result, stages
from prunus.run.folder import list_differences
from prunus.selection import Budget
from prunus.testing import tiny_task
from tests.lib.programs import ARGUMENTS, Program, figures, kill_when_there, program

HALF = Budget(macs=0.5)


def test_a_run_leaves_everything_promised(digits_run):
    result = read_json(digits_run / "result.json")
    for name in ("keep.json", "model.safetensors", "base.safetensors", "log.jsonl", "report.html"):
        assert (digits_run / name).stat().st_size
    assert result["after"]["macs"] <= 0.5 * result["before"]["macs"]
    assert result["verified"]["max_abs_error"] <= result["verified"]["tolerance"]
    assert result["before"]["accuracy"] > 0.5 and result["after"]["accuracy"] > 0.5
    assert set(result["seconds"]) == {"base", "prune", "shrink", "repair", "recover", "evaluate"}
    events = [json.loads(line) for line in (digits_run / "log.jsonl").read_text().splitlines()]
    assert [e["stage"] for e in events if e["event"] == "epoch"] == ["base"] * 3 + ["recover"] * 2


def test_the_saved_model_scores_what_the_result_says(digits_run):
    data = load_data("digits")
    small = load(digits_run, zoo.build("digits_resnet", classes=10, in_shape=(1, 8, 8))).eval()
    with torch.no_grad():
        right = sum(int((small(x).argmax(1) == y).sum()) for x, y in data.test.batches(256))
    assert right / len(data.test) == read_json(digits_run / "result.json")["after"]["accuracy"]


def test_a_finished_run_resumes_to_itself(digits_run):
    before = figures(digits_run)
    settings = Settings(base_epochs=3, epochs=2)
    prune("zoo:digits_resnet", data="digits", budget=HALF, out=digits_run, settings=settings, resume=True)
    assert figures(digits_run) == before


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A short run on tiny images, and the weights of the network that taught in its recovery."""
    taught = {}

    def recover(*arguments, teacher, **options):
        taught.update({name: tensor.clone() for name, tensor in teacher.state_dict().items()})
        return finetune.recover(*arguments, teacher=teacher, **options)

    settings = Settings(method="magnitude", base_epochs=2, epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "recover", recover)
        out = tmp_path_factory.mktemp("tiny") / "run"
        return prune(task=tiny_task("residual"), out=out, settings=settings), taught


def test_a_run_meets_several_limits_and_its_report_says_them(tmp_path):
    limits = {"macs": 0.7, "params": 0.6, "weights_mb": 0.5}
    settings = Settings(method="magnitude", base_epochs=0, epochs=0)
    prune(task=tiny_task("residual"), budget=Budget(**limits), out=tmp_path / "run", settings=settings)
    result = read_result(tmp_path / "run")
    assert result["budget"] == limits
    assert all(result["after"][name] <= share * result["before"][name] for name, share in limits.items())
    assert budget_text(result) == "macs <= 70 %, params <= 60 %, weights_mb <= 50 %"


def test_the_stored_base_teaches(tiny_run):
    result, taught = tiny_run
    base = read_tensors(result.folder / "base.safetensors")
    assert base and all(torch.equal(taught[name], tensor) for name, tensor in base.items())
    assert not torch.equal(taught["head.weight"], tiny_task("residual").model.head.weight)


def test_base_and_result_are_judged_on_the_test_set(tiny_run):
    result, _ = tiny_run
    task = tiny_task("residual")
    base = loading.load_into(task.model, result.folder / "base.safetensors")
    models = {"before": base, "after": result.model}
    on_test, on_val = (
        {name: task.evaluate(model, split)["loss"] for name, model in models.items()}
        for split in (task.data.test, task.data.val)
    )
    assert {name: result.values[name]["loss"] for name in models} == pytest.approx(on_test)
    assert len({*on_test.values(), *on_val.values()}) == 4


@pytest.mark.timeout(1200)  # five programs one after the other
def test_killed_three_times_it_ends_in_the_same_bits(tmp_path):
    arguments = [*ARGUMENTS[:5], "--base-epochs", "2", "--epochs", "2"]
    program([*arguments, "--out", str(tmp_path / "whole")])
    killed = tmp_path / "killed"
    moments = ("base/checkpoint.safetensors", "repaired/keep.json", "recover/checkpoint.safetensors")
    for number, moment in enumerate(moments):
        resume = ["--resume"] if number else []
        kill_when_there([*arguments, "--out", str(killed), *resume], killed / moment)
        assert not (killed / "result.json").exists()
    program([*arguments, "--out", str(killed), "--resume"])
    assert figures(killed) == figures(tmp_path / "whole")
    for name in ("model.safetensors", "keep.json", "base.safetensors"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_any_moment_it_ends_in_the_same_bits(tmp_path, digits_run):
    killed, seconds = tmp_path / "killed", 0.0
    while not (killed / "result.json").exists():
        with Program([*ARGUMENTS, "--out", str(killed), "--resume"]) as process:
            time.sleep(seconds)
            process.kill()
        seconds += 0.37
    program([*ARGUMENTS, "--out", str(killed), "--resume"])
    assert figures(killed) == figures(digits_run)


def test_a_given_model_is_pruned_as_it_is_and_stays_so(tmp_path):
    torch.manual_seed(0)
    model = zoo.build("digits_resnet", classes=10, in_shape=(1, 8, 8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = load_data("digits")
    settings = Settings(epochs=1, options=("how=uniform",))
    result = prune(
        model,
        data.example,
        budget=HALF,
        data=data,
        out=tmp_path / "run",
        method="magnitude",
        settings=settings,
    )
    assert result.values["history"]["base"] == []
    assert isinstance(result.model, type(model))
    assert sum(p.numel() for p in result.model.parameters()) == result.values["after"]["params"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_preview_trains_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings(method="magnitude")
    graph, found = preview("zoo:digits_resnet", data="digits", budget=HALF, settings=settings)
    assert found.masks is None
    assert 0 < sum(map(len, found.keep.values())) < sum(axis.size for axis in graph.axes.values())
    assert not list(tmp_path.iterdir())


def run_in(folder: Path, budget: Budget = HALF, resume: bool = False, **settings: object) -> None:
    prune(
        "zoo:digits_resnet",
        data="digits",
        budget=budget,
        out=folder,
        settings=Settings(**settings),
        resume=resume,
    )


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="--resume"):
        run_in(tmp_path)
    with pytest.raises(UserError, match="no run to resume"):
        run_in(tmp_path, resume=True)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_other_settings_are_refused_by_name(digits_run):
    with pytest.raises(UserError, match="seed was 0, is now 1; epochs was 2, is now 3"):
        run_in(digits_run, resume=True, base_epochs=3, seed=1, epochs=3)


def test_differences_are_named_with_their_path():
    assert list_differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b was 1, is now 3"]
    assert list_differences({}, {"new": 1}) == ["new was None, is now 1"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "tailor"}, "Did you mean taylor"),
        ({"options": ("batchs=3",)}, "Did you mean batches"),
        ({"options": ("batches=many",)}, "batches should be int, not 'many'"),
        ({"options": ("batches",)}, "name=value"),
        ({"options": ("freeze=nowhere*",)}, "nowhere"),
        ({"weights": "absent.safetensors"}, "absent.safetensors does not exist"),
        ({"precision": "fp8"}, "precision"),
        ({"seed": -1}, "seed should be a whole number from 0 to 4294967295, but is -1; the nearest is 0"),
        ({"lr": float("inf")}, "lr should be a number from 0 to 100, but is inf; the nearest is 100"),
        ({"base_lr": float("nan")}, "base_lr should be a number from 0 to 100, but is nan"),
        ({"image_size": 0}, "image_size should be a whole number from 1 to 16384, .* nearest is 1"),
        ({"batch_size": 0}, "batch_size should be a whole number from 1, but is 0; the nearest is 1"),
        ({"epochs": float("inf")}, "epochs should be a finite number from 0, but is inf"),
        ({"base_epochs": -1}, "base_epochs should be a finite number from 0, .* nearest is 0"),
        ({"distill_weight": 2}, "distill_weight should be a number from 0 to 1, but is 2; the nearest is 1"),
        ({"threads": 0}, "threads should be a whole number from 1, but is 0; the nearest is 1"),
        ({"runtime": "onxruntime"}, "Did you mean onnxruntime"),
        ({"options": ("round_to=0",)}, "round_to should be a whole number from 1, .* nearest is 1"),
        ({"options": ("floor=-1",)}, "floor should be an int from 0 .* nearest is 0"),
        ({"options": ("cap=1.5",)}, "a float from 0 to 1 .* nearest is 1.0"),
        ({"options": ("how=unifrom",)}, "unknown how 'unifrom'. Did you mean uniform"),
        (
            {"method": "dhp", "options": ("ramp=7",)},
            "ramp should be a number from 0.05 to 1, .* nearest is 1",
        ),
    ],
)
def test_bad_settings_are_refused_before_any_training(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        run_in(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("dhp", ("pressure=least", "strength=1"), "pressure=least sets the strength itself"),
        ("pass", ("snapshots=0", "held_out=9"), "no use for held_out"),
        ("metapruning", ("population=3", "mutants=5"), "more than the population"),
        ("lookahead", ("permute=True",), "permute=True goes with a pattern"),
        ("structure", (), "needs the folder of another run"),
    ],
)
def test_options_that_conflict_are_refused_before_data_is_read(tmp_path, method, options, words):
    settings = Settings(method=method, options=options)
    with pytest.raises(UserError, match=words):
        prune("zoo:digits_resnet", data="parquet:absent", out=tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


def test_a_budget_out_of_reach_is_refused_before_any_training(tmp_path):
    with pytest.raises(BudgetError):
        run_in(tmp_path / "run", budget=Budget(macs=0.0001))
    assert not (tmp_path / "run").exists()


def test_a_stage_that_fails_leaves_no_record(tmp_path):
    def fail() -> dict:
        raise PrunusError("disk full")

    with RunFolder(tmp_path / "run", {"seed": 0}) as run:
        with pytest.raises(PrunusError):
            run.stage("base", fail)
        assert not (tmp_path / "run" / "stages" / "base.json").exists()
        assert run.stage("base", lambda: {"loss": float("inf")})["loss"] is None
        assert run.stage("base", fail)["loss"] is None


def test_what_a_kill_left_half_written_is_cleared(tmp_path):
    with RunFolder(tmp_path, {"seed": 0}) as run:
        run.log("begin")
    torn = tmp_path / "stages" / ".base.json.ab12cd_f"
    torn.parent.mkdir()
    torn.touch()
    (tmp_path / "log.jsonl").write_text('{"event": "begin"}\n{"event": "ep')
    with RunFolder(tmp_path, {"seed": 0}, resume=True) as run:
        run.log("again")
    assert not torn.exists()
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert events == ["begin", "again"]


def test_damaged_files_of_a_run_are_named(digits_run, tmp_path):
    copy = shutil.copytree(digits_run, tmp_path / "copy")
    (copy / "stages" / "evaluate.json").unlink()
    (copy / "base.safetensors").write_bytes((copy / "base.safetensors").read_bytes()[:3000])
    with pytest.raises(FileError, match=r"base\.safetensors is not a whole safetensors file"):
        run_in(copy, resume=True, base_epochs=3, epochs=2)
    (copy / "stages" / "recover.json").write_text('{"history": [')
    with pytest.raises(FileError, match=r"recover\.json is not readable as JSON"):
        run_in(copy, resume=True, base_epochs=3, epochs=2)


@pytest.mark.parametrize("name", ["model.safetensors", "keep.json", "base.safetensors"])
def test_a_file_of_the_result_that_changes_is_found_before_result_json_is_written(digits_run, tmp_path, name):
    copy = shutil.copytree(digits_run, tmp_path / "copy")
    (copy / "result.json").unlink()
    data = bytearray((copy / name).read_bytes())
    data[-2 if name == "keep.json" else -20] ^= (
        1 if name != "keep.json" else 0x2A
    )  # a bit of a weight; a line's end
    (copy / name).write_bytes(data)
    with pytest.raises(FileError, match=rf"{name} is not the file that stage \w+ wrote.*remove stages/"):
        run_in(copy, resume=True, base_epochs=3, epochs=2)
    assert not (copy / "result.json").exists()
    stage = "base" if name == "base.safetensors" else "recover"
    for record in (stage, "evaluate"):
        (copy / "stages" / f"{record}.json").unlink()
    run_in(copy, resume=True, base_epochs=3, epochs=2)
    assert (copy / name).read_bytes() == (digits_run / name).read_bytes()


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        ("evaluate", {"before": {"macs": 0}}, r"evaluate.json is damaged at \$.before"),
        (
            "prune",
            {"charts": [{"kind": "lines"}]},
            r"prune.json is damaged at \$.charts\[0\]: Object missing",
        ),
        (
            "shrink",
            {"verified": {"max_abs_error": "0"}},
            r"shrink.json is damaged at \$.verified.max_abs_error",
        ),
        (
            "recover",
            {"seconds": -1},
            r"recover.json is damaged at \$.seconds: .* Remove this file and continue",
        ),
    ],
)
def test_a_damaged_record_is_found_before_result_json_is_written(digits_run, tmp_path, stage, change, words):
    copy = shutil.copytree(digits_run, tmp_path / "copy")
    (copy / "result.json").unlink()
    file = copy / "stages" / f"{stage}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(FileError, match=words):
        run_in(copy, resume=True, base_epochs=3, epochs=2)
    assert not (copy / "result.json").exists()


def test_the_readmes_three_lines_do_what_they_say():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    block = readme.partition("## Three lines\n\n```python\n")[2].partition("```")[0]
    model = zoo.build("digits_resnet", classes=10, in_shape=(1, 8, 8))
    names = {"prunus": prunus, "model": model, "example": torch.zeros(1, 1, 8, 8)}
    exec(block, names)
    graph, keep = names["graph"], names["keep"]
    assert prunus.macs(graph, keep) <= 0.5 * prunus.macs(graph)
    assert isinstance(names["small"], type(model))
