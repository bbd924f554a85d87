r"""PASS against its ablations and controls, and what it learned on one task put to use on another.

    python benchmarks/pass.py --data parquet:../shared/data/cifar10 \
        --weights ../shared/weights/cifar10_resnet20.safetensors

The base is the network with the weights given, tuned to the data. Every arm says which of its units stay within a
budget; then norms are renewed and the same epochs of recovery follow, taught by the base. Arms of PASS have their
search on top; l1-longer recovers for as many steps more. Accuracy on the test set, which no choice was made on: right
after the cut, with norms renewed, after recovery (last epoch).

Transfer: the classes are split in halves, which are two tasks. The base of each has the rows of the classifier for its
classes, and is tuned to it. On the second: its own search, the structure that was found on the first, the hypernetwork
that was learned on the first, as it is and with a short search, and L1. Rows that are there with the same setup are
not run again.
"""

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from board import Board, arguments, recovered, tuned
from torch import nn

import prunus
from prunus import methods
from prunus.data import Data, Split, load_data
from prunus.methods.pass_ import Config, prune
from prunus.run import RunFolder
from prunus.tasks import Classification
from prunus.train import fit

SEARCHES = {
    "pass": {},
    "pass-no-prompt": {"prompt": "none"},
    "pass-not-recurrent": {"recurrent": False},
    "pass-product": {"masking": "product"},
    "pass-random-init": {"init": "random"},
    "pass-per-axis": {"scope": "per_axis"},
}
AT_ONCE = {
    "l1": ("magnitude", ("p=1",)),
    "l1-longer": ("magnitude", ("p=1",)),
    "bn-scale": ("bn_scale", ()),
    "taylor": ("taylor", ()),
    "random": ("random", ("how=uniform",)),
    "uniform": ("magnitude", ("how=uniform",)),
}
TRANSFERS = ("own", "structure", "hypernetwork", "hypernetwork-tuned", "l1")
BATCH = 128  # images a step of recovery
SHORT = 50  # steps of a search that goes on from another task's hypernetwork


class Arms:
    """All that the arms of one budget and seed share."""

    def __init__(self, data: Data, asked: argparse.Namespace, budget: str, seed: int):
        self.data, self.asked, self.seed = data, asked, seed
        self.budget, self.name = prunus.Budget.parse(budget), budget.replace("=", "_")

    def searched(self, base: nn.Module, data: Data, label: str, **options: object) -> tuple[dict, dict]:
        """What PASS keeps of a base, and what its search says of itself."""
        run = RunFolder(
            self.asked.folder / f"{label}_{self.name}_{self.seed}", {"seed": self.seed}, resume=True
        )
        run.begin()
        config = Config(round_to=self.asked.round_to, **{"steps": self.asked.steps} | options)
        start = time.perf_counter()
        keep = prune(Classification(base, data), self.budget, config, run).keep
        events = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
        said = [event for event in events if event["event"] == "decided"][-1]
        row = {
            "search_seconds": time.perf_counter() - start,
            "flips": said["flips"],
            "tried": said["snapshots"],
        }
        return keep, row

    def at_once(self, base: nn.Module, data: Data, arm: str) -> dict:
        """What a method that does not train keeps."""
        name, options = AT_ONCE[arm]
        method = methods.find(name)
        config = methods.configure(
            method.config_class, (*options, f"round_to={self.asked.round_to}"), "option"
        )
        run = RunFolder(self.asked.folder / f"{arm}_{self.name}_{self.seed}", {"seed": self.seed})
        return method.prune(Classification(base, data), self.budget, config, run).keep

    def measured(self, base: nn.Module, data: Data, keep: dict, more_steps: int = 0) -> dict:
        """What becomes of the base with the units in `keep`."""
        graph = prunus.trace(base, data.example)
        row = {"share": prunus.macs(graph, keep) / prunus.macs(graph), "widths": graph.widths(keep)}
        small = prunus.shrink(base, graph, keep)
        epochs = self.asked.epochs + more_steps / data.train.steps(BATCH)
        return row | recovered(small, data, epochs, base, self.seed)

    def row(self, base: nn.Module, arm: str) -> dict:
        """One arm on all classes."""
        if arm in AT_ONCE:
            more_steps = self.asked.steps if arm == "l1-longer" else 0
            return self.measured(base, self.data, self.at_once(base, self.data, arm), more_steps)
        keep, row = self.searched(base, self.data, arm, **SEARCHES[arm])
        return row | self.measured(base, self.data, keep)

    def transferred(self, base: nn.Module, halves: list[Data], arm: str) -> dict:
        """One arm of the second half, with what was found on the first."""
        first, second = (self.of_half(base, half) for half in halves)
        row: dict = {"base": self.tested(second, halves[1])}
        if arm == "l1":
            return row | self.measured(second, halves[1], self.at_once(second, halves[1], "l1"))
        keep, found = self.searched(first, halves[0], "first")
        if arm != "structure":
            learned = (
                self.asked.folder / f"first_{self.name}_{self.seed}" / "prune" / "hypernetwork.safetensors"
            )
            options = {
                "own": {},
                "hypernetwork": {"hypernetwork": str(learned), "steps": 0},
                "hypernetwork-tuned": {"hypernetwork": str(learned), "steps": SHORT},
            }
            keep, found = self.searched(second, halves[1], f"second-{arm}", **options[arm])
        return row | found | self.measured(second, halves[1], keep)

    def of_half(self, base: nn.Module, half: Data) -> nn.Module:
        """The base with the rows of its classifier for the classes of a half, tuned to it."""
        model = copy.deepcopy(base)
        path, layer = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
        rows = nn.Linear(layer.in_features, half.classes)
        chosen = classes_of(half)
        rows.load_state_dict({name: t[chosen] for name, t in layer.state_dict().items()})
        model.set_submodule(path, rows)
        task = Classification(model, half)
        where = self.asked.folder / half.name
        fit(model, task, replace(task.recipe("tune"), epochs=1), folder=where)
        return model

    @staticmethod
    def tested(model: nn.Module, data: Data) -> float:
        """Accuracy on test."""
        return Classification(model, data).evaluate(model, data.test)["accuracy"]


