"""Regression and multi-label classification go from base to report in their own units; what does not fit is refused."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from sklearn.metrics import f1_score
from torch import nn

import prunus
from prunus import report
from prunus.data import Columns, Data, Split, load_rows, read_numbers
from prunus.errors import FileError, UserError
from prunus.run import Settings, load_run
from prunus.run.reopen import reopen_task
from prunus.selection import Budget, Sparsity
from prunus.tasks import MultiLabel, Regression
from tests.lib.models import imported_beside_torchvision
from tests.lib.tables import LABELS, numbers, pictures, write

BRIEF = {"base_epochs": 4, "epochs": 2, "batch_size": 16}
FEATURES = "features=a,b,c,d"
SEARCH = ("generations=1", "population=4", "parents=2")


class Small(nn.Module):
    """Two convolutions to as many numbers as are asked for."""

    def __init__(self, classes: int, in_shape: tuple[int, ...]):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_shape[0], 12, 3, 2), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3)
        )
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.body(x)).mean((2, 3)))


# task -> model, table, options: each on numbers, and on images
KINDS = {
    "regression": ("zoo:mlp", lambda folder: numbers(160), ("target=height", FEATURES, "unit=m")),
    "regression of two": (
        "zoo:mlp",
        lambda folder: numbers(160),
        ("target=height,depth", FEATURES, "loss=huber", "error=mae"),
    ),
    "regression of images": (
        "tests.tasks.test_rows:Small",
        partial(pictures, rows=60),
        ("target=brightness", "loss=l1"),
    ),
    "multilabel": ("zoo:mlp", lambda folder: numbers(160), ("labels=warm,wet", FEATURES)),
    "multilabel of images": ("tests.tasks.test_rows:Small", partial(pictures, rows=60), ()),
}


def done(kind, folder, method="taylor", limit=None, model=None, suffix=".csv", **settings):
    spec, rows, options = KINDS[kind]
    path = write(folder / "data" / f"train{suffix}", rows(folder / "data"))
    return prunus.prune(
        model or spec,
        data=f"{suffix[1:]}:{path}",
        task=kind.split()[0],
        method=method,
        budget=limit or Budget(macs=0.5),
        out=folder / "run",
        settings=Settings(**{"task_options": options, **BRIEF, **settings}),
    )


@pytest.mark.parametrize("method", ["taylor", "dhp"])
@pytest.mark.parametrize("kind", KINDS)
def test_from_base_to_report(kind, method, tmp_path):
    values = done(kind, tmp_path, method, base_lr=1e-2).values
    assert values["verified"]["max_abs_error"] < 1e-5
    assert values["after"]["macs"] <= 0.5 * values["before"]["macs"]
    losses = [row["loss"] for row in values["history"]["base"]]
    assert losses[-1] < losses[0]
    console = Console(width=140)
    with console.capture() as said:
        console.print(report.summary(values))
    unit = {"regression": " m ", "regression of two": " ", "regression of images": " "}.get(kind, " % ")
    digits = 4 if "regression" in kind else 2
    shown = values["after"][values["metric"]] * (1 if "regression" in kind else 100)
    assert f"{shown:.{digits}f}{unit}" in said.get()
    assert (tmp_path / "run" / "report.html").exists()
    original = reopen_task(tmp_path / "run", values).model
    assert original(torch.zeros(2, *values["input"]["shape"])).shape == (2, values["input"]["classes"])


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
@pytest.mark.parametrize("kind", ["regression", "multilabel", "multilabel of images"])
def test_every_method_works(kind, method, limit, options, tmp_path):
    values = done(kind, tmp_path, method, limit, options=options, base_epochs=1, epochs=1).values
    assert np.isfinite(values["after"][values["metric"]])
    assert values["after"]["macs"] <= values["before"]["macs"]


def test_pass_puts_its_prompt_on_images_and_refuses_numbers(tmp_path):
    options = ("steps=4", "snapshots=1", "prompt_size=1")
    assert done("multilabel of images", tmp_path / "a", "pass", options=options, base_epochs=1, epochs=1)
    with pytest.raises(UserError, match=r"a visual prompt is added to images.*prompt=none"):
        done("regression", tmp_path / "b", "pass")
    assert not (tmp_path / "b" / "run").exists()


def houses(tmp_path, columns=("height", "depth")) -> Data:
    path = write(tmp_path / "houses.csv", numbers(80))
    return load_rows(
        f"csv:{path}", partial(read_numbers, columns=columns), Columns(features=("a", "b")), augment=False
    )


@pytest.mark.parametrize("error", ["rmse", "mae"])
def test_the_metric_is_in_the_targets_own_unit(error, tmp_path):
    data, model = houses(tmp_path), nn.Linear(2, 2)
    task = Regression(model, data, error=error, unit="m")
    found = task.evaluate(model, data.test)
    train = np.array([[row["height"], row["depth"]] for row in numbers(80)])[data.train.members]
    test = np.array([[row["height"], row["depth"]] for row in numbers(80)])[data.test.members]
    x, _ = data.test.read(np.arange(len(data.test)))
    output = model(x).detach().double().numpy()
    answer = output * train.std(0) + train.mean(0)
    errors = {"rmse": np.sqrt(((answer - test) ** 2).mean(0)).mean(), "mae": np.abs(answer - test).mean()}
    assert found[error] == pytest.approx(errors[error], rel=1e-5)
    r2 = 1 - ((answer - test) ** 2).sum(0) / ((test - test.mean(0)) ** 2).sum(0)
    assert found["r2"] == pytest.approx(r2.mean(), rel=1e-5)
    scaled = (test - train.mean(0)) / train.std(0)
    assert found["loss"] == pytest.approx(((output - scaled) ** 2).mean(), rel=1e-5)
    assert task.metric.text(found[error]).endswith(" m") and not task.metric.higher_is_better
    told = task.conventions()
    assert told["target_mean"] == pytest.approx(train.mean(0).tolist(), rel=1e-6)
    assert told["target_std"] == pytest.approx(train.std(0).tolist(), rel=1e-6)
    assert (told["targets"], told["features"], told["unit"]) == (["height", "depth"], ["a", "b"], "m")


def test_the_scale_stays_that_of_all_training_rows_when_some_are_held_out(tmp_path):
    data = houses(tmp_path)
    task = Regression(nn.Linear(2, 2), data)
    rest, _ = data.train.hold_out(0.5, 0)
    other = task.with_data(replace(data, train=rest)).on(nn.Linear(2, 2))
    assert other.mean.equal(task.mean) and other.std.equal(task.std)


def test_losses_are_of_standardised_targets(tmp_path):
    data, y = houses(tmp_path, ("height",)), torch.tensor([[90.0], [120.0]])
    output = torch.tensor([[0.3], [-4.0]])
    for name, loss in {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}.items():
        task = Regression(nn.Linear(2, 1), data, loss=name)
        assert torch.allclose(task.loss(output, y), loss(output, (y - task.mean) / task.std))
        assert torch.allclose(
            task.loss(output[:, 0], y), task.loss(output, y)
        )  # of a model that returns (B,)


def test_multilabel_figures_are_those_of_torchmetrics_and_scikit_learn():
    metrics = imported_beside_torchvision("torchmetrics").functional.classification
    rng = np.random.default_rng(0)
    output, target = rng.normal(size=(50, 4)), (rng.random((50, 4)) < 0.3).astype(float)
    target[:, 3] = 0  # a label that is never true in this split
    source = Split(
        type("S", (), {"slow": False, "read": lambda self, i, r: torch.zeros(len(i), 2)})(),
        target.astype(np.float32),
        np.arange(50),
    )
    task = MultiLabel(nn.Linear(2, 4), Data("drawn", None, torch.zeros(1, 2), source, source, source))
    found = task.judge(output, target)
    precision = metrics.multilabel_average_precision(
        torch.from_numpy(output[:, :3]), torch.from_numpy(target[:, :3]).long(), 3
    )
    assert found["mean_average_precision"] == pytest.approx(float(precision), rel=1e-5)
    assert found["f1"] == pytest.approx(f1_score(target, output > 0, average="micro"))
    logits, truth = torch.from_numpy(output), torch.from_numpy(target)
    p = logits.float().sigmoid()
    wanted = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()
    assert task.loss(logits, truth.float()).item() == pytest.approx(wanted.item(), rel=1e-5)
    worse = task.distil(logits + 1, logits, 2.0) - task.distil(logits, logits, 2.0)
    assert worse > 0 and torch.isfinite(worse)
    assert np.isnan(task.judge(output, 0 * target)["mean_average_precision"])


def test_a_finished_run_says_what_its_numbers_mean(tmp_path):
    values = done("multilabel of images", tmp_path, base_epochs=1, epochs=1).values
    assert values["conventions"] == {"targets": sorted(LABELS)}
    assert values["data"]["class_names"] == sorted(LABELS)
    photo = tmp_path / "data" / "photos" / "3.png"
    saved = load_run(tmp_path / "run")
    (found,) = saved.predict([photo], top=3)
    with torch.no_grad():
        chances = saved.model(saved.read(photo))[0].sigmoid()
    assert {each.class_name: each.probability for each in found} == pytest.approx(
        dict(zip(sorted(LABELS), chances.tolist(), strict=True))
    )


@pytest.mark.parametrize("kind", ["regression of two", "regression of images"])
def test_a_finished_run_answers_files_in_the_unit_of_its_targets(kind, tmp_path):
    result = done(kind, tmp_path, base_epochs=1, epochs=1)
    saved, data = load_run(tmp_path / "run"), tmp_path / "data"
    if kind == "regression of two":
        row = numbers(160)[7]
        (data / "row.json").write_text(json.dumps(row))
        (answer,) = saved.predict([data / "row.json"])
        assert set(answer) == {"height", "depth"}
        (data / "row.json").write_text(json.dumps({"a": 1, "b": "two"}))
        with pytest.raises(
            UserError, match=r"row.json: expected a JSON object with a number for each of a, b, c, d"
        ):
            saved.predict([data / "row.json"])
        (data / "row.json").write_text(json.dumps(row))
        x = saved.read(data / "row.json")
    else:
        (answer,) = saved.predict([data / "photos" / "7.png"])
        x = saved.read(data / "photos" / "7.png")
    scale = result.values["conventions"]
    with torch.no_grad():
        plain = result.model.eval()(x)[0].reshape(-1) * torch.tensor(scale["target_std"]) + torch.tensor(
            scale["target_mean"]
        )
    assert list(answer.values()) == pytest.approx(plain.tolist(), rel=1e-4)


def test_conventions_that_do_not_fit_are_refused(tmp_path):
    done("regression", tmp_path, base_epochs=1, epochs=1)
    file = tmp_path / "run" / "result.json"
    values = json.loads(file.read_text())
    values["conventions"]["target_std"] = [1.0, 2.0]
    file.write_text(json.dumps(values))
    with pytest.raises(FileError, match="has no conventions of the task regression"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("regression", {"task_options": ("target=constant",)}, r"constant is 5 in all \d+ rows of train"),
        ("regression", {"task_options": ("target=name",)}, r"column 'name' of .* should hold numbers, but row 1"),
        ("regression", {"task_options": ("loss=cubic",)}, r"unknown loss 'cubic'"),
        ("regression", {"task_options": ()}, r"unknown column of 'train' .* 'target'"),
        ("regression", {"model": "zoo:resnet20"}, r"zoo:resnet20 reads images .*; zoo:mlp reads rows of a table"),
        ("regression", {"model": "timm:resnet18"}, r"timm:resnet18 reads images"),
        ("regression", {"model": nn.Linear(3, 1)}, r"cannot read inputs of shape \(1, 4\)"),
        ("regression", {"model": nn.Linear(4, 2)}, r"shape \(1, 2\), but .* has 1 targets \(height\)"),
        ("multilabel", {"model": nn.Linear(4, 3)}, r"shape \(1, 3\), but .* has 2 targets \(warm, wet\)"),
        ("multilabel", {"task_options": ("labels=a",)}, r"column 'a' .* should hold 0 and 1, but row 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(kind, changes, message, tmp_path):
    if "timm" in message:
        imported_beside_torchvision("timm")
    with pytest.raises(UserError, match=message):
        done(kind, tmp_path, **changes)
    assert not (tmp_path / "run").exists()


def test_a_split_in_which_no_label_is_true_is_refused(tmp_path):
    rows = numbers(40)
    write(tmp_path / "train.csv", rows[:30])
    write(tmp_path / "val.csv", [row | {"warm": 0, "wet": 0} for row in rows[30:]])
    write(tmp_path / "test.csv", rows[30:])
    settings = Settings(task_options=("labels=warm,wet", FEATURES))
    with pytest.raises(UserError, match=r"no label is true in the 10 rows of 'val'"):
        prunus.prune(
            "zoo:mlp", data=f"csv:{tmp_path}", task="multilabel", out=tmp_path / "run", settings=settings
        )
    assert not (tmp_path / "run").exists()
