"""A task of a user's own goes from base to report, is resumed to the same bits, and says what is wrong with it."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunus
from prunus import report
from prunus.errors import UserError
from prunus.files import read_json
from prunus.run import Settings, read_result
from prunus.selection import Budget, Sparsity
from prunus.train import loop
from tests.lib import own_tasks
from tests.lib.killing import Killed, killing
from tests.lib.models import imported_beside_torchvision
from tests.lib.programs import figures, kill_when_there, program

SETTINGS = Settings(base_epochs=2)
RUNS = [
    *((own_tasks.regression, method) for method in ("magnitude", "taylor", "activation", "dhp")),
    *((own_tasks.multilabel, method) for method in ("taylor", "lookahead")),
    *((own_tasks.segmentation, method) for method in ("magnitude", "dhp")),
    *((own_tasks.language_model, method) for method in ("taylor", "magnitude")),
]
SEARCH = ("generations=2", "population=6", "parents=3")
SEARCHES = [
    (own_tasks.segmentation, "pass", ("steps=6", "snapshots=2")),
    (own_tasks.regression, "pass", ("steps=6", "snapshots=2", "prompt=none")),
    (own_tasks.segmentation, "metapruning", SEARCH),
    (own_tasks.regression, "metapruning", ("weights=shared", "epochs=1", *SEARCH)),
    (own_tasks.language_model, "metapruning", ("weights=shared", "epochs=1", *SEARCH)),
    (own_tasks.language_model, "lookahead", ("score=grasp",)),
    (own_tasks.regression, "lookahead", ("score=wanda", "schedule=iterative", "rounds=2", "epochs=1")),
]


def said(values) -> str:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(report.summary(values))
    return capture.get()


def limit(method):
    return Sparsity(0.5) if method == "lookahead" else Budget(macs=0.6)


@pytest.mark.parametrize(("make", "method"), RUNS, ids=lambda value: getattr(value, "__name__", value))
def test_every_kind_of_task_runs_from_base_to_report(make, method, tmp_path):
    task = make()
    result = prunus.prune(
        task=task, budget=limit(method), method=method, out=tmp_path / "run", settings=SETTINGS
    )
    values, metric = result.values, task.metric
    assert values["verified"]["max_abs_error"] < 1e-4
    assert values["after"]["macs"] < values["before"]["macs"]
    judged = task.data.val if task.data.test is None else task.data.test
    found = task.evaluate(result.model, judged)
    assert found[metric.key] == pytest.approx(values["after"][metric.key], rel=1e-5)
    assert found["loss"] == pytest.approx(values["after"]["loss"], rel=1e-5)
    losses = [row["loss"] for row in values["history"]["base"]]
    assert losses[-1] < losses[0]
    assert metric.text(values["after"][metric.key]) in said(values)
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(("make", "method", "options"), SEARCHES)
def test_searches_and_schedules_train_on_the_users_loader(make, method, options, tmp_path):
    settings = Settings(base_epochs=1, epochs=1, options=options)
    budget = limit(method)
    values = prunus.prune(
        task=make(), budget=budget, method=method, out=tmp_path / "run", settings=settings
    ).values
    if method == "lookahead":
        assert 0.49 < values["after"]["sparsity"] < 0.6  # weights of units that are removed count as zeros
    else:
        assert values["after"]["macs"] <= 0.6 * values["before"]["macs"]


def test_without_a_test_set_the_report_says_so(tmp_path):
    values = prunus.prune(task=own_tasks.multilabel(), out=tmp_path, settings=SETTINGS).values
    assert values["judged_on"] == "val" and set(values["data"]["splits"]) == {"train", "val"}
    assert read_result(tmp_path)["input"]["shapes"] == [[8], [8]]  # as the commands on finished runs read it
    assert {"loss_labels", "loss_sparsity"} < values["after"].keys()
    both = values["after"]["loss_labels"] + values["after"]["loss_sparsity"]
    assert values["after"]["loss"] == pytest.approx(both)
    page = (tmp_path / "report.html").read_text()
    for text in (said(values), page):
        assert "There is no test set" in " ".join(text.split())
    assert "the test set was used only for this table" not in page
    tested = prunus.prune(task=own_tasks.regression(), out=tmp_path / "tested", settings=SETTINGS).values
    assert tested["judged_on"] == "test" and "There is no test set" not in said(tested)


@pytest.mark.filterwarnings("ignore:dhp. . units still in use:UserWarning")  # its search has six steps
@pytest.mark.parametrize("make", [own_tasks.regression, own_tasks.multilabel, own_tasks.segmentation])
@pytest.mark.parametrize("method", ["taylor", "dhp"])
def test_killed_in_the_middle_of_epochs_it_ends_in_the_same_bits(make, method, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)

    def run(folder, **options):
        return prunus.prune(task=make(), method=method, out=tmp_path / folder, settings=SETTINGS, **options)

    whole = run("whole")
    resumed = None
    for attempt in range(30):
        try:
            resumed = run("killed", resume=attempt > 0, progress=killing(7))
        except Killed:
            torch.manual_seed(attempt)  # another process has other random states
    resumed = resumed or run("killed", resume=True)
    assert figures(resumed.folder) == figures(whole.folder)
    for name in ("base.safetensors", "model.safetensors"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_the_command_line_runs_a_users_callable_killed_and_resumed(tmp_path):
    arguments = [
        "run",
        "--task",
        "tests.lib.own_tasks:regression",
        "--method",
        "magnitude",
        "--base-epochs",
        "2",
    ]
    program([*arguments, "--out", str(tmp_path / "whole")])
    killed = [*arguments, "--out", str(tmp_path / "killed")]
    kill_when_there(killed, tmp_path / "killed" / "base" / "checkpoint.safetensors")
    program([*killed, "--resume"])
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
    settings = read_json(tmp_path / "whole" / "settings.json")
    assert settings["task"] == "tests.lib.own_tasks:regression" and settings["data"] == "own data"


def test_a_loader_with_other_examples_is_not_resumed(tmp_path):
    def task(seed):
        made = own_tasks.regression()
        made.data.train.loader.dataset.numbers += seed
        return made

    prunus.prune(task=task(0), out=tmp_path, settings=SETTINGS)
    with pytest.raises(UserError, match="train holds other"):
        prunus.prune(task=task(1), out=tmp_path, settings=SETTINGS, resume=True)


# --------------------------------------------------------------- models that return their loss in training mode only
class Detector(nn.Module):
    """Answers with numbers in evaluation, and with its losses in training, for which it needs the targets."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 24), nn.BatchNorm1d(24), nn.Linear(24, 1)

    def forward(self, x, targets=None):
        answer = self.head(F.relu(self.norm(self.body(x))))
        if not self.training:
            return {"answer": answer}
        assert targets is not None, "targets should not be none when in training mode"
        return {"near": F.l1_loss(answer, targets), "square": F.mse_loss(answer, targets)}


