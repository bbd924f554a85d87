"""Denoising and super-resolution go from base to report, in dB and with images that a person can judge."""

import base64
import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import prunus
from prunus import report
from prunus.data import Downscaling, Noise, Patches, load_pairs
from prunus.errors import UserError
from prunus.run import Settings
from prunus.run.reopen import reopen_task
from prunus.selection import Budget
from prunus.tasks import Denoising, SuperResolution, _restoration
from prunus.tasks._panels import SIDE, choose_examples, panel
from tests.lib.pictures import write_pictures
from tests.lib.restoring import Denoiser, Enlarger

OPTIONS = {
    "denoise": ("sigma=40", "patch=16", "patches=4"),
    "sr": ("scale=2", "patch=16", "patches=4"),
}
MODELS = {"denoise": "tests.lib.restoring:Denoiser", "sr": "tests.lib.restoring:Enlarger"}
CHANNELS = {"denoise": 1, "sr": 3}
BRIEF = {"base_epochs": 3, "epochs": 2, "batch_size": 8, "base_lr": 1e-2, "lr": 3e-3}


def images_of(task: str, folder: Path) -> str:
    return f"imagefolder:{write_pictures(folder / task, 12, channels=CHANNELS[task])}"


def restored(task: str, folder: Path, method: str = "magnitude", **settings) -> prunus.run.pipeline.Result:
    return prunus.prune(
        MODELS[task],
        data=images_of(task, folder),
        task=task,
        method=method,
        budget=Budget(macs=0.5),
        out=folder / "run",
        settings=Settings(**{"task_options": OPTIONS[task], **BRIEF, **settings}),
    )


@pytest.mark.parametrize("method", ["magnitude", "dhp"])
@pytest.mark.parametrize("task", OPTIONS)
def test_from_base_to_report(task, method, tmp_path):
    found = restored(task, tmp_path, method)
    values = found.values
    assert values["verified"]["max_abs_error"] < 1e-6
    assert values["after"]["macs"] <= 0.5 * values["before"]["macs"]
    losses = [row["loss"] for row in values["history"]["base"]]
    assert losses[-1] < losses[0]
    if task == "denoise":  # an answer is better than none: about 16.4 dB of noise
        assert min(values["before"]["psnr"], values["after"]["psnr"]) > 10 * np.log10(255**2 / 40**2) + 0.5
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for stage in ("base", "recover"):
        logged = [line["psnr"] for line in lines if line["event"] == "epoch" and line["stage"] == stage]
        assert logged == [row["psnr"] for row in values["history"][stage]]
    console = Console(width=140)
    with console.capture() as said:
        console.print(report.summary(values))
    psnr, ssim = values["after"]["psnr"], values["after"]["ssim"]
    assert f"{psnr:.2f} dB" in said.get() and f"{ssim:.4f}" in said.get()
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{psnr:.2f} dB" in page and page.count('<img src="data:image/png') == 4 * len(values["examples"])