def classes_of(half: Data) -> list[int]:
    """The classes that a half had in the whole."""
    return [int(number) for number in half.name.partition("classes_")[2].split("_")]


def in_halves(data: Data) -> list[Data]:
    """The data of the even classes and of the odd ones, labelled from 0 on."""
    halves = []
    for first in (0, 1):
        classes = list(range(first, data.classes, 2))

        def of(split: Split, classes: list[int] = classes) -> Split:
            part = split.take(np.flatnonzero(np.isin(split.labels, classes)))
            return replace(part, labels=np.searchsorted(classes, part.labels))

        parts = {name: of(getattr(data, name)) for name in ("train", "val", "test")}
        halves.append(
            replace(data, name="classes_" + "_".join(map(str, classes)), classes=len(classes), **parts)
        )
    return halves


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "runs/pass")
    parser.add_argument("--budgets", nargs="+", default=["macs=0.5", "macs=0.25"])
    parser.add_argument("--steps", type=int, default=300, help="of a search")
    parser.add_argument("--epochs", type=int, default=1, help="of recovery")
    parser.add_argument("--arms", nargs="+", default=[*SEARCHES, *AT_ONCE])
    parser.add_argument("--transfers", nargs="*", default=TRANSFERS, help="at the first budget")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = asked.out or Path(__file__).parent / "results" / f"pass_{asked.network}.json"
    names = ("network", "base_epochs", "steps", "epochs", "round_to", "threads")
    board = Board(out, {name: getattr(asked, name) for name in names})
    data = load_data(asked.data, seed=0)
    base = tuned(asked, data)
    if not board.has(arm="base"):
        board.add({"arm": "base", "recovered": Arms.tested(base, data)})
    for seed in asked.seeds:
        for budget in asked.budgets:
            arms = Arms(data, asked, budget, seed)
            for arm in asked.arms:
                if not board.has(arm=arm, seed=seed, budget=budget):
                    board.add({"arm": arm, "seed": seed, "budget": budget} | arms.row(base, arm))
        arms, halves = Arms(data, asked, asked.budgets[0], seed), in_halves(data)
        for arm in asked.transfers:
            if not board.has(transfer=arm, seed=seed):
                board.add({"transfer": arm, "seed": seed} | arms.transferred(base, halves, arm))


if __name__ == "__main__":
    main()
