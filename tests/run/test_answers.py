"""Finished runs of every task answer files, are exported and measured, without their data."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import prunus
from prunus import cli
from prunus.data import Data, read_whole
from prunus.errors import UserError
from prunus.export import export_model
from prunus.files import read_json
from prunus.inputs import random_batch
from prunus.run import Settings, prune
from prunus.run.reopen import describe_example, make_example
from tests.lib.denoising import Denoising, denoiser, noisy_waves
from tests.lib.own_tasks import Reader, Tagger, made
from tests.lib.pictures import picture
from tests.lib.restoring import arguments

HAS_ONNX = all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime")))
OWN = "tests.lib.own_tasks:answering"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A short finished run of each task, by its name; their data are gone afterwards."""
    folder = tmp_path_factory.mktemp("runs")
    for task in ("denoise", "sr"):
        given = arguments(folder, task)
        assert cli.main([*given, "--method", "magnitude", "--out", str(folder / task)]) == 0
        shutil.rmtree(folder / f"images-{task}")
    assert (
        cli.main(
            ["run", "--task", OWN, "--method", "magnitude", "--epochs", "1", "--out", str(folder / "own")]
        )
        == 0
    )
    return folder


def said(capsys, *arguments, status=0):
    assert cli.main([str(argument) for argument in arguments]) == status
    output = capsys.readouterr()
    return output.err if status else output.out


@pytest.mark.parametrize(("task", "scale", "channels"), [("denoise", 1, 1), ("sr", 2, 3)])
def test_images_are_restored_and_written(runs, task, scale, channels, tmp_path, capsys):
    image = Image.fromarray(picture(3, 30, 50, channels=channels).squeeze())
    image.save(tmp_path / "a.png")
    (row,) = json.loads(
        said(capsys, "predict", runs / task, tmp_path / "a.png", "--out", tmp_path / "out", "--json")
    )
    found = Image.open(row["written"])
    assert found.size == (50 * scale, 30 * scale) and row["size"] == list(found.size)
    saved = prunus.load(runs / task)
    x = read_whole(tmp_path / "a.png", channels)
    assert torch.equal(saved.read(tmp_path / "a.png"), x)
    with torch.no_grad():
        exact = saved.model(x)[0].permute(1, 2, 0).clamp(0, 1).mul(255).round().numpy().squeeze()
    assert np.abs(np.asarray(found).astype(float) - exact).max() <= 1  # doubles and floats round otherwise
    (same,) = saved.predict([tmp_path / "a.png"])
    assert np.array_equal(np.asarray(same), np.asarray(found))
    text = said(capsys, "predict", runs / task, tmp_path / "a.png", "--out", tmp_path / "out")
    assert f"{50 * scale}x{30 * scale} pixels" in " ".join(text.split()) and "written to" in text


