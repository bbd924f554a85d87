"""Small MetaPruning searches."""

import json
from pathlib import Path

import torch

from prunus import zoo
from prunus.methods.metapruning import Config
from prunus.run import RunFolder
from prunus.selection import Budget
from prunus.tasks import Classification

SMALL = Config(
    generations=3, population=6, parents=3, mutants=2, crossovers=2, images=150, calibration=128, top=2
)
HALF = Budget(macs=0.5)
EXAMPLE = torch.zeros(1, 1, 8, 8)


def fresh(digits):
    torch.manual_seed(0)
    return Classification(zoo.build("digits_resnet"), digits)


def begun(folder):
    with RunFolder(folder, {"seed": 0}, resume=True) as run:
        run.log("begin")  # without which the folder would be left as it was found
    return run


def journal(folder):
    return Path(folder) / "prune" / "search.jsonl"


def lines(folder, on="search"):
    text = journal(folder).read_text().splitlines()[1:]
    return [line for line in map(json.loads, text) if line["on"] == on]
