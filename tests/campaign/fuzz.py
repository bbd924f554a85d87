"""Damage to every file that Prunus reads: only a UserError may come of it, within bounded memory.

    python -m tests.campaign.fuzz --trials 10000 [--seed 0] [--only NAME] [--record FILE]

damages the examples in tests/campaign/files, each trial one of them, reads it by its public reader, and prints for each
reader how many trials were refused, how many read all the same, and every other error with the damage that causes it.
"""

import json
import warnings
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path

import torch
from rich.console import Console

from prunus import report
from prunus.export import load, load_keep, load_masks
from prunus.files import read_json
from prunus.graph import trace
from prunus.latency.cache import Timings
from prunus.run import RunFolder, lock
from prunus.run.plan import read_plan
from prunus.run.provenance import read_fingerprint
from prunus.run.records import check_record
from prunus.run.steps import StepRecord
from prunus.train import fit
from prunus.zoo import load_weights
from tests.campaign import examples
from tests.campaign.tally import Tally, run_all
from tests.lib.searching import small_search


def read_result(file: Path) -> None:
    """Read a result.json and show it in every way."""
    values = report.read_result(file)
    console = Console(file=StringIO(), width=100)
    console.print(report.summary(values))
    console.print(report.comparison({"a": values, "b": values}))
    report.write_page(file.with_name("report.html"), values)


def read_settings(home: str, file: Path) -> None:
    """Resume a run with the settings of the example in a folder."""
    original = json.loads((examples.FILES / home / "settings.json").read_text())
    RunFolder(file.parent, original, resume=True)


def read_stage(file: Path) -> None:
    """Read the record of a finished stage."""
    run = RunFolder(file.parents[1], json.loads((file.parents[1] / "settings.json").read_text()), resume=True)
    check_record(run.path, file.stem, run.stage(file.stem, dict))


def read_step(file: Path) -> None:
    """Read what a step did."""
    read_json(file, StepRecord)


def read_saved(file: Path) -> None:
    """Load a pruned model, its keep and its masks."""
    model = examples.perceptron()
    load_keep(file.parent, trace(model, examples.X))
    load_masks(file.parent)
    load(file.parent, model)


def read_sealed(file: Path) -> None:
    """Load a pruned model and its masks; damage that is not noticed must have changed nothing."""
    model, whole = examples.perceptron(), examples.FILES / "sealed"
    assert load_keep(file.parent, trace(model, examples.X)) == load_keep(whole)
    assert load_masks(file.parent).keys() == load_masks(whole).keys()
    assert torch.equal(load(file.parent, model)(examples.X), load(whole, model)(examples.X))


def read_skipped(file: Path) -> None:
    """Load a model that lacks a block; damage that is not noticed must have changed nothing."""
    model, whole = examples.stack(), examples.FILES / "skipped"
    assert load_keep(file.parent, trace(model, examples.IMAGES)) == load_keep(whole)
    assert torch.equal(load(file.parent, model)(examples.IMAGES), load(whole, model)(examples.IMAGES))


def read_data(file: Path) -> None:
    """Read what the data of a run were, and compare that with what they are."""
    original, found = read_fingerprint(examples.FILES / "data"), read_fingerprint(file.parent)
    assert original is not None and found is not None
    original.differences(found)
    found.differences(original)
    found.summary()


def read_planned(file: Path) -> None:
    """Read how many epochs of recovery were planned."""
    assert read_plan(file.parents[1])


def read_lock(file: Path) -> None:
    """Read who writes into a folder, and refuse another writer."""
    holder = lock.read(file)
    assert holder is not None
    holder.is_gone()
    assert str(holder.refusal(file.parent)).isprintable()


def read_checkpoint(file: Path) -> None:
    """Continue a training."""
    fit(examples.classifier(), examples.task(), examples.RECIPE, folder=file.parent)


def read_journal(file: Path) -> None:
    """Continue a search."""
    small_search(file.parent)


def read_times(file: Path) -> None:
    """Read the times of operators; damage is a warning, and they are measured again."""
    original = next((examples.FILES / "times").iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Timings(file.parent, json.loads(original.read_text())["circumstances"]).write()


def read_weights(file: Path) -> None:
    """Load weights into a model."""
    load_weights(examples.perceptron(), file)


def read_dhp(file: Path) -> None:
    """Restore a DHP search."""
    examples.dhp_search().restore(read_json(file))


def read_pass(file: Path) -> None:
    """Restore a PASS search."""
    examples.pass_search().restore(read_json(file))


def read_hypernetwork(file: Path) -> None:
    """Load a hypernetwork."""
    examples.pass_search().load(str(file))


READERS: dict[str, Callable[[Path], None]] = {
    "units/result.json": read_result,
    "weights/result.json": read_result,
    "units/settings.json": partial(read_settings, "units"),
    **{
        f"weights/stages/{name}.json": read_stage
        for name in ("base", "prune", "shrink", "recover", "evaluate")
    },
    "repaired/result.json": read_result,
    "repaired/settings.json": partial(read_settings, "repaired"),
    "repaired/stages/repair.json": read_stage,
    "step.json": read_step,
    **{f"saved/{name}": read_saved for name in ("keep.json", "model.safetensors", "masks.safetensors")},
    **{f"sealed/{name}": read_sealed for name in ("keep.json", "model.safetensors", "masks.safetensors")},
    **{f"skipped/{name}": read_skipped for name in ("keep.json", "model.safetensors")},
    "data/data.json": read_data,
    "plan/recover/plan.json": read_planned,
    "lock/.lock": read_lock,
    "training/checkpoint.safetensors": read_checkpoint,
    "search/journal.jsonl": read_journal,
    "times": read_times,
    "given/weights.safetensors": read_weights,
    "given/weights.pt": read_weights,
    "dhp.json": read_dhp,
    "pass.json": read_pass,
    "hypernetwork.safetensors": read_hypernetwork,
}
STATES = ("dhp.json", "pass.json")  # a user's own checkpoint holds them, so only their JSON is damaged


def example_of(name: str) -> Path:
    """Return the example of a reader."""
    path = examples.FILES / name
    return next(path.iterdir()) if path.is_dir() else path


def tally_of(name: str) -> Tally:
    """Return the trials of a reader, none made yet."""
    file = example_of(name)
    home = (
        None if file.parent == examples.FILES else examples.FILES / file.relative_to(examples.FILES).parts[0]
    )
    return Tally(name, READERS[name], file, home, json_only=name in STATES)


if __name__ == "__main__":
    raise SystemExit(run_all("fuzz", map(tally_of, READERS), __doc__, trials=10_000))
