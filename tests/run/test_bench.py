"""prunus bench: only the model itself is timed, and a gain is claimed only where it was measured."""

import copy
import importlib.util
import math
import shutil

import pytest
import torch
from torch import nn

from prunus import cli
from prunus.errors import FileError, PruningError, UserError
from prunus.files import read_json
from prunus.run import bench
from prunus.run.bench import PRUNED, Runner

BASE = "torch, base"


def times(pruned_ms: float, again_ms: float = 1.0, wobble: float = 0.01) -> dict[str, list[float]]:
    """Twenty rounds of one program; each time varies a little, independently of the others."""

    def around(ms: float, phase: int) -> list[float]:
        return [ms * (1 + wobble * math.sin(7 * number + phase)) for number in range(20)]

    return {
        BASE: around(1.0, 0),
        "torch, base again": around(again_ms, 1),
        "torch, pruned": around(pruned_ms, 2),
    }


@pytest.mark.parametrize(
    ("measured", "says"),
    [
        (times(0.5), "2.00 times as fast"),
        (times(1.0), "no faster."),
        (times(0.93), "no faster."),  # measured, but too small
        (times(1.7), "no faster."),
        (times(0.8, again_ms=0.8), "may be chance"),  # the base itself was as fast a second time
        (times(0.85, wobble=0.5), "may be chance"),
    ],
)
def test_a_gain_is_claimed_only_where_it_was_measured(measured, says):
    lines = bench.words({1: measured}, {}, zeros=0.8)
    assert says in lines[0]
    assert ("remove units" in lines[-1]) == ("2.00" not in says)


def test_the_best_ways_to_run_the_two_models_are_compared():
    measured = times(1.0) | {"torch CSR, pruned": [0.6] * 20, "onnxruntime, base": [0.3] * 20}
    measured |= {"onnxruntime, base again": [0.3] * 20, "onnxruntime, pruned": [0.3] * 20}
    lines = bench.words({1: measured}, {"OpenVINO": "it is not installed"}, zeros=0.9)
    assert "0.3 ms (onnxruntime), the pruned model 0.3 ms (onnxruntime): no faster" in lines[0].replace(
        "takes ", ""
    )
    assert "OpenVINO was not measured: it is not installed." in lines
    assert "90 % of zeros make it no faster" in lines[-1] and "remove units" in lines[-1]


def test_units_that_gain_nothing_are_not_advised_again():
    assert "remove units" not in bench.words({1: times(1.0)}, {}, zeros=0.0)[-1]


def wide(zeros: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand_like(parameter) >= zeros)
    return model


@pytest.mark.filterwarnings("ignore")  # from the exporters
def test_every_installed_program_is_measured():
    record = bench.bench(wide(0.0), wide(0.9), torch.zeros(1, 64), zeros=0.9, seconds=0.05)
    programs = {name.partition(",")[0] for name in record["rows"]["1"]}
    assert {"torch", "torch CSR"} <= programs
    assert set(record["missing"]) == {"onnxruntime", "OpenVINO"} - programs
    for rows in record["rows"].values():
        assert rows[BASE]["median_ms"] > 0 and "of_base" not in rows[BASE]
        assert all(rows[f"{program}, pruned"]["of_base"]["low"] > 0 for program in programs)
    assert record["words"]


@pytest.mark.filterwarnings("ignore")
def test_dense_layers_are_not_run_as_sparse_ones():
    record = bench.bench(wide(0.0), wide(0.3), torch.zeros(1, 64), zeros=0.3, seconds=0.05)
    assert "torch CSR" in record["missing"] and "torch CSR, pruned" not in record["rows"]["1"]


def test_another_computation_is_not_timed():
    model = wide(0.0).eval()
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong[2].bias.add_(1)
    with pytest.raises(PruningError, match="its time would mean nothing"):
        bench.check_output(Runner("torch", PRUNED, bench.prepare_torch(wrong)), model, torch.zeros(1, 64))


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_measured_and_the_figures_are_stored(capsys, digits_run, tmp_path):
    folder = shutil.copytree(digits_run, tmp_path / "run")
    assert cli.main(["bench", str(folder), "--seconds", "0.05"]) == 0
    said = capsys.readouterr().out
    record = read_json(folder / "bench.json")
    assert set(record["rows"]) == {"1", "64"} and "batch of 64: at best" in said
    assert ("onnxruntime, pruned" in record["rows"]["1"]) == bool(importlib.util.find_spec("onnxruntime"))
    assert all(line in " ".join(said.split()) for line in record["words"])


@pytest.mark.parametrize("name", ["base.safetensors", "model.safetensors"])
def test_weights_that_were_damaged_since_the_run_are_not_measured(digits_run, tmp_path, name):
    folder = shutil.copytree(digits_run, tmp_path / "run")
    data = bytearray((folder / name).read_bytes())
    data[-20] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(FileError, match=name):
        bench.bench_run(folder, read_json(folder / "result.json"), seconds=0.05)


def test_a_model_that_was_given_as_an_object_cannot_be_built_again(tmp_path):
    result = {"settings": {"model": "Net (given)"}, "input": {"shape": [1, 8, 8]}}
    with pytest.raises(UserError, match=r"prunus\.run\.bench\.bench"):
        bench.bench_run(tmp_path, result)
