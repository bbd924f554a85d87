r"""DHP against its controls, at equal epochs and equal cost, from one base.

    python benchmarks/dhp.py --data parquet:../shared/data/cifar10 \
        --weights ../shared/weights/cifar10_resnet20.safetensors

The base is the network with the weights given, tuned to the data. dhp and its variants search, then recover, taught by
the base; uniform, l1 and taylor cut the base at once and recover for all the epochs. Arms from scratch never see the
base, have no teacher, and as many epochs. Accuracy on the test set, which no choice was made on: before units go, right
after, with norm statistics renewed, after recovery (last epoch). auc: how well the sizes of the first latents foretell
which units stay (0.5: not at all). Rows that are there with the same setup are not run again.
"""

import argparse
import copy
import time
import warnings
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from board import Board, arguments, recovered, tuned

import prunus
from prunus import methods
from prunus.data import load_data
from prunus.methods.dhp import DHP, Config
from prunus.recover import renew_norms
from prunus.run import RunFolder
from prunus.tasks import Classification
from prunus.train import Beside, fit

SEARCHES = {
    "dhp": Config(),
    "dhp-all": Config(pressure="all"),
    "dhp-random": Config(),  # ByLot
    "dhp-scratch": Config(start="scratch"),
    "dhp-paper": Config(mode="paper", strength=8e-3, floor=4),
}
AT_ONCE = {
    "uniform": ("magnitude", ("how=uniform",)),
    "l1": ("magnitude", ("p=1",)),
    "taylor": ("taylor", ()),
    "random": ("random", ("how=uniform",)),
}


class ByLot(DHP):
    """The same search, but which units go is drawn by lot."""

    def scores(self) -> torch.Tensor:
        lots = torch.rand(len(self.owners), generator=torch.Generator().manual_seed(0))
        return lots * self.above_threshold()


def auc(first: torch.Tensor, stayed: torch.Tensor) -> float:
    """The chance that a unit that stayed began larger than one that went; ties count half."""
    kept, gone = first[stayed], first[~stayed]
    above = (kept[:, None] > gone).float() + 0.5 * (kept[:, None] == gone).float()
    return above.mean().item()


def run_arm(arm: str, base, data, asked: argparse.Namespace, seed: int) -> dict:
    """One row."""
    budget, start = prunus.Budget.parse(asked.budget), time.perf_counter()
    task = Classification(base, data)
    epochs, teacher, row = asked.search_epochs + asked.epochs, base, {}

    def tested(model) -> float:
        return task.evaluate(model, data.test)["accuracy"]

    if arm in AT_ONCE:
        name, options = AT_ONCE[arm]
        method = methods.find(name)
        if asked.round_to:
            options = (*options, f"round_to={asked.round_to}")
        config = methods.configure(method.config_class, options, "option")
        run = RunFolder(asked.folder / f"{arm}_{seed}", {"seed": seed})
        keep, row["before"] = method.prune(task, budget, config, run).keep, tested(base)
        graph = prunus.trace(base, data.example)
        small = prunus.shrink(base, graph, keep)
    else:
        config = replace(SEARCHES[arm], round_to=asked.round_to)
        scratch = config.resolved().start == "scratch"
        model, epochs = copy.deepcopy(base), asked.epochs
        recipe = replace(task.recipe("scratch" if scratch else "tune"), epochs=asked.search_epochs)
        steps = recipe.epochs * data.train.steps(recipe.batch_size)
        kind = ByLot if arm == "dhp-random" else DHP
        search = kind(model, data.example, budget, steps=steps, config=config, seed=seed)
        first = search.sizes()
        history = fit(model, Classification(model, data), recipe, seed=seed, along=Beside(search))
        row |= {"search_seconds": [epoch["seconds"] for epoch in history], "before": tested(model)}
        with warnings.catch_warnings(record=True) as said:
            small = search.finish()
        stayed = torch.cat([kept(search, name) for name in search.latents.places])
        row |= {"auc": auc(first, stayed), "steps": search.done, "cut_in_use": search.left_over}
        row["warned"], graph, keep = bool(said), search.graph, search.keep
        if scratch:
            teacher, epochs = None, asked.search_epochs + asked.epochs - len(history)
    row |= {"share": prunus.macs(graph, keep) / prunus.macs(graph)}
    row |= recovered(small, data, epochs, teacher, seed)
    return row | {"seconds": time.perf_counter() - start, "widths": graph.widths(keep)}


def kept(search: DHP, name: str) -> torch.Tensor:
    """Which units of an axis stayed."""
    stayed = torch.zeros(search.graph.axes[name].size, dtype=torch.bool)
    stayed[search.keep[name]] = True
    return stayed


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "runs/dhp")
    parser.add_argument("--budget", default="macs=0.5")
    parser.add_argument("--search-epochs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--arms", nargs="+", default=[*SEARCHES, "uniform", "l1", "taylor"])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = asked.out or Path(__file__).parent / "results" / f"dhp_{asked.network}.json"
    names = ("network", "budget", "base_epochs", "search_epochs", "epochs", "round_to", "threads")
    board = Board(out, {name: getattr(asked, name) for name in names})
    data = load_data(asked.data, seed=0)
    base = tuned(asked, data)
    task = Classification(base, data)
    if not board.has(arm="base"):
        row = {"arm": "base", "recovered": task.evaluate(base, data.test)["accuracy"]}
        for name, augment in (("renewed", True), ("renewed_as_they_are", False)):
            again, batches = copy.deepcopy(base), data.train.batches(256, seed=0, augment=augment)
            renew_norms(again, islice(batches, 16))
            row[name] = task.evaluate(again, data.test)["accuracy"]
        board.add(row)
    for seed in asked.seeds:
        for arm in asked.arms:
            if not board.has(arm=arm, seed=seed):
                board.add({"arm": arm, "seed": seed} | run_arm(arm, base, data, asked, seed))


if __name__ == "__main__":
    main()
