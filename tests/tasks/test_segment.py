"""Segmentation goes from base to report, with figures over all pixels; what does not fit is refused."""

import base64
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch import nn

import prunus
from prunus import report
from prunus.data import Patches, load_label_maps
from prunus.errors import UserError
from prunus.run import Settings, load_run
from prunus.run.reopen import reopen_task
from prunus.selection import Budget, Sparsity
from prunus.tasks import Segmentation
from prunus.tasks.segment import class_logits, colours, enlarged
from tests.lib.models import torchvision_models
from tests.lib.scenes import Segmenter, brightest, scene, write_scenes

NAMES = ("floor", "red", "green")
OPTIONS = ("patch=16", "class_names=floor,red,green")
BRIEF = {"base_epochs": 3, "epochs": 2, "batch_size": 8, "base_lr": 1e-2, "lr": 3e-3, "precision": "no"}
SPLITS = {"train": 16, "val": 4, "test": 4}
SEARCH = ("generations=1", "population=4", "parents=2")


def segmented(folder, method="magnitude", model="tests.lib.scenes:Segmenter", limit=None, **settings):
    return prunus.prune(
        model,
        data=f"pairs:{write_scenes(folder / 'scenes', SPLITS)}",
        task="segment",
        method=method,
        budget=limit or Budget(macs=0.5),
        out=folder / "run",
        settings=Settings(**{"task_options": OPTIONS, **BRIEF, **settings}),
    )


def load(folder):
    data = f"pairs:{write_scenes(folder / 'scenes', SPLITS)}"
    return load_label_maps(data, Patches(side=16, each=1), class_names=NAMES)


@pytest.mark.parametrize("method", ["taylor", "dhp"])
def test_from_base_to_report(method, tmp_path):
    found = segmented(tmp_path, method)
    values = found.values
    assert values["verified"]["max_abs_error"] < 1e-5
    assert values["after"]["macs"] <= 0.5 * values["before"]["macs"]
    losses = [row["loss"] for row in values["history"]["base"]]
    assert losses[-1] < losses[0]
    task = Segmentation(found.model, load(tmp_path))
    again = task.evaluate(found.model, task.data.test)
    assert {key: values["after"][key] for key in again} == pytest.approx(again, rel=1e-5)
    console = Console(width=140)
    with console.capture() as said:
        console.print(report.summary(values))
    for key in ("mean_iou", "pixel_accuracy", *(f"iou of {name}" for name in NAMES)):
        assert f"{key} on" in said.get() and f"{100 * values['after'][key]:.2f} %" in said.get()
    assert "24 examples found, 24 used (train 16, val 4, test 4)" in report.rows.data_sentence(values)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('<img src="data:image/png') == 3 + 4 * (len(values["examples"]) - 1)


OTHERS = [
    ("activation", None, ()),
    ("metapruning", None, SEARCH),
    ("metapruning", None, ("weights=shared", "epochs=1", *SEARCH)),
    ("pass", None, ("prompt=none", "steps=4", "snapshots=1")),
    ("lookahead", Sparsity(0.6), ()),
    ("lookahead", Sparsity(0.6), ("score=snip",)),
    ("lookahead", Sparsity(0.6), ("score=grasp",)),
]


@pytest.mark.parametrize(("method", "limit", "options"), OTHERS)
def test_every_method_works(method, limit, options, tmp_path):
    values = segmented(tmp_path, method, limit=limit, options=options, base_epochs=1, epochs=1).values
    assert 0 < values["after"]["mean_iou"] < 1 and values["after"]["macs"] <= values["before"]["macs"]


def test_pass_puts_its_prompt_on_images_of_one_size_alone(tmp_path):
    with pytest.raises(
        UserError, match=r"of train are \(3, 16, 16\), but 4 of 4 of val are not.*\(3, 24, 28\).*prompt=none"
    ):
        segmented(tmp_path, "pass")
    assert not (tmp_path / "run").exists()
    options = ("steps=4", "snapshots=1", "prompt_size=2")
    values = segmented(tmp_path, "pass", image_size=16, options=options, base_epochs=1, epochs=1).values
    assert values["input"]["shape"] == [3, 16, 16]


def test_figures_are_those_of_all_pixels(tmp_path):
    class Rule(nn.Module):
        def forward(self, x):
            return F.one_hot(brightest(x), 3).movedim(-1, 1) * 4.0

    task = Segmentation(Rule(), load(tmp_path))
    found = task.evaluate(task.model, task.data.test)
    losses, hits, unions, right, total = [], np.zeros(3), np.zeros(3), 0, 0
    for x, y in task.data.test.batches(1):
        predicted, counted = brightest(x), y != 255
        losses.append(F.cross_entropy(task.model(x), y, ignore_index=255, reduction="sum").item())
        right, total = right + int((predicted == y)[counted].sum()), total + int(counted.sum())
        for number in range(3):
            mine, theirs = predicted == number, y == number
            hits[number] += int((mine & theirs & counted).sum())
            unions[number] += int(((mine | theirs) & counted).sum())
    assert found["loss"] == pytest.approx(sum(losses) / total)
    assert found["pixel_accuracy"] == pytest.approx(right / total)
    assert found["mean_iou"] == pytest.approx((hits / unions).mean())
    assert found["iou of red"] == pytest.approx(hits[1] / unions[1])


