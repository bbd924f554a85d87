"""One small valid example of every file that Prunus reads back.

    python -m tests.campaign.examples FOLDER

writes them with the code of today. Those in tests/campaign/files were written by version 0.1.0, so they also show that
its files are still read: `saved` is its form of `sealed`. `sealed`, `skipped`, `data`, `lock`, `plan`, `repaired` and
`step.json`, which it did not write, are new.
"""

import json
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import prunus
from prunus import charts
from prunus.data import Data, Split, load_data
from prunus.files import write_json
from prunus.graph import trace
from prunus.latency.profiling import measure_tables
from prunus.methods.dhp import DHP
from prunus.methods.pass_ import PASS
from prunus.methods.pass_ import Config as PassConfig
from prunus.run import Settings, lock, plan, prune
from prunus.run.provenance import FILE
from prunus.run.steps import DONE
from prunus.selection import Budget, Sparsity
from prunus.sparse import masks
from prunus.tasks import Classification
from prunus.testing import tiny_task
from prunus.train import Recipe, fit
from tests.lib.dhp import batches, sgd, small
from tests.lib.latency import Fake
from tests.lib.searching import small_search

FILES = Path(__file__).parent / "files"
X = torch.linspace(-1, 1, 70).view(2, 5, 7)
IMAGES = torch.linspace(-1, 1, 2 * 8 * 8).view(2, 1, 8, 8)
HALF = Budget(macs=0.5)
RECIPE = Recipe(epochs=2, batch_size=16, lr=0.01, optimizer="adamw", ema_decay=0.9, precision="no")
PASS_CONFIG = PassConfig(hidden=4, prompt_size=1)
RUNS = {"units": HALF, "weights": Sparsity(0.8)}  # result.json, settings.json and stages/ of a run each
METHODS = {"units": "taylor", "weights": "lookahead"}


def perceptron() -> nn.Module:
    """The model of keep.json and of the weights' files."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).eval()


def stack() -> nn.Module:
    """The model of a keep.json in which a block is skipped."""
    return tiny_task("stacked").model.eval()


def classifier() -> nn.Module:
    """The model of the checkpoint."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))


class Random:
    """A source of random images (1, 4, 4)."""

    slow = False

    def read(self, indices, rng):
        """Read images, the same for the same index."""
        return torch.stack(
            [torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(int(i))) for i in indices]
        )


def task() -> Classification:
    """The task of the checkpoint."""
    parts = [np.arange(*ends) for ends in ((0, 32), (32, 48), (48, 64))]
    splits = [Split(Random(), members % 3, members) for members in parts]
    return Classification(classifier(), Data("random", 3, torch.zeros(1, 1, 4, 4), *splits))


def dhp_search() -> DHP:
    """The search of dhp.json."""
    return DHP(small(), IMAGES, HALF, steps=6)


def pass_search() -> PASS:
    """The search of pass.json and hypernetwork.safetensors."""
    return PASS(small(), IMAGES, HALF, steps=6, config=PASS_CONFIG, score=lambda net: 0.5)


def every_chart() -> list[dict]:
    """A chart of each kind."""
    words, plane, line = (
        {"title": "title", "note": "note"},
        {"x_label": "x", "y_label": "y"},
        [(0, 1.0), (1, None)],
    )
    png = b"\x89PNG\r\n\x1a\n"
    return [
        charts.to_json(chart)
        for chart in (
            charts.Lines(
                **words, **plane, series={"a": line}, references={"b": line}, thin={"c": [line, line]}
            ),
            charts.Heat(
                **words, rows=["a"], x=[0, 1], x_label="x", values=[[0.5, None]], value_label="v", middle=0.5
            ),
            charts.Points(**words, **plane, groups={"a": [(1.0, 2.0, "text")]}, front=line),
            charts.Bars(**words, labels=["a", "b"], value_label="v", series={"c": [1.0, None]}),
            charts.Picture(**words, png=png),
        )
    ]


def write_run(folder: Path, name: str) -> None:
    """Write the JSON files of a run."""
    with tempfile.TemporaryDirectory() as place:
        settings = Settings(method=METHODS[name], base_epochs=1, epochs=1)
        prune(
            "zoo:digits_resnet", data="digits", budget=RUNS[name], out=Path(place) / "run", settings=settings
        )
        for file in [*Path(place).glob("run/*.json"), *Path(place).glob("run/stages/*.json")]:
            there = folder / name / file.relative_to(Path(place) / "run")
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, there)
    result = folder / name / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"charts": every_chart()}))


