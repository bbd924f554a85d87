r"""Why PASS hardly learned: how far scores move, by learning rate and by the gradient that masks pass on.

    python benchmarks/pass_gradients.py                                # scikit-learn's digits, ten minutes
    python benchmarks/pass_gradients.py --data parquet:../shared/data/cifar10 --network resnet20 \
        --weights ../shared/weights/cifar10_resnet20.safetensors --seeds 0 --share 0.25

Every arm is a whole search, with the defaults but for what is named: how far the scores moved on average (they begin
with a standard deviation of one in each axis), how many masks changed in a step, how many of the units kept are not
those of the start, and the loss of the masked network on held-out training images, at the start (pruning by magnitude)
and at the best snapshot. Then the units are cut, and recovered for the same epochs as all: accuracy in % on test with
norms renewed, and recovered. Controls, which have as many more steps of recovery as a search has: magnitude, and Taylor
scores per cost. Mean over seeds. Rows that are there with the same setup are not run again.
"""

import statistics
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from board import Board, arguments, recovered, tuned
from torch import nn

import prunus
from prunus import scores
from prunus.data import Data, load_data
from prunus.methods.pass_ import PASS, Config
from prunus.methods.pass_.method import scorer, search_recipe
from prunus.tasks import Classification
from prunus.train import Beside, fit

SEARCHES = {
    f"{gradient}, {lr:g}": {"straight_through": gradient, "lr": lr}
    for gradient in ("identity", "budget")
    for lr in (1e-4, 1e-3, 3e-3)
}
AT_ONCE = ("magnitude", "taylor")
COLUMNS = {"moved": 2, "changes": 1, "others": 0, "start": 3, "best": 3, "renewed": 1, "recovered": 1}


def searched(base: nn.Module, data: Data, asked, seed: int, options: dict) -> tuple[dict, dict]:
    """Search as an arm says; returns the kept units, and what is known of the search."""
    train, held_out = data.train.hold_out(0.1, seed)
    task = Classification(base, replace(data, train=train))
    config = Config(prompt="none", steps=asked.steps, round_to=asked.round_to, **options)
    recipe, budget = search_recipe(task, config), prunus.Budget(macs=asked.share)
    score = scorer(task, held_out, recipe)
    search = PASS(base, data.example, budget, config=config, seed=seed, score=score)
    first, began = search.scores().detach(), search.kept.clone()
    fit(search, task, recipe, seed=seed, along=Beside(search))
    search.decide()
    losses = [-score for _, score in search.tried]
    others = (search.as_mask(search.keep) & ~began).sum().item()
    moved = (search.scores() - first).abs().mean().item()
    row = {"moved": moved, "changes": sum(search.flips) / asked.steps, "others": others}
    return search.keep, row | {"start": losses[0], "best": min(losses)}


def at_once(arm: str, base: nn.Module, data: Data, asked, seed: int) -> dict:
    """What plain scores keep."""
    graph, budget = prunus.trace(base, data.example), prunus.Budget(macs=asked.share)
    if arm == "magnitude":
        return prunus.select(graph, scores.magnitude(base, graph), budget, round_to=asked.round_to)
    batches = islice(data.train.batches(64, seed=seed), 32)
    found = scores.taylor(base, graph, Classification(base, data).loss, batches)
    return prunus.select(graph, found, budget, how="per_cost", round_to=asked.round_to)


def run_arm(arm: str, base: nn.Module, data: Data, asked, seed: int) -> dict:
    """Make one row."""
    graph, row, epochs = prunus.trace(base, data.example), {}, asked.epochs
    if arm in AT_ONCE:
        keep = at_once(arm, base, data, asked, seed)
        epochs += asked.steps / data.train.steps(Classification(base, data).recipe("recover").batch_size)
    else:
        keep, row = searched(base, data, asked, seed, SEARCHES[arm])
    return row | recovered(prunus.shrink(base, graph, keep), data, epochs, base, seed)


def table(rows: list[dict]) -> str:
    """Make a table in Markdown."""
    titles = [
        "moved",
        "masks changed in a step",
        "other units",
        "loss, start",
        "loss, best",
        "renewed",
        "recovered",
    ]
    lines = [["gradient, learning rate", *titles], ["---"] * (1 + len(titles))]
    for arm in [*SEARCHES, *AT_ONCE]:
        of = [row for row in rows if row["arm"] == arm]
        cells = []
        for column, digits in COLUMNS.items():
            values = [
                row[column] * (100 if column in ("renewed", "recovered") else 1)
                for row in of
                if column in row
            ]
            cells.append(f"{statistics.mean(values):.{digits}f}" if values else "")
        lines.append([arm, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "runs/pass_gradients", digits=True)
    parser.set_defaults(seeds=[0, 1], round_to=1)
    parser.add_argument("--share", type=float, default=0.125, help="of the multiply-adds")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--arms", nargs="+", default=[*SEARCHES, *AT_ONCE])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = asked.out or Path(__file__).parent / "results" / f"pass_gradients_{asked.network}.json"
    names = ("network", "share", "steps", "epochs", "round_to", "threads")
    board = Board(out, {name: getattr(asked, name) for name in names})
    data = load_data(asked.data)
    base = tuned(asked, data)
    board.fill(asked.arms, asked.seeds, lambda arm, seed: run_arm(arm, base, data, asked, seed))
    print(table(board.rows))


if __name__ == "__main__":
    main()
