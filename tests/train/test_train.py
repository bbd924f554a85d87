"""Training learns, resumes bit-equal after any kill, keeps the last good state, and gives back what it borrowed."""

import io
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from torch import nn

from prunus import progress, zoo
from prunus.data import load_data
from prunus.errors import FileError, TrainingError, UserError
from prunus.files import read_tensors, write_tensors
from prunus.tasks import Classification
from prunus.train import Recipe, checkpoint, fit, loop
from prunus.train.recipe import learning_rate
from tests.lib.train import Each
from tests.lib.two_processes import ROOT, assert_trains_as_one

PLAIN = Recipe(epochs=3, batch_size=32, lr=0.05, warmup_epochs=0.5)  # 5 batches an epoch with `tiny`
RECIPES = {
    "plain": PLAIN,
    "fp32": replace(PLAIN, precision="no", channels_last=False),
    "average": replace(PLAIN, ema_decay=0.9, label_smoothing=0.1, clip_norm=1.0),
    "adamw": replace(PLAIN, optimizer="adamw", lr=1e-3),
    "distilled": replace(PLAIN, distill_weight=0.5, ema_decay=0.9),
}


class Noisy(nn.Module):
    """A small network that draws on every global random state."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.3)
        self.linear = nn.Linear(8 * 4, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 4)
        x = self.linear(self.dropout(x.flatten(1)))
        if self.training:
            x = x * (1 + 0.1 * random.random() + 0.1 * np.random.random())  # noqa: NPY002
        return x


def noisy(seed=0):
    torch.manual_seed(seed)
    return Noisy()


@pytest.fixture(scope="module")
def tiny(digits):
    """160 images to train on, 70 to watch."""
    return replace(digits, train=digits.train.take(np.arange(160)))


def train_until(model, data, recipe, folder, stop_at=None, **options):
    """Train, and raise KeyboardInterrupt after step number `stop_at`."""

    def after_step(step, lr):
        if step == stop_at:
            raise KeyboardInterrupt

    teacher = noisy(9) if recipe.distill_weight else None
    return fit(
        model,
        Classification(model, data),
        recipe,
        folder=folder,
        teacher=teacher,
        along=Each(after_step),
        **options,
    )


def assert_same_weights(model, other):
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
        assert a.stride() == b.stride(), name


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


@pytest.mark.parametrize("name", RECIPES)
def test_resume_is_bit_equal_wherever_it_was_stopped(name, tiny, tmp_path, monkeypatch):
    recipe = RECIPES[name]
    straight = noisy()
    history = train_until(straight, tiny, recipe, None)

    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)  # a checkpoint after every step
    for stop_at in (2, 7, 12):
        random.seed(stop_at), torch.manual_seed(stop_at)
        with pytest.raises(KeyboardInterrupt):
            train_until(noisy(), tiny, recipe, tmp_path, stop_at=stop_at)
    resumed = noisy(seed=5)  # other weights: all must come from the checkpoint
    assert without_seconds(train_until(resumed, tiny, recipe, tmp_path)) == without_seconds(history)
    assert_same_weights(straight, resumed)

    again = noisy(seed=6)
    assert len(train_until(again, tiny, recipe, tmp_path, stop_at=0)) == recipe.epochs  # nothing left to do
    assert_same_weights(straight, again)


SCRIPT = """
import sys, time
from dataclasses import replace
sys.path.insert(0, {root!r})
import numpy as np
from tests.train import test_train
from prunus.train import fit, loop
from prunus.data import load_data
loop.SAVE_EVERY_S = 0.0
digits = load_data("digits")
tiny = replace(digits, train=digits.train.take(np.arange(160)))
def tell(step, lr):
    print(step, flush=True)
    if step == 38:
        time.sleep(600)  # to be killed, however late the kill comes