def detection(**options):
    make = torch.Generator().manual_seed(0)
    x = torch.randn(96, 6, generator=make)
    rows = [{"x": row, "targets": row.sum().view(1)} for row in x]
    given = {"metric": lambda output, target: F.l1_loss(output["answer"], target), "metric_name": "error"}
    given |= {"recipe": {"epochs": 8, "lr": 1e-2}, "higher_is_better": False} | options
    return prunus.Task(
        own_tasks.made(Detector),
        train=DataLoader(rows[:64], batch_size=16, shuffle=True),
        val=DataLoader(rows[64:], batch_size=16),
        loss=None,
        **given,
    )


DETECTING = [
    ("magnitude", ()),
    ("activation", ()),
    ("dhp", ()),
    ("lookahead", ()),
    ("metapruning", ("order=magnitude", *SEARCH)),
]


@pytest.mark.parametrize(("method", "options"), DETECTING)
def test_a_model_without_a_loss_in_evaluation_is_judged_by_its_metric(method, options, tmp_path):
    task = detection()
    statistics = task.model.norm.running_mean.clone()
    settings = Settings(base_epochs=4, epochs=2, options=options)
    values = prunus.prune(
        task=task, method=method, budget=limit(method), out=tmp_path, settings=settings
    ).values
    assert values["verified"]["modes"] == ["eval", "train"]
    assert values["after"]["loss"] is None and values["after"]["error"] < 10
    losses = [row["loss"] for row in values["history"]["base"]]
    assert losses[-1] < losses[0]
    assert task.model.norm.running_mean.equal(statistics)  # the check in training mode changed nothing
    assert "error on val" in said(values)


