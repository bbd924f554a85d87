r"""How DHP's search is best trained: with or without a teacher, at which rate, in one cycle with recovery or in two.

    python benchmarks/dhp_recipe.py                                    # scikit-learn's digits, a quarter of an hour
    python benchmarks/dhp_recipe.py --data parquet:../shared/data/cifar10 --network resnet20 \
        --weights ../shared/weights/cifar10_resnet20.safetensors       # hours

Every arm gets the same number of steps from the same base: search and recovery, or recovery alone where units are cut
at once. Recovery is always taught by the base.

    alone     the search has the recipe for tuning, and no teacher; then a new cycle
    teacher   the same, taught by the base
    rate      the search has recovery's recipe, taught; then a new cycle
    cycle     the same at a constant rate, from which recovery goes down: one cycle
    rate, early; cycle, early    the plan is at the budget after half of the search, not after 0.7
    taylor    Taylor scores per cost, cut at once; all epochs are recovery's
    repaired  the same, fitted again in order before recovery

Accuracy in % and loss on test, which no choice was made on: before units are removed, and recovered (last epoch); mean
and standard deviation over seeds. Rows that are there with the same setup are not run again.
"""

import copy
import statistics
import warnings
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from board import Board, arguments, tuned
from torch import nn

import prunus
from prunus import scores
from prunus.data import Data, load_data
from prunus.methods.dhp import DHP, Config
from prunus.recover import recover
from prunus.tasks import Classification
from prunus.train import Beside, fit

SEARCHES = {
    "alone": {"purpose": "tune"},
    "teacher": {"purpose": "tune", "taught": True},
    "rate": {"purpose": "recover", "taught": True},
    "cycle": {"purpose": "recover", "taught": True, "schedule": "constant"},
    "rate, early": {"purpose": "recover", "taught": True, "ramp": 0.5},
    "cycle, early": {"purpose": "recover", "taught": True, "schedule": "constant", "ramp": 0.5},
}
AT_ONCE = ("taylor", "repaired")
IMAGES = 1024  # for repair


def searched(
    base: nn.Module, data: Data, asked, seed: int, *, purpose: str, taught=False, ramp=0.7, **fields
):
    """Search as an arm says; returns the small network, and its accuracy before units were removed."""
    model = copy.deepcopy(base)
    task = Classification(model, data)
    weight = task.recipe("recover").distill_weight * taught
    recipe = task.recipe(purpose).adapt(epochs=asked.search_epochs, distill_weight=weight, **fields)
    steps = recipe.count_steps(data.train.steps(recipe.batch_size))
    config = Config(round_to=asked.round_to, ramp=ramp)
    search = DHP(model, data.example, prunus.Budget(macs=asked.share), steps=steps, config=config, seed=seed)
    fit(model, task, recipe, seed=seed, teacher=base, along=Beside(search))
    before = task.evaluate(model, data.test)["accuracy"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return search.finish(), before


def cut(base: nn.Module, data: Data, asked, seed: int, *, repaired: bool) -> nn.Module:
    """Cut the base at once, by Taylor scores per cost."""
    graph = prunus.trace(base, data.example)
    batches = islice(data.train.batches(64, seed=seed), 32)
    found = scores.taylor(base, graph, Classification(base, data).loss, batches)
    budget = prunus.Budget(macs=asked.share)
    keep = prunus.select(graph, found, budget, how="per_cost", round_to=asked.round_to)
    if not repaired:
        return prunus.shrink(base, graph, keep)
    images = islice(data.train.batches(128, seed=seed, augment=True), IMAGES // 128)
    return prunus.repair(base, graph, keep, [x for x, _ in images])


def run_arm(arm: str, base: nn.Module, data: Data, asked, seed: int) -> dict:
    """Make one row."""
    row, epochs = {}, asked.epochs
    if arm in AT_ONCE:
        small, epochs = cut(base, data, asked, seed, repaired=arm == "repaired"), epochs + asked.search_epochs
    else:
        small, row["before"] = searched(base, data, asked, seed, **SEARCHES[arm])
    task = Classification(small, data)
    recipe = task.recipe("recover").adapt(epochs=epochs)
    if SEARCHES.get(arm, {}).get("schedule"):
        recipe = replace(recipe, warmup_epochs=0.0)
    recover(small, task, recipe, teacher=base, seed=seed)
    found = task.evaluate(small, data.test)
    share = prunus.macs(prunus.trace(small, data.example)) / prunus.macs(prunus.trace(base, data.example))
    return row | {"recovered": found["accuracy"], "loss": found["loss"], "share": share}


def table(rows: list[dict]) -> str:
    """Make a table in Markdown."""
    lines = [["arm", "before removal", "recovered", "loss", "multiply-adds"], ["---"] * 5]
    for arm in [*SEARCHES, *AT_ONCE]:
        of = [row for row in rows if row["arm"] == arm]
        if of:
            before = [100 * row["before"] for row in of if "before" in row]
            columns = [[100 * row["recovered"] for row in of], [row["loss"] for row in of]]
            spread = [
                f"{statistics.mean(v):.{d}f} ± {statistics.pstdev(v):.{d}f}"
                for v, d in zip(columns, (1, 3), strict=True)
            ]
            lines.append(
                [
                    arm,
                    f"{statistics.mean(before):.1f}" if before else "",
                    *spread,
                    f"{100 * of[0]['share']:.1f} %",
                ]
            )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "runs/dhp_recipe", digits=True)
    parser.set_defaults(seeds=[0, 1, 2], round_to=1)
    parser.add_argument("--share", type=float, default=0.125, help="of the multiply-adds")
    parser.add_argument("--search-epochs", type=float, default=4)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--arms", nargs="+", default=[*SEARCHES, *AT_ONCE])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = asked.out or Path(__file__).parent / "results" / f"dhp_recipe_{asked.network}.json"
    names = ("network", "share", "search_epochs", "epochs", "round_to", "threads")
    board = Board(out, {name: getattr(asked, name) for name in names})
    data = load_data(asked.data)
    base = tuned(asked, data)
    board.fill(asked.arms, asked.seeds, lambda arm, seed: run_arm(arm, base, data, asked, seed))
    print(table(board.rows))


if __name__ == "__main__":
    main()