model = test_train.noisy()
task, recipe = test_train.Classification(model, tiny), replace(test_train.PLAIN, epochs=300)
fit(model, task, recipe, folder={folder!r}, along=test_train.Each(tell))
"""


def test_sigkill_leaves_a_checkpoint_that_goes_on_bit_equal(tiny, tmp_path):
    recipe = replace(PLAIN, epochs=300)
    script = SCRIPT.format(root=ROOT, folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    seen = 0
    for line in process.stdout:
        seen = int(line)
        if seen >= 23:
            time.sleep(0.003)  # somewhere within a step or a save
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL and seen <= 38

    def at_step_40(folder):
        model = noisy()
        with pytest.raises(KeyboardInterrupt):
            train_until(model, tiny, recipe, folder, stop_at=40)
        return model

    assert (tmp_path / checkpoint.NAME).exists()
    assert_same_weights(at_step_40(tmp_path), at_step_40(None))


def test_a_kill_while_the_epoch_is_measured_resumes_bit_equal(tiny, tmp_path, monkeypatch):
    straight = noisy()
    history = train_until(straight, tiny, PLAIN, None)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)

    def killed(*_):
        raise KeyboardInterrupt  # not by exec("raise ..."), after which Python ends with status 130 whatever follows

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Classification, "evaluate", killed)
        train_until(noisy(), tiny, PLAIN, tmp_path)
    resumed = noisy(seed=5)
    assert without_seconds(train_until(resumed, tiny, PLAIN, tmp_path)) == without_seconds(history)
    assert_same_weights(straight, resumed)


def train_prepared(folder):
    """Train without anything random, so that the number of processes must not matter."""
    data = load_data("tests.lib.two_processes:image_items")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    recipe = Recipe(epochs=2, batch_size=20, lr=0.1, precision="no")
    fit(model, Classification(model, data), recipe, folder=folder)


def test_two_processes_under_torchrun_train_as_one_does(tmp_path):
    assert_trains_as_one(train_prepared, tmp_path)


def test_without_checkpoint_nothing_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_until(noisy(), tiny, replace(PLAIN, epochs=1), None)
    assert list(tmp_path.iterdir()) == []


def test_the_seed_alone_decides(tiny):
    def weights(seed, noise):
        torch.manual_seed(noise), np.random.seed(noise), random.seed(noise)  # noqa: NPY002
        model = noisy()
        train_until(model, tiny, replace(PLAIN, epochs=1), None, seed=seed)
        return model.linear.weight

    assert torch.equal(weights(1, noise=1), weights(1, noise=2))
    assert not torch.equal(weights(1, noise=1), weights(2, noise=1))


def test_every_epoch_shows_the_same_examples_in_another_order(tiny):
    shown = []

    class Listed(Classification):
        def training_loss(self, output, target, recipe):
            shown.extend(target.tolist())
            return super().training_loss(output, target, recipe)

    model = noisy()
    fit(model, Listed(model, tiny), replace(PLAIN, epochs=2))
    first, second = shown[:160], shown[160:]
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize("name", ["plain", "average"])
def test_what_was_borrowed_is_put_back(name, tiny):
    model = noisy()
    model.norm.eval()
    keys, states = set(vars(model)), (torch.get_rng_state(), np.random.get_state()[1], random.getstate())  # noqa: NPY002
    train_until(model, tiny, RECIPES[name], None)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert model.training and not model.norm.training and set(vars(model)) == keys
    assert model.conv.weight.is_contiguous()
    with pytest.raises(KeyboardInterrupt):
        train_until(model, tiny, RECIPES[name], None, stop_at=1)
    assert not model.norm.training and model.conv.weight.is_contiguous()


class Strided(nn.Module):
    """A network with a 1x1 shortcut of some stride from 4 channels."""

    def __init__(self, stride):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.shortcut, self.linear = nn.Conv2d(4, 6, 1, stride), nn.Linear(6, 10)

    def forward(self, x):
        x = self.body(self.stem(x).relu()).relu()
        return self.linear(self.shortcut(x).relu().mean((2, 3)))


@pytest.mark.parametrize("had_it", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_that_onednn_computes_wrongly_are_not_asked_for(stride, wanted, had_it, tiny):
    """Strided 1x1 convolutions see contiguous tensors; otherwise oneDNN aborts, hangs or returns wrong gradients."""
    model = Strided(stride)
    if had_it:
        model.to(memory_format=torch.channels_last)
    before, seen = {n: p.stride() for n, p in model.named_parameters()}, []

    def look(module, x, y):
        if module.training and y.requires_grad:
            plain = [x[0].stride()[1] != 1, module.weight.stride() == (4, 1, 1, 1)]
            assert stride == 1 or all(plain)  # before a gradient is computed
            seen.append(any(plain))

    hook = model.shortcut.register_forward_hook(look)
    train_until(model, tiny, replace(PLAIN, epochs=1, precision="no", channels_last=wanted), None)
    hook.remove()
    assert len(seen) == 5 and (stride == 2 or not wanted or not any(seen))
    assert {n: p.stride() for n, p in model.named_parameters()} == before
    assert not model.shortcut._forward_pre_hooks


def test_teacher_is_left_as_it_was_and_changes_the_result(tiny):
    def trained(weight, teacher):
        model = noisy()
        fit(
            model,
            Classification(model, tiny),
            replace(PLAIN, epochs=1, distill_weight=weight),
            teacher=teacher,
        )
        return model.linear.weight

    teacher = noisy(9)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    assert not torch.equal(trained(0.5, teacher), trained(0.5, None))
    assert torch.equal(trained(0.0, teacher), trained(0.0, None))
    assert teacher.training and all(torch.equal(before[n], t) for n, t in teacher.state_dict().items())


class Trap(nn.Module):
    """Gives NaN in its loss, or in its gradient only, from the `fuse`-th training step on."""

    def __init__(self, fuse, gradient_only):
        super().__init__()
        self.linear, self.fuse, self.gradient_only = nn.Linear(64, 10), fuse, gradient_only

    def forward(self, x):
        y = self.linear(x.flatten(1))
        self.fuse -= self.training
        if self.fuse >= 0:
            return y
        # the square root of 0 is 0, its slope is infinite, and infinity times 0 is NaN
        return y + (y * 0).sqrt() if self.gradient_only else y * float("nan")


@pytest.mark.parametrize("gradient_only", [False, True])
def test_nan_stops_training_and_keeps_the_last_good_checkpoint(gradient_only, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    torch.manual_seed(0)
    model = Trap(7, gradient_only)
    words = "linear.weight holds NaN" if gradient_only else "loss is nan in epoch 2, batch 3"
    with pytest.raises(TrainingError, match=rf"{words}.*last good state is kept in .*{checkpoint.NAME}"):
        train_until(model, tiny, replace(PLAIN, precision="no"), tmp_path)
    tensors = read_tensors(tmp_path / checkpoint.NAME)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    torch.manual_seed(0)
    good = Trap(1000, gradient_only)
    with pytest.raises(KeyboardInterrupt):
        train_until(good, tiny, replace(PLAIN, precision="no"), None, stop_at=6)
    assert torch.equal(tensors["model.linear.weight"], good.linear.weight)


def test_nan_without_a_folder_says_so(tiny):
    with pytest.raises(TrainingError, match="No checkpoint had been written"):
        train_until(Trap(0, False), tiny, PLAIN, None)


def test_a_checkpoint_of_something_else_is_refused(tiny, tmp_path):
    recipe = replace(PLAIN, epochs=1)
    train_until(noisy(), tiny, recipe, tmp_path)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    with pytest.raises(UserError, match=r"made with lr = 0\.05, not 0\.1\. Ask for the same"):
        train_until(noisy(), tiny, replace(recipe, lr=0.1), tmp_path)
    with pytest.raises(UserError, match="made with seed = 0, not 1"):
        train_until(noisy(), tiny, recipe, tmp_path, seed=1)
    with pytest.raises(UserError, match=r"of another model: bn1.bias is absent there"):
        train_until(zoo.build("digits_resnet"), tiny, recipe, tmp_path)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before
    (tmp_path / checkpoint.NAME).write_bytes(before[:1000])
    with pytest.raises(FileError, match="not a whole safetensors file"):
        train_until(noisy(), tiny, recipe, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epoch": -1}, r"state in the header of .* is damaged at \$.epoch: Expected int >= 0, there is -1"),
        ({"epoch": 7}, "it is in epoch 8, but has the history of 1 epochs. Remove the file to train"),
        ({"history": 3}, r"\$.history: Expected array, got int, there is 3"),
        ({"loss_sum": float("nan")}, r"\$.loss_sum: Expected float >= -1e"),
        ({"along": None}, r"\$.along: Expected object, got null"),
        ({"format": 2}, "is of format 2, but this version of Prunus reads format 1"),
    ],
)
def test_a_checkpoint_whose_state_cannot_be_is_refused(tiny, tmp_path, change, words):
    recipe, file = replace(PLAIN, epochs=1), tmp_path / checkpoint.NAME
    train_until(noisy(), tiny, recipe, tmp_path)
    with safe_open(file, "pt") as opened:
        state = json.loads(opened.metadata()["state"])
    write_tensors(file, read_tensors(file), {"state": json.dumps(state | change)})
    with pytest.raises(FileError, match=words):
        train_until(noisy(), tiny, recipe, tmp_path)


def test_a_checkpoint_with_tensors_that_cannot_be_is_refused(tiny, tmp_path):
    recipe, file = replace(PLAIN, epochs=1), tmp_path / checkpoint.NAME
    train_until(noisy(), tiny, recipe, tmp_path)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    whole = read_tensors(file)
    of_optimizer = next(name for name in whole if name.startswith("optimizer.0."))
    for name in (of_optimizer.replace(".0.", ".999."), of_optimizer.replace(".0.", ".x.")):
        write_tensors(file, whole | {name: torch.zeros(3)}, header)
        with pytest.raises(FileError, match=r"holds .*, which fits none of the \d+ parameters"):
            train_until(noisy(), tiny, recipe, tmp_path)
    write_tensors(file, whole | {of_optimizer: torch.zeros(3)}, header)
    with pytest.raises(FileError, match=r"holds .* \(3,\), which fits none"):
        train_until(noisy(), tiny, recipe, tmp_path)
    name = next(name for name in whole if name.startswith("model.") and whole[name].dim() > 1)
    write_tensors(file, whole | {name: whole[name].int()}, header)
    with pytest.raises(UserError, match=r"of another model: .* int32 there and .* float32 here"):
        train_until(noisy(), tiny, recipe, tmp_path)


def test_learning_rate_rises_then_falls_to_zero():
    recipe = Recipe(epochs=10, lr=0.4, warmup_epochs=2)
    rates = [learning_rate(recipe, step / 100) for step in range(1001)]
    assert rates[0] < 0.01 and max(rates) == pytest.approx(0.4) and np.argmax(rates) == 200
    assert rates[600] == pytest.approx(0.2) and rates[1000] == pytest.approx(0.0, abs=1e-9)
    assert np.all(np.diff(rates[:201]) > 0) and np.all(np.diff(rates[200:]) < 0)


def test_one_step_is_torchs_own(tiny):
    """A step of the loop, against the same written out: decay on weights only, Nesterov, clipping."""
    recipe = Recipe(epochs=1, batch_size=160, lr=0.1, weight_decay=0.1, clip_norm=0.5, precision="no")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    by_hand = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    by_hand.load_state_dict(model.state_dict())
    train_until(model, tiny, recipe, None)

    x, y = next(tiny.train.batches(160, seed=0, augment=True))
    nn.functional.cross_entropy(by_hand(x), y).backward()
    nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
    linear = by_hand[1]
    # the first step of Nesterov's momentum goes along 1 + momentum times the gradient
    for parameter, decay in ((linear.weight, 0.1), (linear.bias, 0.0)):
        parameter.data -= 0.1 * 1.9 * (parameter.grad + decay * parameter.data)
    assert torch.allclose(model[1].weight, linear.weight, atol=1e-6)
    assert torch.allclose(model[1].bias, linear.bias, atol=1e-6)


def test_the_average_is_what_the_model_ends_with(tiny):
    """Against an average kept by hand step by step, which sees the raw weights."""
    recipe = replace(PLAIN, ema_decay=0.5)
    model = noisy()
    average = model.linear.weight.detach().clone()

    def after_step(step, lr):
        average.lerp_(model.linear.weight.detach(), 1 - min(0.5, (1 + step) / (10 + step)))

    fit(model, Classification(model, tiny), recipe, along=Each(after_step))
    assert torch.allclose(model.linear.weight, average, atol=1e-6)


def test_distillation_alone_moves_the_answers_to_the_teachers(tiny):
    teacher, model = noisy(9).eval(), noisy()
    task = Classification(model, tiny)
    x, _ = next(tiny.train.batches(160))

    def apart():
        with torch.no_grad():
            return float(task.distil(model.eval()(x), teacher(x), 2.0))

    before = apart()
    recipe = replace(PLAIN, epochs=6, distill_weight=1.0, distill_temperature=2.0)
    fit(model.train(), task, recipe, teacher=teacher)
    assert apart() < before / 3
    assert task.distil(teacher(x), teacher(x), 2.0).item() == pytest.approx(0.0, abs=1e-6)


def test_digits_are_learnt_to_97_percent(digits):
    torch.manual_seed(0)
    model = zoo.build("digits_resnet")
    task = Classification(model, digits)
    history = fit(model, task, replace(task.recipe("scratch"), epochs=8))
    assert task.evaluate(model, digits.test)["accuracy"] >= 0.97
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert history[-1]["loss"] < history[0]["loss"] / 5 and history[-1]["accuracy"] > 0.9
    assert history[-1]["lr"] < history[2]["lr"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam'. Did you mean adamw"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"lr": -1.0}, "lr should be a number from 0 to 100, but is -1.0; the nearest is 0"),
        ({"ema_decay": 1.5}, "ema_decay should be a number from 0 to 1, but is 1.5; the nearest is 1"),
        ({"batch_size": 0}, "batch_size should be a whole number from 1, but is 0; the nearest is 1"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        Recipe(**({"epochs": 1} | wrong))


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch):
    seconds = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    written = io.StringIO()
    with progress.bar("training", 10, Console(file=written, width=200)) as step:
        for _ in range(10):
            step(1, "loss 0.5")
    lines = written.getvalue().splitlines()
    assert lines[0] == "training: 30 %, 28 s left, loss 0.5"  # 12 s for 3 of 10
    assert len(lines) == 4 and lines[-1] == "training: done in 44 s"


def test_progress_on_a_terminal_is_a_bar():
    written = io.StringIO()
    with progress.bar("training", 4, Console(file=written, width=200, force_terminal=True)) as step:
        step(4, "loss 0.5")
    assert (
        "training" in written.getvalue()
        and "100 %" in written.getvalue()
        and "loss 0.5" in written.getvalue()
    )


def test_silence_is_silent(capfd):
    with progress.silent("training", 4) as step:
        step(4, "loss 0.5")
    assert capfd.readouterr() == ("", "")


def test_nothing_to_train_is_said(tiny):
    with pytest.raises(UserError, match="nothing to train"):
        train_until(noisy().requires_grad_(False), tiny, PLAIN, None)


def test_evaluation_counts_right_answers_and_keeps_modes(tiny):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    model = noisy()
    model.norm.eval()
    task = Classification(model, tiny)
    found = task.evaluate(model, tiny.val)
    assert model.training and not model.norm.training
    x, y = next(tiny.val.batches(1000))
    with torch.no_grad():
        output = model.eval()(x)
    assert found["accuracy"] == sklearn_metrics.accuracy_score(y, output.argmax(1))
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(output, y)), rel=1e-5)


def test_wrong_class_count_and_shape_are_said(tiny):
    with pytest.raises(UserError, match=r"shape \(1, 7\), but digits has 10 classes"):
        Classification(model := zoo.build("digits_resnet", classes=7), tiny).check(model)
    with pytest.raises(UserError, match=r"cannot read images of shape \(1, 1, 8, 8\)"):
        Classification(model := zoo.build("resnet20"), tiny).check(model)