def write_repaired(folder: Path) -> None:
    """Write what a run that repairs its model has more than others: settings.json, result.json and a record."""
    with tempfile.TemporaryDirectory() as place:
        write_run(Path(place), "units")
        for file in ("settings.json", "result.json", "stages/repair.json"):
            there = folder / "repaired" / file
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(place) / "units" / file, there)
    result = folder / "repaired" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"int8": in_eight_bits()}))


def in_eight_bits() -> dict[str, Any]:
    """What `prunus export --int8` adds to result.json."""
    dense, pruned = {"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.25, "loss": None}
    return {"before": dense, "after": pruned, "examples": 256}


def write_step(folder: Path) -> None:
    """Write what a step of a run in steps did."""
    with tempfile.TemporaryDirectory() as place:
        settings = Settings(method="magnitude", base_epochs=1, epochs=2, steps=2)
        prune(task=tiny_task("residual"), budget=HALF, out=place, settings=settings)
        shutil.copy(Path(place) / "prune" / "1" / DONE, folder)


def write_provenance(folder: Path) -> None:
    """Write what the data of a run were, the lock of a process elsewhere, and how long a recovery was planned to be."""
    whole = load_data("digits").fingerprint
    assert whole is not None
    few = replace(whole, items=dict(islice(whole.items.items(), 12)), skipped={"unreadable": 1})
    write_json(folder / "data" / FILE, few.to_json())
    holder = lock.Holder(4711, "desk", "desk 0", "1 0", "0123456789abcdef" * 2)
    write_json(folder / "lock" / lock.NAME, asdict(holder))
    (folder / "plan" / plan.FILE).parent.mkdir(parents=True)
    write_json(folder / "plan" / plan.FILE, {"epochs": 2.5})


def write_saved(folder: Path) -> None:
    """Write keep.json, model.safetensors and masks.safetensors, and whole weights in both formats."""
    model = perceptron()
    graph, keep = trace(model, X), {"0": [1, 2, 4]}
    small_model = prunus.shrink(model, graph, keep)
    left = {name: tensor.abs() > 0.1 for name, tensor in small_model.named_parameters() if tensor.dim() > 1}
    masks.hold(small_model, None, left)
    masks.finalise(small_model)
    prunus.save(folder / "sealed", small_model, keep, graph, left)
    whole = stack()
    graph = trace(whole, IMAGES)
    keep = {name: list(range(axis.size)) for name, axis in graph.axes.items()}
    keep |= {"links.2:depth": [], "links.3.up": [0, 2, 5]}
    prunus.save(folder / "skipped", prunus.shrink(whole, graph, keep), keep, graph)
    (folder / "given").mkdir()
    torch.save(model.state_dict(), folder / "given" / "weights.pt")
    prunus.files.write_tensors(folder / "given" / "weights.safetensors", model.state_dict())


def write_searches(folder: Path) -> None:
    """Write the states of DHP and PASS, and a hypernetwork."""
    search, (x, y) = dhp_search(), next(batches(1))
    optimizer = sgd(search.groups(weight_decay=0.0))
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(search.model(x), y).backward()
        optimizer.step()
        search.step(optimizer)
    (folder / "dhp.json").write_text(json.dumps(search.state()))
    search = pass_search()
    optimizer = torch.optim.Adam(search.learned(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(search(x), y).backward()
        optimizer.step()
        search.step()
    (folder / "pass.json").write_text(json.dumps(search.state()))
    search.save(str(folder / "hypernetwork.safetensors"))


def write_all(folder: Path) -> None:
    """Write all examples."""
    torch.set_num_threads(1)
    for name in RUNS:
        write_run(folder, name)
    write_repaired(folder)
    write_step(folder)
    write_saved(folder)
    write_provenance(folder)
    fit(classifier(), task(), RECIPE, folder=folder / "training")
    (folder / "search").mkdir()
    small_search(folder / "search")
    (folder / "search" / "log").unlink()
    measure_tables(perceptron(), trace(perceptron(), X), runtime=Fake(), cache=folder / "times")
    write_searches(folder)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
