r"""MetaPruning against its controls: who finds better widths, with whose weights, and what that costs.

    python benchmarks/metapruning.py --data parquet:../shared/data/cifar10 \
        --weights ../shared/weights/cifar10_resnet20.safetensors

Widths alone are compared. Each arm finds some within the budget, and is then treated like all others: the base's own
units, as many of each axis as the arm says, those with the best Taylor scores first, whatever weights the search tried
its networks with; then norms renewed and the same epochs of recovery, taught by the base. Accuracy on the test set,
which no choice was made on: right after the cut, with norms renewed, after recovery (last epoch).

    uniform      the same share of every axis
    l1-global    what L1 scores of all units together choose
    random       the best of as many random networks as evolution looks at, with the weights of the base
    inherit      evolution, with the weights of the base
    shared       evolution, with weights trained as networks of many widths, a sandwich a step
    residual     the same training, with what a hypernetwork makes added to the weights
    hypernet     the paper's: a hypernetwork makes all weights, trained from scratch on one random network a step
    greedy       down from the whole network, with the weights of the base
    milliseconds evolution, with the weights of the base, within so much of the time of the base

`drawn` are random networks at the budget, each scored with the weights of every search that trained some: how far do
these agree? `truths` are the first of them after an epoch of that recovery: how far do scores foretell it? Rows that
are there with the same setup are not run again.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from board import Board, arguments, recovered, tuned

import prunus
from prunus import latency, scores
from prunus.data import load_data
from prunus.methods.metapruning import Config, prune
from prunus.methods.metapruning.method import Inputs, prepare
from prunus.run import RunFolder
from prunus.search import scorer
from prunus.selection import Budget, Metered, select
from prunus.tasks import Classification

AT_ONCE = ("uniform", "l1-global")
SANDWICH = {"epochs": 1, "sampling": "sandwich", "start": "given"}
SEARCHES = {
    "random": {"search": "random"},
    "inherit": {},
    "shared": {"weights": "shared", **SANDWICH},
    "residual": {"weights": "hypernet", "form": "residual", **SANDWICH},
    "hypernet": {"weights": "hypernet", "epochs": 4},
    "greedy": {"search": "greedy", "stride": 4},
    "milliseconds": {},
}
PROVIDERS = ("inherit", "shared", "residual", "hypernet")


class Arms:
    """All that the arms of one seed share. data: labelled images; asked: the command line's."""

    def __init__(self, base, data, asked: argparse.Namespace, seed: int):
        self.base, self.data, self.asked, self.seed = base, data, asked, seed
        self.budget = Budget.parse(asked.budget)
        self.at = self.ready("inherit")
        self.graph = self.at.space.graph

    def task(self) -> Classification:
        """The base and the data."""
        return Classification(copy.deepcopy(self.base), self.data)

    def config(self, arm: str) -> Config:
        """How an arm searches."""
        names = ("images", "calibration", "generations", "population", "parents", "round_to")
        same = {name: getattr(self.asked, name) for name in names}
        return Config(**same | SEARCHES[arm], winner="base").resolved()

    def run(self, arm: str) -> RunFolder:
        """The folder of an arm: its journal, its supernet."""
        run = RunFolder(self.asked.folder / f"{arm}_{self.seed}", {"seed": self.seed}, resume=True)
        run.begin()
        return run

    def ready(self, arm: str) -> Inputs:
        """What an arm's search begins with; a supernet that was trained is read."""
        return prepare(self.task(), self.budget, self.config(arm), self.run(arm))

    def row(self, arm: str) -> dict:
        """What became of an arm."""
        if arm == "uniform":
            row = {"widths": self.at.space.widths(self.at.room.uniform())}
        elif arm == "l1-global":
            norms = scores.magnitude(self.base, self.graph, p=1)
            keep = select(self.graph, norms, self.budget, round_to=self.asked.round_to)
            row = {"widths": self.graph.widths(keep)}
        else:
            row = self.searched(arm)
        keep = self.at.space.keep(row["widths"], self.at.order)
        row["share"] = prunus.macs(self.graph, keep) / prunus.macs(self.graph)
        small = prunus.shrink(self.base, self.graph, keep)
        if arm == "milliseconds":
            again = latency.measure({"base": self.base, "small": small}, self.data.example)
            row["again"] = again["small"].median_ms / again["base"].median_ms
        return row | recovered(small, self.data, self.asked.epochs, self.base, self.seed)

    def searched(self, arm: str) -> dict:
        """Search, and what the search says of itself."""
        task, run, budget = self.task(), self.run(arm), self.budget
        journal = run.path / "prune" / "search.jsonl"
        resumed, meter = journal.exists(), None
        if arm == "milliseconds":
            meter = latency.Meter(task.model, self.graph)
            budget = Metered(latency_ms=self.asked.latency, meter=meter)
        began = time.process_time()
        self.ready(arm)  # trains a supernet, which the search then finds
        training = time.process_time() - began
        began = time.process_time()
        keep = prune(task, budget, self.config(arm), run).keep
        seconds = time.process_time() - began
        lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
        tried = {on: [line for line in lines if line["on"] == on] for on in ("search", "confirm")}
        row = {
            "widths": self.graph.widths(keep),
            "processor_seconds": {"training": training, "searching": seconds, "resumed": resumed},
            "networks": len(tried["search"]),
            "dropped": sum(not line["complete"] for line in tried["search"]),
            "pictures": sum(
                line["images"] + self.asked.calibration for found in tried.values() for line in found
            ),
            "scores": {
                on: {
                    "winner": next(
                        line["score"] for line in found if line["widths"] == self.graph.widths(keep)
                    ),
                    "uniform": next((line["score"] for line in found if line["origin"] == "uniform"), None),
                    "best": max(line["score"] for line in found if line["complete"]),
                }
                for on, found in tried.items()
            },
        }
        if meter is not None:
            row["figures"] = meter.figures(keep) | {
                "measured": sum(line["on"] == "measured" for line in lines)
            }
        return row

    @cached_property
    def drawn(self) -> list[dict[str, int]]:
        """The widths of random networks at the budget; a room never gives one twice."""
        rng = np.random.default_rng([self.seed, 1])
        return list(map(self.at.space.widths, self.at.room.sample_random(self.asked.drawn, rng)))

    def scored(self, wanted: list[int]) -> Iterator[dict]:
        """What every provider makes of the drawn networks of these numbers."""
        ready = {name: self.ready(name) for name in PROVIDERS if wanted}
        trials = {name: scorer(self.task(), at.maker, at.parts.search) for name, at in ready.items()}
        networks = self.drawn
        for number in wanted:
            widths = networks[number]
            keep = self.at.space.keep(widths, self.at.order)
            found = {
                name: trial.score(widths, 0, trial.images).double().mean().item()
                for name, trial in trials.items()
            }
            costs = {"macs": prunus.macs(self.graph, keep), "params": prunus.params(self.graph, keep)}
            yield {"widths": widths, "scores": found} | costs

    def true(self, wanted: list[int]) -> Iterator[dict]:
        """What becomes of the drawn networks of these numbers."""
        networks = self.drawn
        for number in wanted:
            keep = self.at.space.keep(networks[number], self.at.order)
            small = prunus.shrink(self.base, self.graph, keep, verify="off")
            yield recovered(small, self.data, 1, self.base, self.seed)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "runs/metapruning")
    parser.add_argument("--budget", default="macs=0.5")
    parser.add_argument("--latency", type=float, default=0.7, help="of the base's time, for milliseconds")
    parser.add_argument("--epochs", type=int, default=2, help="of recovery")
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--population", type=int, default=14)
    parser.add_argument("--parents", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--calibration", type=int, default=500)
    parser.add_argument("--drawn", type=int, default=24)
    parser.add_argument("--truths", type=int, default=10, help="so many of the drawn are recovered")
    parser.add_argument("--arms", nargs="+", default=[*AT_ONCE, *SEARCHES, "drawn", "truths"])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = asked.out or Path(__file__).parent / "results" / f"metapruning_{asked.network}.json"
    left_out = ("data", "weights", "seeds", "arms", "folder", "base", "out")
    setup = {name: value for name, value in vars(asked).items() if name not in left_out}
    board = Board(out, setup | {"searches": SEARCHES})
    data = load_data(asked.data, seed=0)
    base = tuned(asked, data)
    if not board.has(arm="base"):
        board.add(
            {"arm": "base", "recovered": Classification(base, data).evaluate(base, data.test)["accuracy"]}
        )
    for seed in asked.seeds:
        arms = Arms(base, data, asked, seed)
        for arm in asked.arms:
            if arm in ("drawn", "truths"):
                numbers = range(asked.drawn if arm == "drawn" else asked.truths)
                wanted = [each for each in numbers if not board.has(arm=arm, seed=seed, number=each)]
                rows = arms.scored(wanted) if arm == "drawn" else arms.true(wanted)
                for number, row in zip(wanted, rows, strict=True):
                    board.add({"arm": arm, "seed": seed, "number": number} | row)
            elif not board.has(arm=arm, seed=seed):
                board.add({"arm": arm, "seed": seed} | arms.row(arm))


if __name__ == "__main__":
    main()
