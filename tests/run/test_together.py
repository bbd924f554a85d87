"""Budgets of milliseconds, and two processes, with a built-in task that is no classification and with a user's own."""

import os
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from prunus import cli
from prunus.data import split_given, unpack
from prunus.files import read_json, read_tensors
from prunus.latency.operator_timing import RUNTIMES
from prunus.run import RunFolder
from tests.lib.latency import Fake
from tests.lib.photos import write_photos
from tests.lib.programs import figures, kill_when_there, program
from tests.lib.restoring import arguments
from tests.lib.two_processes import ROOT, SCRIPT, launched

OWN = ["run", "--task", "tests.lib.own_tasks:regression", "--base-epochs", "1", "--epochs", "1"]
METRICS = {"denoise": "psnr", "own": "error"}


def asked(task, folder):
    return OWN if task == "own" else arguments(folder, task)


@pytest.mark.parametrize("task", METRICS)
def test_every_task_meets_milliseconds(task, tmp_path, monkeypatch):
    monkeypatch.setitem(RUNTIMES, "torch", lambda: Fake(of_network=lambda total: total))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = [*asked(task, tmp_path), "--method", "magnitude", "--budget", "latency_ms=0.8", "--round-to", "1"]
    assert cli.main([*given, "--out", str(tmp_path / "run")]) == 0
    found = read_json(tmp_path / "run" / "result.json")["latency"]
    assert found["measured_ms"] <= found["limit_ms"] == pytest.approx(0.8 * found["original_ms"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("task", "method"), [("denoise", "taylor"), ("own", "taylor"), ("own", "dhp")])
def test_two_processes_bring_every_task_to_its_end(task, method, tmp_path):
    launched(["-m", "prunus", *asked(task, tmp_path), "--method", method, "--out", str(tmp_path / "two")])
    result = read_json(tmp_path / "two" / "result.json")
    assert result["machine"]["processes"] == 2 and result["verified"]["max_abs_error"] < 1e-5
    assert result["after"]["macs"] <= 0.5 * result["before"]["macs"]
    base, after = (result[part][METRICS[task]] for part in ("before", "after"))
    assert base > 0 and after > 0
    assert all(
        tensor.isfinite().all() for tensor in read_tensors(tmp_path / "two" / "model.safetensors").values()
    )


def run_stages(folder):
    """Run quick stages in one of two processes, of which the second always comes later."""
    with RunFolder(Path(folder) / "run", {"seed": 0}) as run:
        for name in ("base", "prune", "shrink", "evaluate"):
            time.sleep(0.4 * int(os.environ["RANK"]))
            assert run.stage(name, lambda name=name: {"name": name})["name"] == name


def test_a_process_that_comes_late_does_not_skip_the_stage_that_another_has_just_ended(tmp_path):
    script = tmp_path / "script.py"
    names = {"module": "tests.run.test_together", "name": "run_stages"}
    script.write_text(SCRIPT.format(root=ROOT, folder=str(tmp_path), **names))
    launched([str(script)])


def test_a_batch_with_fewer_examples_than_processes_leaves_none_without():
    """The last of seven examples in batches of three is alone: both of two processes compute it."""
    x = torch.arange(7.0)[:, None]
    loader = DataLoader(TensorDataset(x, x), batch_size=3)
    batches = [(x[at : at + 3], x[at : at + 3]) for at in range(0, 7, 3)]
    for source in (loader, batches, Again(batches)):
        with pytest.warns(UserWarning) if isinstance(source, Again) else nullcontext():
            split = split_given(source, "train", unpack)
        parts = [[y.flatten().tolist() for _, y in split.batches(1, share=(rank, 2))] for rank in range(2)]
        assert parts == [[[0, 2], [3, 5], [6]], [[1], [4], [6]]]


class Again:
    """An iterable that is no list."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.timeout(600)
def test_killed_with_workers_and_resumed_without_it_ends_in_the_same_bits(tmp_path):
    photos = write_photos(tmp_path / "photos", {"cat": 16, "dog": 16}, (90, 70))
    common = ["run", "--model", "zoo:digits_resnet", "--data", f"imagefolder:{photos}", "--image-size", "70"]
    common += ["--base-epochs", "2", "--epochs", "2", "--batch-size", "4", "--threads", "1", "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    program([*common, str(whole), "--workers", "0"])
    kill_when_there([*common, str(killed), "--workers", "3"], killed / "recover" / "checkpoint.safetensors")
    program([*common, str(killed), "--workers", "1", "--resume"])
    one, other = figures(whole), figures(killed)
    assert one["settings"].pop("workers") == 0 and other["settings"].pop("workers") == 1
    assert one == other
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