def test_answers_that_are_images_are_not_lost_or_written_over(runs, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(picture(1, channels=1).squeeze()).save(tmp_path / name / "x.png")
    command = ["predict", runs / "denoise", tmp_path / "a" / "x.png"]
    assert "say where to write them, for example --out" in said(capsys, *command, status=2)
    two = [*command, tmp_path / "b" / "x.png", "--out", tmp_path / "out"]
    assert "would be written for two files" in said(capsys, *two, status=2)
    assert "in the place of one" in said(capsys, *command, "--out", tmp_path / "a", status=2)
    assert not (tmp_path / "out").exists()


def test_a_task_of_the_users_own_says_how_files_are_read_and_answered(runs, tmp_path, capsys):
    (tmp_path / "row.json").write_text("[1, 2, 3, 4, 5, 6, 0.1, 0.2, 0.3]")
    (row,) = json.loads(said(capsys, "predict", runs / "own", tmp_path / "row.json", "--json"))
    saved = prunus.load(runs / "own")
    assert saved.class_names == () and saved.preprocessing is None
    with torch.no_grad():
        exact = saved.model(**saved.read(tmp_path / "row.json")).item()
    assert row["metres"] == pytest.approx(exact)
    text = said(capsys, "predict", runs / "own", tmp_path / "row.json")
    assert "metres" in text and "answer" in text
    (tmp_path / "row.json").write_text("{")
    assert "read failed on" in said(capsys, "predict", runs / "own", tmp_path / "row.json", status=2)


def test_tasks_that_answer_no_files_say_so(tmp_path, capsys):
    task = Denoising(denoiser(), noisy_waves())
    with pytest.raises(
        UserError, match=r"Denoising does not say how a file becomes an input.*prunus\.load\(run\)"
    ):
        task.read_file("a.png")
    with pytest.raises(UserError, match="does not say how an output becomes an answer"):
        task.answer(torch.zeros(1), 1)
    prune(task=task, method="magnitude", out=tmp_path / "run", settings=Settings(base_epochs=1, epochs=1))
    said_so = said(capsys, "predict", tmp_path / "run", "a.png", status=2)
    assert "was an object of your own, a Denoising" in said_so and "--task package.module:callable" in said_so
    assert isinstance(prunus.load(tmp_path / "run", denoiser()), nn.Sequential)


def test_the_data_of_a_run_that_is_opened_again_hold_nothing(runs):
    data = prunus.load(runs / "denoise").task.data
    assert isinstance(data, Data) and data.example.shape == (1, 1, 16, 16)
    assert len(data.train) == data.train.steps(3) == 0 and not list(data.val.batches(1))
    for ask in (lambda: data.train.read(np.arange(1)), lambda: data.train.take(np.arange(1))):
        with pytest.raises(UserError, match="opened without its examples"):
            ask()


@pytest.mark.filterwarnings("ignore")  # from the exporters
@pytest.mark.parametrize("task", ["denoise", "sr", "own"])
def test_runs_of_every_task_are_exported(runs, task, tmp_path, capsys):
    run = shutil.copytree(runs / task, tmp_path / "run")
    text = said(capsys, "export", run)
    assert "model.pt2 written" in text and (run / "model.pt2").exists()
    assert (run / "model.onnx").exists() == HAS_ONNX
    program, saved = torch.export.load(run / "model.pt2").module(), prunus.load(run)
    example = random_batch(saved.task.example, 5, stretch={} if task == "own" else {2: 3, 3: 3})
    with torch.no_grad():  # of another size than the run's own images
        pairs = (each(**example) if task == "own" else each(example) for each in (program, saved.model))
        assert torch.allclose(*pairs, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["denoise", "own"])
def test_runs_of_every_task_are_measured(runs, task, tmp_path, capsys):
    run = shutil.copytree(runs / task, tmp_path / "run")
    said(capsys, "bench", run, "--seconds", "0.05")
    rows = read_json(run / "bench.json")["rows"]
    assert set(rows) == {"1", "64"} and ("onnxruntime, pruned" in rows["1"]) == HAS_ONNX


@pytest.mark.filterwarnings("ignore")
def test_a_classifiers_preprocessing_is_exported_beside_it(digits_run, tmp_path, capsys):
    run = shutil.copytree(digits_run, tmp_path / "run")
    assert "preprocessing.json written" in said(capsys, "export", run)
    how = read_json(run / "preprocessing.json")
    assert (how["size"], how["mean"], how["std"]) == ([8, 8], [0.3], [0.35])


@pytest.mark.filterwarnings("ignore")
def test_networks_with_several_inputs_and_outputs_are_exported(tmp_path):
    example = torch.zeros(1, 8), torch.zeros(1, 8)
    lines = export_model(tmp_path, made(Tagger), example)
    assert "model.pt2 written" in lines[0] and (not HAS_ONNX or "model.onnx written" in lines[1])
    one, two = torch.export.load(tmp_path / "model.pt2").module()(*random_batch(example, 4))
    assert one.shape == (4, 4) and two.shape == (4, 16)


class Fixed(nn.Module):
    """A network whose sides are fixed."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        return self.layer(x.flatten(1)).view(-1, 1, 4, 4)


@pytest.mark.filterwarnings("ignore")
def test_sides_that_cannot_stay_free_are_said(tmp_path):
    lines = export_model(tmp_path, Fixed(), torch.zeros(1, 1, 4, 4), free_dims=(0, 2, 3))
    assert "take inputs of (1, 4, 4) only" in lines[0] and "model.pt2 written" in lines[1]
    assert torch.export.load(tmp_path / "model.pt2").module()(torch.zeros(7, 1, 4, 4)).shape == (7, 1, 4, 4)


@pytest.mark.parametrize(
    "example",
    [
        torch.zeros(1, 3, 4),
        {"ids": torch.ones(1, 5, dtype=torch.long), "x": torch.zeros(1)},
        (torch.zeros(1, 2), {"mask": torch.ones(1, 2, dtype=torch.bool)}, None),
    ],
)
def test_an_example_is_described_and_made_again(example):
    described = json.loads(json.dumps(describe_example(example)))
    assert describe_example(make_example(described)) == describe_example(example)
    assert ("types" in described) == (not isinstance(example, torch.Tensor))


def test_models_that_read_tokens_get_an_example_that_they_can_read():
    example = {
        "input_ids": torch.zeros(1, 8, dtype=torch.long),
        "attention_mask": torch.zeros(1, 8, dtype=torch.long),
    }
    found = make_example(describe_example(example))
    assert made(Reader)(**found).logits.isfinite().all()