def test_the_loss_is_over_pixels_that_count_and_never_nan(tmp_path):
    task, y = Segmentation(Segmenter(), load(tmp_path)), torch.randint(3, (2, 8, 8))
    y[:, :3] = 255
    out, aux = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    assert torch.allclose(task.loss(out, y), F.cross_entropy(out, y, ignore_index=255))
    larger = F.interpolate(aux, size=(8, 8), mode="bilinear")
    both = F.cross_entropy(out, y, ignore_index=255) + 0.5 * F.cross_entropy(larger, y, ignore_index=255)
    assert torch.allclose(task.loss({"out": out, "aux": aux}, y), both)
    assert task.loss(out.requires_grad_(), torch.full_like(y, 255)).item() == 0
    teacher = torch.randn(2, 3, 8, 8)
    assert task.distil(out, out, 4.0).item() == pytest.approx(0, abs=1e-6)
    student, wanted = (F.log_softmax(each / 4, 1) for each in (out, teacher))
    divergence = (wanted.exp() * (wanted - student)).sum(1).mean() * 16
    assert torch.allclose(task.distil({"out": out}, {"out": teacher}, 4.0), divergence, rtol=1e-4)


def test_examples_show_input_truth_and_answers_in_colours(tmp_path):
    found = segmented(tmp_path, base_epochs=1, epochs=1)
    legend, *charts = found.values["examples"]
    palette = colours(3)
    assert [caption for caption, _ in legend["panels"]] == list(NAMES)
    for number, (_, png) in enumerate(legend["panels"]):
        assert (picture(png) == palette[number]).all()
    data, small = load(tmp_path), found.model.eval()
    assert charts and "loses most by pruning" in charts[0]["title"]
    for chart in charts:
        number = int(chart["title"].split(":")[0].removeprefix("Test image ")) - 1
        x, y = data.test.read(np.array([number]))
        _, classes = scene(21 + number)
        captions, shown = zip(*[(caption, picture(png)) for caption, png in chart["panels"]], strict=True)
        assert [each.split(":")[0] for each in captions] == [
            "input", "truth", "answer of the original", "answer of the smaller model",
        ]  # fmt: skip
        wanted = palette[np.where(classes == 255, 0, classes)]
        wanted[classes == 255] = 255
        assert (shown[1] == wanted).all()
        with torch.no_grad():
            answer = enlarged(class_logits(small(x)), y).argmax(1)[0].numpy()
        assert (shown[3] == palette[answer]).all()
        counted = classes != 255
        ious = [
            ((answer == k) & (classes == k) & counted).sum()
            / (((answer == k) | (classes == k)) & counted).sum()
            for k in range(3)
        ]
        assert f"{100 * np.nanmean(ious):.2f} %" in captions[3]


def picture(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_a_finished_run_builds_its_original_again_and_labels_files(tmp_path):
    values = segmented(tmp_path, model="zoo:unet_segmenter", base_epochs=1, epochs=1).values
    assert values["input"] == {"shape": [3, 16, 16], "classes": 3}
    original = reopen_task(tmp_path / "run", values).model
    assert original(torch.rand(1, 3, 17, 19)).shape == (1, 3, 17, 19)
    small = prunus.load(tmp_path / "run", original)
    assert small(torch.rand(1, 3, 17, 19)).shape == (1, 3, 17, 19)
    saved, (photo, *_) = load_run(tmp_path / "run"), sorted((tmp_path / "scenes").rglob("images/*"))
    (labels,) = saved.predict([photo])
    x = saved.read(photo)
    with torch.no_grad():
        found = class_logits(saved.model(x)).argmax(1)[0]
    assert np.array_equal(np.asarray(labels), found.numpy()) and labels.size == (28, 24)
    assert labels.convert("RGB").getpixel((0, 0)) == tuple(colours(3)[found[0, 0]])


def test_answers_hold_the_numbers_of_many_classes(tmp_path):
    task = Segmentation(nn.Conv2d(3, 3, 1), load(tmp_path))
    task.class_names = tuple(map(str, range(400)))
    found = task.answer(torch.tensor([[3, 399], [256, 0]]), 1).value
    assert np.asarray(found).tolist() == [[3, 399], [256, 0]]


def test_torchvision_segmenters_are_built_traced_and_answer_with_a_dict(tmp_path):
    torchvision_models()
    from prunus.zoo import load_model

    model = load_model("torchvision:lraspp_mobilenet_v3_large", in_shape=(3, 32, 32), classes=3).eval()
    task = Segmentation(model, load(tmp_path))
    task.check(model)
    small = prunus.shrink(
        model,
        task.graph,
        prunus.select(task.graph, prunus.scores.magnitude(model, task.graph), Budget(macs=0.5)),
    )
    assert 0 <= task.evaluate(small, task.data.test)["mean_iou"] <= 1


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (Segmenter(2), {}, r"has 2 outputs for each pixel, but the masks of .* hold 3 classes \(floor, red, green\)"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), {}, r"shape \(1, 1024\); expected \(1, 3, height, width\)"),
        (nn.Conv2d(1, 3, 1), {}, r"the model cannot read images of shape \(1, 3, 16, 16\)"),
        ("zoo:resnet20", {}, r"has shape \(1, 3\); expected .*such as zoo:unet_segmenter"),
        ("zoo:unet_segmenter", {"task_options": ("ignore_index=-2",)}, r"ignore_index should be a whole number"),
        ("zoo:unet_segmenter", {"task_options": ("class_names=a,b",)}, r"holds the number 2, but there are 2 classes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(model, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        segmented(tmp_path, model=model, **changes)
    assert not (tmp_path / "run").exists()
