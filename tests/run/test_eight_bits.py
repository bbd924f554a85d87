"""Finished runs of every task are quantised on their own data, and judged beside the dense model."""

import json
import shutil

import pytest

from prunus import cli
from prunus.errors import FileError, UserError
from prunus.export import missing_for_onnx
from prunus.files import read_json
from prunus.run import Settings, eight_bits, prune, quantise_run
from prunus.selection import Budget, Sparsity
from tests.lib import restoring, texts
from tests.lib.scenes import write_scenes

OWN = "tests.lib.own_tasks:answering"
NEEDS = pytest.mark.skipif(bool(missing_for_onnx()), reason="needs onnx and onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")  # from the exporters


def said(capsys, *given, status=0):
    assert cli.main([str(argument) for argument in given]) == status
    output = capsys.readouterr()
    return " ".join((output.err if status else output.out).split())


@pytest.fixture
def run(digits_run, tmp_path):
    return shutil.copytree(digits_run, tmp_path / "run")


@NEEDS
def test_a_run_is_quantised_and_judged_beside_the_dense_model(run, capsys):
    before = read_json(run / "result.json")
    text = said(capsys, "export", run, "--int8")
    assert "model.int8.onnx written" in text and (run / "model.int8.onnx").exists()
    result = read_json(run / "result.json")
    found = result.pop("int8")
    assert result == before and found["examples"] == 256
    for part in ("before", "after"):  # 8 bits cost little
        assert found[part]["accuracy"] == pytest.approx(before[part]["accuracy"], abs=0.03)
        assert f"{100 * found[part]['accuracy']:.2f} %" in text
    assert "the dense model" in text and "Ranges were measured on 256 training examples." in text
    assert "accuracy in 8 bits" in (run / "report.html").read_text()
    assert "In 8 bits: accuracy" in said(capsys, "report", run)