@pytest.mark.parametrize("task", OPTIONS)
def test_the_examples_are_test_images_and_their_figures_are_true(task, tmp_path):
    found = restored(task, tmp_path)
    values, scale = found.values, {"denoise": 1, "sr": 2}[task]
    degradation = {"denoise": Noise(40), "sr": Downscaling(2)}[task]
    data = load_pairs(images_of(task, tmp_path), degradation, Patches(side=16, each=4))
    judge = {"denoise": Denoising, "sr": partial(SuperResolution, scale=2)}[task](found.model, data)
    found.model.eval()
    titles = [chart["title"] for chart in values["examples"]]
    assert titles and len(set(titles)) == len(titles) and "loses most by pruning" in titles[0]
    for chart in values["examples"]:
        number = int(chart["title"].split(":")[0].removeprefix("Test image ")) - 1
        x, y = data.test.read(np.array([number]))
        with torch.no_grad():
            answers = [judge.enlarged(x), None, found.model(x), y]
        for (caption, png), answer in zip(chart["panels"], answers, strict=True):
            shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
            assert shown.shape[:2] == tuple(y.shape[-2:]) == (40, 36)
            if answer is None:
                continue
            pixels = (answer[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().reshape(shown.shape)
            assert np.abs(shown.astype(float) - pixels).max() <= 1  # a value at a half may go either way
            if caption != "truth":
                assert f"{float(judge.judge(answer, y)['psnr']):.2f} dB" in caption
        assert [caption.split(":")[0] for caption, _ in chart["panels"]] == [
            "input", "answer of the original", "answer of the smaller model", "truth",
        ]  # fmt: skip
    assert judge.scale == scale


def test_examples_are_the_most_the_least_and_the_median():
    assert choose_examples([3.0, -5.0, 1.0, 0.0, 9.0], float) == [
        ("loses most by pruning", -5.0), ("loses least", 9.0), ("the median", 1.0),
    ]  # fmt: skip
    assert choose_examples([2.0], float) == [("loses most by pruning", 2.0)]
    assert choose_examples([], float) == []


def test_of_a_large_image_the_middle_is_shown():
    image = torch.zeros(1, 3, 20, SIDE + 40)
    image[..., 20 : SIDE + 20] = 255
    _, png = panel("", image)
    assert (np.asarray(Image.open(io.BytesIO(png))) == 255).all()


def test_figures_are_means_over_whole_images(tmp_path):
    data = load_pairs(images_of("sr", tmp_path), Downscaling(2), Patches(side=16, each=2))
    task = SuperResolution(Enlarger().eval(), data, scale=2)
    single = []
    with torch.no_grad():
        for x, y in data.test.batches(1):
            output = task.model(x)
            single.append([*(float(v) for v in task.judge(output, y).values()), float(task.loss(output, y))])
    found = task.evaluate(task.model, data.test)
    assert [found[key] for key in ("psnr", "ssim", "loss")] == pytest.approx(np.mean(single, 0))
    patches = task.evaluate(task.model, data.train)  # in batches, as a search asks for
    assert patches == pytest.approx(task.evaluate(task.model, data.train), rel=1e-6)


def test_large_images_are_evaluated_by_parts(tmp_path, monkeypatch):
    data = load_pairs(images_of("sr", tmp_path), Downscaling(2), Patches(side=16, each=2))
    task = SuperResolution(Enlarger().eval(), data, scale=2)
    whole, calls = task.evaluate(task.model, data.test), []
    monkeypatch.setattr(_restoration, "Restorer", partial(_restoration.Restorer, limit=100))
    monkeypatch.setattr("prunus.tasks._tiles.tiled", lambda *a: calls.append(a) or prunus.tasks.tiled(*a))
    assert task.evaluate(task.model, data.test) == pytest.approx(whole) and len(calls) == len(data.test)


def test_losses_and_recipes_are_those_of_dhp():
    output, target = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    denoising, larger = Denoising.__new__(Denoising), SuperResolution.__new__(SuperResolution)
    assert torch.equal(denoising.loss(output, target), (output - target).square().mean())
    assert torch.equal(larger.loss(output, target), (output - target).abs().mean())
    for task, epochs, batch_size in ((denoising, 60, 64), (larger, 300, 16)):
        task.recipe_fields = {}
        recipe = task.recipe("scratch")
        assert (recipe.epochs, recipe.batch_size, recipe.lr) == (epochs, batch_size, 1e-4)
        assert (recipe.optimizer, recipe.weight_decay, recipe.precision) == ("adamw", 0, "no")


def test_a_finished_run_builds_its_original_again(tmp_path):
    values = restored("sr", tmp_path).values
    assert values["input"] == {"shape": [3, 8, 8], "scale": 2}
    model = reopen_task(tmp_path, values).model
    assert model(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (Denoiser((3, 16, 16)), "denoise", r"the model cannot read .*, gray images \(1 channel\) of 16x16 pixels"),
        (Enlarger((1, 8, 8)), "sr", r"the model cannot read .*, colour images \(3 channels\) of 8x8 pixels"),
        (Enlarger(scale=4), "sr", r"it makes sides 4 times as long, the task asks for 2 times"),
        (nn.Identity(), "sr", r"with the shape \(1, 3, 8, 8\); expected \(1, 3, 16, 16\)"),
        (nn.Flatten(), "denoise", r"with the shape \(1, 256\); expected \(1, 1, 16, 16\)"),
        ("zoo:edsr_baseline_x4", "sr", r"it makes sides 4 times as long, the task asks for 2 times"),
        ("zoo:resnet20", "denoise", r"zoo:resnet20 is no network from images to images"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(model, task, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prunus.prune(
            model,
            data=images_of(task, tmp_path),
            task=task,
            method="magnitude",
            out=tmp_path / "run",
            settings=Settings(task_options=OPTIONS[task], **BRIEF),
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("sr", {"task_options": ("scale=1",)}, "scale should be a whole number from 2 to 8, but is 1"),
        ("sr", {"task_options": ("scale=three",)}, "option of task sr: scale should be int, not 'three'"),
        ("sr", {"task_options": ("scale=2", "patch=15")}, "should be a multiple of the scale, 2; give 16"),
        ("sr", {"task_options": ("scale=2", "patch=64")}, "smaller than a patch, 64x64 pixels"),
        ("denoise", {"task_options": ("sigma=-1",)}, "sigma should be a number above 0 and at most 255, but is -1"),
        ("denoise", {"task_options": ("scale=2",)}, "unknown option of task denoise 'scale'"),
        ("denoise", {"image_size": 32}, "restoration reads images as they are .*, so image_size=32"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(task, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        restored(task, tmp_path, **changes)
    assert not (tmp_path / "run").exists()


def test_data_of_another_scale_are_refused(tmp_path):
    data = load_pairs(images_of("sr", tmp_path), Downscaling(4), Patches(side=16, each=2))
    with pytest.raises(UserError, match="but the task's scale is 2; give data of the same scale"):
        SuperResolution(Enlarger(), data, scale=2).check(Enlarger())


def test_a_task_made_in_python_runs_too(tmp_path):
    data = load_pairs(images_of("denoise", tmp_path), Noise(40), Patches(side=16, each=4))
    task = Denoising(Denoiser(), data, {"lr": 1e-2, "batch_size": 8})
    result = prunus.prune(
        task=task, method="magnitude", out=tmp_path / "run", settings=Settings(base_epochs=1, epochs=1)
    )
    assert result.values["after"]["psnr"] > 10 and result.values["settings"]["recovery"]["lr"] == 1e-2


def test_pass_takes_whole_images_only_without_a_prompt(tmp_path):
    with pytest.raises(
        UserError, match=r"of train are \(1, 16, 16\), but 1 of 1 of val are not.* \(1, 40, 36\).*prompt=none"
    ):
        restored("denoise", tmp_path, "pass")
    assert not (tmp_path / "run").exists()
    options = ("prompt=none", "steps=4", "snapshots=1")
    assert restored("denoise", tmp_path, "pass", options=options).values["after"]["psnr"] > 16