def test_auto_takes_a_method_that_needs_no_loss_there(tmp_path):
    settings = Settings(method="auto", base_epochs=0, epochs=0)
    result = prunus.prune(task=detection(), out=tmp_path, settings=settings)
    assert result.values["method"] == result.values["settings"]["method"] == "activation"
    assert "which taylor cannot use" in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("method", "budget", "changes", "sentence"),
    [
        (
            "taylor",
            None,
            {},
            "taylor needs the loss in evaluation mode.*take another method, such as magnitude",
        ),
        ("pass", None, {"options": ("prompt=none",)}, "pass needs the loss in evaluation mode"),
        ("metapruning", None, {}, "order=taylor needs the loss in evaluation mode.*take order=magnitude"),
        (
            "metapruning",
            None,
            {"options": ("weights=shared",)},
            "weights=shared needs the loss in evaluation mode",
        ),
        (
            "lookahead",
            Sparsity(0.5),
            {"options": ("score=snip",)},
            "score=snip needs the loss.*score=lookahead",
        ),
        (
            "magnitude",
            None,
            {"distill_weight": 0.5},
            "distill_weight=0.5: the model answers in training mode with its",
        ),
    ],
)
def test_what_needs_a_loss_in_evaluation_is_refused_before_anything_is_written(
    method, budget, changes, sentence, tmp_path
):
    with pytest.raises(UserError, match=sentence):
        prunus.prune(
            task=detection(), method=method, budget=budget, out=tmp_path / "run", settings=Settings(**changes)
        )
    assert not (tmp_path / "run").exists()


def test_without_a_loss_in_evaluation_a_metric_is_needed(tmp_path):
    task = detection(metric=None, higher_is_better=None)
    with pytest.raises(UserError, match="returns its loss in training mode only, so nothing judges it"):
        prunus.prune(task=task, method="magnitude", out=tmp_path / "run")


# -------------------------------------------------------------------------------------- bad input
X, Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.ones(8, 1)


def task(batches=((X, Y),), **options):
    batches = [*batches]
    given = {"train": batches, "val": batches, "loss": F.mse_loss} | options
    return prunus.Task(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1)), **given)


FAULTS = {
    "a loss for each example": (
        {"loss": lambda o, t: (o - t)[:, 0]},
        "loss should be a scalar tensor, but is tensor .8,.",
    ),
    "a loss that is a number": (
        {"loss": lambda o, t: 1.5},
        "loss should be a scalar tensor, but is float 1.5",
    ),
    "a loss without gradient": (
        {"loss": lambda o, t: (o.argmax(1) == 0).float().mean()},
        "the loss has no gradient",
    ),
    "a loss of a constant": ({"loss": lambda o, t: t.mean()}, "the loss has no gradient"),
    "a loss that is NaN": (
        {"loss": lambda o, t: F.mse_loss(o, t) / 0 * 0},
        "loss is nan on the first batch of train",
    ),
    "one of several that is infinite": (
        {"loss": {"fit": F.mse_loss, "size": (lambda o, t: (o / 0).abs().sum(), 2.0)}},
        "size is (inf|nan) on the first batch of train",
    ),
    "a loss that fails": (
        {"loss": lambda o, t: F.cross_entropy(o, t.long()[:2])},
        "the loss failed on the first batch",
    ),
    "a metric of many numbers": (
        {"metric": lambda o, t: o},
        "the metric should be one number, but is tensor .8, 1.",
    ),
    "a metric that is text": ({"metric": lambda o, t: "good"}, "should be one number, but is str 'good'"),
    "a metric that is NaN": (
        {"metric": lambda o, t: float("nan")},
        "metric is NaN on the first batch of val",
    ),
    "a metric that fails": ({"metric": lambda o, t: o.missing}, "metric failed on the first batch of val"),
    "a model that returns no loss": (
        {"loss": None, "unpack": lambda batch: batch},
        "loss=None is for models that return their loss",
    ),
    "inputs of another shape": ({"batches": [(X[:, :2], Y)]}, "the model cannot be called with one example"),
    "inputs of another shape in test": (
        {"test": [(X[:, :2], Y)]},
        "the model cannot be called with the first batch of test",
    ),
    "a metric that fails on test": (
        {"test": [(X, Y[:3])], "metric": lambda o, t: (o - t).mean().item()},
        "metric failed on the first batch of test",
    ),
    "classes that all count nowhere": (
        {"batches": [(X, torch.full((len(X),), -100))], "loss": F.cross_entropy},
        "loss is nan on .* All classes in the target are -100",
    ),
}