@NEEDS
def test_what_8_bits_cost_stays_in_the_result_of_a_run_that_is_continued(run, capsys):
    said(capsys, "export", run, "--int8")
    before = read_json(run / "result.json")

    def go_on() -> dict:
        settings = Settings(base_epochs=3, epochs=2)
        prune(
            "zoo:digits_resnet",
            data="digits",
            budget=Budget(macs=0.5),
            out=run,
            settings=settings,
            resume=True,
        )
        return read_json(run / "result.json")

    assert go_on()["int8"] == before["int8"]
    assert "accuracy in 8 bits" in (run / "report.html").read_text()
    record = read_json(run / "stages" / "int8.json")
    files = record["files"] | {"model.safetensors": "0" * 64}
    (run / "stages" / "int8.json").write_text(json.dumps(record | {"files": files}))
    assert "int8" not in go_on()  # of another model
    (run / "stages" / "int8.json").write_text(json.dumps(record | {"int8": {"after": 3}}))
    with pytest.raises(FileError, match=r"int8\.json.*prunus export --int8"):
        go_on()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A short finished run of each task, by its name."""
    folder = tmp_path_factory.mktemp("runs")
    for task in ("denoise", "sr", "text", "lm"):
        given = (texts if task in ("text", "lm") else restoring).arguments(folder, task)
        assert cli.main([*given, "--method", "magnitude", "--out", str(folder / task)]) == 0
    own = ["run", "--task", OWN, "--method", "magnitude", "--epochs", "1", "--out", str(folder / "own")]
    assert cli.main(own) == 0
    brief = {"base_epochs": 3, "epochs": 2, "batch_size": 8, "base_lr": 1e-2, "lr": 3e-3}
    prune(
        "tests.lib.scenes:Segmenter",
        data=f"pairs:{write_scenes(folder / 'scenes', {'train': 16, 'val': 4, 'test': 4})}",
        task="segment",
        method="magnitude",
        out=folder / "segment",
        settings=Settings(task_options=("patch=16", "class_names=floor,red,green"), precision="no", **brief),
    )
    return folder


@NEEDS
@pytest.mark.parametrize("task", ["denoise", "sr", "segment", "text", "lm", "own"])
def test_runs_of_every_task_are_quantised(runs, task, tmp_path):
    folder = shutil.copytree(runs / task, tmp_path / "run")
    result = read_json(folder / "result.json")
    lines = quantise_run(folder, result)
    assert "model.int8.onnx written" in lines[0] and lines[-1].startswith("In 8 bits: ") and len(lines) == 2
    found = read_json(folder / "result.json")["int8"]
    key = (
        "loss" if task == "text" else result["metric"]
    )  # one of its few texts is more than a tenth of its accuracy
    for part in ("before", "after"):
        assert found[part][key] == pytest.approx(result[part][key], rel=0.1)


@NEEDS
def test_data_that_are_gone_or_changed_are_named(runs, tmp_path, capsys):
    folder, away = shutil.copytree(runs / "denoise", tmp_path / "run"), tmp_path / "away"
    images = runs / "images-denoise"
    shutil.move(images, away)
    with pytest.raises(UserError, match=r"the data of .* are needed, but cannot be read: .*images-denoise"):
        quantise_run(folder, read_json(folder / "result.json"))
    shutil.copytree(away, images)
    next(images.rglob("*.png")).unlink()
    with pytest.raises(UserError, match=r"the data of .* have changed since it began"):
        quantise_run(folder, read_json(folder / "result.json"))
    shutil.rmtree(images)
    shutil.move(away, images)
    assert not (folder / "model.int8.onnx").exists()
    assert "int8" not in read_json(folder / "result.json")


@NEEDS
def test_zeros_of_single_weights_stay_zero(tmp_path):
    settings = Settings(method="lookahead", base_epochs=1, epochs=1)
    folder = tmp_path / "run"
    prune("zoo:digits_resnet", data="digits", budget=Sparsity(0.8), out=folder, settings=settings)
    quantise_run(folder, read_json(folder / "result.json"))
    onnx = pytest.importorskip("onnx")
    numpy_helper = pytest.importorskip("onnx.numpy_helper")
    weights = [
        numpy_helper.to_array(each)
        for each in onnx.load(folder / "model.int8.onnx").graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1
    ]
    assert sum(int((each == 0).sum()) for each in weights) >= 0.79 * sum(each.size for each in weights)


@NEEDS
def test_without_the_dense_base_the_pruned_model_is_judged_alone(run):
    (run / "base.safetensors").unlink()
    lines = quantise_run(run, read_json(run / "result.json"))
    assert read_json(run / "result.json")["int8"]["before"] is None and "the dense model" not in lines[-1]


@NEEDS
def test_a_model_that_computes_its_loss_itself_is_written_but_not_judged(tmp_path):
    folder = tmp_path / "run"
    own = ["run", "--task", "tests.lib.own_tasks:language_model", "--method", "magnitude", "--epochs", "1"]
    assert cli.main([*own, "--out", str(folder)]) == 0
    lines = quantise_run(folder, read_json(folder / "result.json"))
    assert "model.int8.onnx written" in lines[0] and (folder / "model.int8.onnx").exists()
    assert lines[1].startswith("It was not judged: the file takes input_ids, attention_mask, and refuses")
    assert len(lines) == 2 and "int8" not in read_json(folder / "result.json")


def test_without_onnxruntime_nothing_is_read(run, monkeypatch, capsys):
    monkeypatch.setattr(
        eight_bits, "missing_for_onnx", lambda: "onnx not installed; pip install 'prunus[onnx]'"
    )
    with pytest.raises(UserError, match=r"model\.int8\.onnx cannot be made: onnx not installed; pip install"):
        quantise_run(run, {})


def test_a_run_that_is_not_finished_is_refused(tmp_path, capsys):
    (tmp_path / "settings.json").write_text("{}")
    assert "an unfinished run; continue it with --resume" in said(
        capsys, "export", tmp_path, "--int8", status=2
    )


def test_a_damaged_row_of_8_bits_is_refused(run, capsys):
    values = read_json(run / "result.json")
    found = {"before": None, "after": {"accuracy": "high"}, "examples": 1}
    (run / "result.json").write_text(json.dumps(values | {"int8": found}))
    assert "int8.after, should hold 'accuracy', a finite number" in said(capsys, "report", run, status=2)
