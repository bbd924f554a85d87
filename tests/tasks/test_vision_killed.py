"""Segmentation, regression and labels: killed and resumed, they end in the same bits."""

import pytest
import torch

from prunus.cli import main
from prunus.run import Settings, prune
from prunus.train import loop
from tests.lib.killing import Killed, killing
from tests.lib.programs import figures, kill_when_there, program
from tests.lib.scenes import write_scenes
from tests.lib.tables import numbers, pictures, write

MODELS = {"segment": "tests.lib.scenes:Segmenter", "regression": "zoo:mlp", "multilabel": "zoo:digits_resnet"}
OPTIONS = {"segment": ["patch=16"], "regression": ["target=height,depth", "features=a,b,c"], "multilabel": []}
MOMENTS = {
    "segment": "base/checkpoint.safetensors",
    "regression": "stages/prune.json",
    "multilabel": "recover/checkpoint.safetensors",
}
FILES = ("model.safetensors", "keep.json", "base.safetensors")


def data_of(task, folder) -> str:
    """The SPEC of generated data below `folder`."""
    if task == "segment":
        return f"pairs:{write_scenes(folder / 'scenes', {'train': 12, 'val': 2, 'test': 2})}"
    if task == "regression":
        return f"csv:{write(folder / 'table.csv', numbers(60))}"
    return f"jsonl:{write(folder / 'table.jsonl', pictures(folder, 40))}"


@pytest.mark.timeout(900)  # three programs one after the other
@pytest.mark.parametrize("task", MOMENTS)
def test_a_killed_program_that_is_resumed_ends_in_the_same_bits(task, tmp_path):
    options = [f"--{option}" for option in OPTIONS[task]]
    asked = ["run", "--task", task, "--data", data_of(task, tmp_path), "--model", MODELS[task]]
    asked += [*options, "--base-epochs", "3", "--epochs", "2", "--batch-size", "8"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*asked, "--out", str(whole)]) == 0
    kill_when_there([*asked, "--out", str(killed)], killed / MOMENTS[task])
    assert not (killed / "result.json").exists()
    program([*asked, "--out", str(killed), "--resume"])
    assert figures(killed) == figures(whole)
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("method", ["dhp", "magnitude"])
@pytest.mark.parametrize("task", MOMENTS)
def test_killed_in_the_middle_of_epochs_it_ends_in_the_same_bits(task, method, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)
    data, options = data_of(task, tmp_path), tuple(OPTIONS[task])
    settings = Settings(task=task, task_options=options, base_epochs=2, epochs=2, batch_size=8)

    def run(folder, **more):
        out = tmp_path / folder
        return prune(MODELS[task], data=data, method=method, out=out, settings=settings, **more).folder

    whole, resumed = run("whole"), None
    for attempt in range(30):
        try:
            resumed = run("killed", resume=attempt > 0, progress=killing(11))
        except Killed:
            torch.manual_seed(attempt)  # another process has other random states
    resumed = resumed or run("killed", resume=True)
    assert figures(resumed) == figures(whole)
    for name in FILES:
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