@pytest.mark.parametrize(("options", "sentence"), FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_is_said_before_anything_is_written(options, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        prunus.prune(task=task(**options), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batches": [{"a": X}]}, "none of them is there; the keys are a"),
        ({"batches": []}, "train gives no batch"),
        ({"train": (batch for batch in [(X, Y)])}, "train is a generator, which can be read once only"),
        ({"val": DataLoader(TensorDataset(X, Y), batch_size=9, drop_last=True)}, "val gives no batch"),
        ({"loss": 3}, "loss: expected a function"),
        ({"loss": {}}, "loss: expected a loss by name"),
        ({"metric": 3}, "metric: expected a function"),
        ({"metric": F.l1_loss, "metric_name": "loss"}, "is the name of something else"),
        ({"recipe": {"rate": 1}}, "recipe: .*rate"),
    ],
)
def test_wrong_arguments_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        task(**options)


def test_a_torchmetric_that_does_not_fit_is_refused():
    metrics = imported_beside_torchvision("torchmetrics")
    with pytest.raises(UserError, match="judged by one metric"):
        task(metric=metrics.MetricCollection([metrics.MeanMetric()]))
    with pytest.raises(UserError, match="does not say whether higher is better"):
        task(metric=metrics.MeanMetric())
    assert task(metric=metrics.MeanSquaredError()).metric.higher_is_better is False


def test_a_loader_that_ends_after_one_epoch_is_refused():
    class Once:
        batches = [(X, Y)] * 3

        def __iter__(self):
            batches, Once.batches = Once.batches, []
            return iter(batches)

    with pytest.warns(UserWarning, match="is read in the order in which it comes"):
        made = task(train=Once(), example=X[:1])
    with pytest.raises(UserError, match="train gave 0 batches in epoch 1, but 3 when it was first read"):
        list(made.data.train.batches(1))


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("metapruning", (), "list of whole batches, of which single examples cannot be had"),
        ("pass", (), "a visual prompt is added to images"),
    ],
)
def test_a_method_that_cannot_work_refuses_before_anything_is_trained(method, options, sentence, tmp_path):
    settings = Settings(options=options, base_epochs=1)
    with pytest.raises(UserError, match=sentence):
        prunus.prune(task=own_tasks.multilabel(), method=method, out=tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


def test_another_batch_size_is_refused_because_the_loader_has_its_own(tmp_path):
    with pytest.raises(UserError, match="gives batches of 16; set it where the loader is made"):
        prunus.prune(task=own_tasks.regression(), out=tmp_path / "run", settings=Settings(batch_size=8))


def test_a_tasks_options_and_names_go_together(tmp_path):
    with pytest.raises(UserError, match="takes no options"):
        prunus.prune(task=own_tasks.regression(), out=tmp_path, settings=Settings(task_options=("sigma=2",)))
    with pytest.raises(UserError, match="unknown option of task classification 'sigma'"):
        settings = Settings(task_options=("sigma=2",))
        prunus.prune("zoo:digits_resnet", data="digits", out=tmp_path, settings=settings)
    with pytest.raises(UserError, match="should return a task"):
        prunus.prune(task="tests.lib.own_tasks:Regressor", out=tmp_path)
    with pytest.raises(UserError, match=r"unknown task 'clasification'\. Did you mean classification"):
        prunus.prune("zoo:digits_resnet", task="clasification", data="digits", out=tmp_path)


def test_torchmetrics_is_not_imported_for_those_who_use_none():
    source = "import sys, prunus; prunus.Task; print('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], capture_output=True, text=True).stdout == "False\n"
