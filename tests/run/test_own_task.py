"""A task of one's own, regression judged in dB, goes from base to report by any kind of method."""

import pytest
from rich.console import Console

import prunus
from prunus import report
from prunus.errors import UserError
from prunus.run import Settings
from prunus.selection import Budget, Sparsity
from prunus.tasks import _contract as tasks
from tests.lib.denoising import Denoising, denoiser, noisy_waves

LIMITS = {"magnitude": Budget(macs=0.5), "dhp": Budget(macs=0.5), "lookahead": Sparsity(0.5)}


def said(thing) -> str:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(thing)
    return capture.get()


@pytest.mark.parametrize("method", LIMITS)
def test_a_task_of_ones_own_runs_from_base_to_report(method, tmp_path, monkeypatch):
    traced, checked, usual, check = [], [], tasks.trace, Denoising.check
    monkeypatch.setattr(tasks, "trace", lambda *args, **options: traced.append(1) or usual(*args, **options))
    monkeypatch.setattr(Denoising, "check", lambda self, model: checked.append(1) or check(self, model))
    task = Denoising(denoiser(), noisy_waves())
    settings = Settings(method=method, base_epochs=6)
    result = prunus.prune(task=task, budget=LIMITS[method], out=tmp_path / "run", settings=settings)
    assert len(traced) == len(checked) == 1
    values = result.values
    assert values["verified"]["max_abs_error"] < 1e-6
    assert values["before"]["psnr"] > 5 and values["after"]["psnr"] > values["before"]["psnr"] - 3
    assert values["history"]["base"][-1]["psnr"] > values["history"]["base"][0]["psnr"]
    found = task.evaluate(result.model, task.data.test)["psnr"]
    assert found == pytest.approx(values["after"]["psnr"], rel=1e-6)
    gain = values["after"]["psnr"] - values["before"]["psnr"]
    table = said(report.summary(values))
    assert f"{values['after']['psnr']:.2f} dB" in table and f"{gain:+.2f} dB" in table
    assert "points" not in table or method == "lookahead"  # points of sparsity, which is in per cent
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"psnr {values['before']['psnr']:.2f} dB → {values['after']['psnr']:.2f} dB" in page
    both = {"a": values, "b": values | {"seed": 1, "settings": values["settings"] | {"seed": 1}}}
    assert "standard deviation 0.00 dB" in said(report.comparison(both))


def test_a_finished_run_is_resumed_with_the_task_and_with_nothing_else(tmp_path):
    task, settings = (
        Denoising(denoiser(), noisy_waves()),
        Settings(method="magnitude", base_epochs=1, epochs=1),
    )
    first = prunus.prune(task=task, out=tmp_path, settings=settings)
    again = prunus.prune(task=task, out=tmp_path, settings=settings, resume=True)
    assert again.values["after"]["psnr"] == first.values["after"]["psnr"]
    with pytest.raises(UserError, match="was begun with other settings"):
        prunus.prune(denoiser(), data="digits", out=tmp_path, settings=settings, resume=True)


def test_a_task_or_a_model_and_data(tmp_path):
    task = Denoising(denoiser(), noisy_waves())
    with pytest.raises(UserError, match="a task has a model and data of its own"):
        prunus.prune(denoiser(), task=task, out=tmp_path)
    with pytest.raises(UserError, match="needs a model and data, or a task"):
        prunus.prune(denoiser(), out=tmp_path)


def test_regression_is_held_out_by_chance_not_by_class():
    train = noisy_waves().train
    rest, held = train.hold_out(0.25, seed=0)
    assert len(held) == 30 and sorted([*rest.members, *held.members]) == list(train.members)
    assert (train.hold_out(0.25, seed=0)[1].members == held.members).all()
    assert (train.hold_out(0.25, seed=1)[1].members != held.members).any()
