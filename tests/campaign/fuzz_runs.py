"""Damage to every file of a run, which is then resumed: only a PrunusError may come of it.

    python -m tests.campaign.fuzz_runs --trials 200 [--seed 0] [--only NAME] [--record FILE]

makes a short run of a method that removes units, and one of a method that prunes single weights. Each trial damages a
file in a copy, removes the records of the stages after the one that wrote it, and continues the run.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from prunus.errors import PrunusError
from prunus.run import Settings, prune
from tests.campaign.examples import METHODS, RUNS
from tests.campaign.tally import Tally, run_all

STAGES = ["base", "prune", "shrink", "repair", "recover", "evaluate"]
WRITTEN_BY = {
    "base.safetensors": "base",
    "base": "base",
    "prune": "prune",
    "pruned": "shrink",
    "repaired": "repair",
}  # others by recover


def make(kind: str, folder: Path, *, resume: bool = False) -> None:
    """Make or continue a short run."""
    settings = Settings(method=METHODS[kind], base_epochs=1, epochs=1)
    prune("zoo:digits_resnet", data="digits", budget=RUNS[kind], out=folder, settings=settings, resume=resume)


def resume(kind: str, relative: Path, file: Path) -> None:
    """Continue a run so that a damaged file is read. relative: the file within the run's folder."""
    folder = file.parents[len(relative.parts) - 1]
    stage = relative.stem if relative.parts[0] == "stages" else WRITTEN_BY.get(relative.parts[0], "recover")
    later = STAGES[STAGES.index(stage) + (relative.name != "checkpoint.safetensors") :]
    for each in later:
        (folder / "stages" / f"{each}.json").unlink(missing_ok=True)
    make(kind, folder, resume=True)


def tallies(place: Path) -> Iterator[Tally]:
    """Make the runs, and yield the trials of their files, none made yet."""
    for kind in RUNS:
        home = place / kind
        make(kind, home)
        for file in ("result.json", "report.html"):
            (home / file).unlink()
        for file in sorted([*home.rglob("*.json"), *home.rglob("*.safetensors")]):
            relative = file.relative_to(home)
            yield Tally(
                f"{kind}/{relative}", partial(resume, kind, relative), file, home, allowed=PrunusError
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        raise SystemExit(run_all("fuzz of runs", tallies(Path(place)), __doc__, trials=200))
