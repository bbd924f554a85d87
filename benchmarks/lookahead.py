"""Magnitude against lookahead, down to very few weights: which scores, and how the zeros spread over the layers.

    python benchmarks/lookahead.py fcn   --data parquet:../shared/data/mnist
    python benchmarks/lookahead.py conv6 --data parquet:../shared/data/cifar10

For each seed a network is trained once; then for each share of survivors and each arm it is pruned at once and
trained on, the masks held. Accuracy is the last epoch's, on the test set, which no choice was made on. The schedule is
shortened (the papers train for 20,000 to 50,000 steps on either side) and uses AdamW without decay, the papers' batch
of 60 and highest learning rate, falling along a cosine. Arms are SCORE or SCORE-ALLOCATION: without an allocation
layers keep the papers' shares. Goes to benchmarks/results/lookahead_NETWORK.json after every run; runs that are there
with the same setup are not run again, so a killed board goes on where it was.
"""

import argparse
import copy
import time
from pathlib import Path

import torch
from board import Board

import prunus
from prunus import zoo
from prunus.data import load_data
from prunus.sparse import allocation as allocations
from prunus.sparse import masks, ranking, selection
from prunus.sparse import scores as weight_scores
from prunus.tasks import Classification
from prunus.train import Recipe, fit

# Shares of survivors are those of the paper's tables.
USUAL = {
    "fcn": {"lr": 1.2e-3, "base_epochs": 3, "epochs": 2, "survivors": [0.0163, 0.0043, 0.0023, 0.0012]},
    "conv6": {"lr": 3e-4, "base_epochs": 3, "epochs": 1, "survivors": [0.0362, 0.1062]},
}
ARMS = [
    *("magnitude", "lookahead", "backward", "forward", "behind", "before", "activity", "random"),
    *("magnitude-lamp", "lookahead-lamp", "behind-lamp", "before-lamp", "activity-lamp"),
]
SCORING_BATCHES, BATCH = 16, 60


def choose(arm: str, kept: float, model, graph, data, seed: int) -> dict[str, torch.Tensor]:
    """The masks of one arm."""
    score, _, allocation = arm.partition("-")
    allocation = allocation or "paper"
    shapes = {name: graph.shapes[name] for name in weight_scores.maskable(graph)}
    if score in ("forward", "backward"):
        counts = allocations.allocate_by_shapes(shapes, 1 - kept, allocation)

        def best(name: str, scores: torch.Tensor) -> torch.Tensor:
            return ranking.top(scores, counts[name])

        return weight_scores.sequential(model, graph, best, score)
    if score == "activity":
        drawn = data.train.batches(BATCH, seed=seed)
        batches = [batch for batch, _ in zip(drawn, range(SCORING_BATCHES), strict=False)]
        scores = weight_scores.lookahead(model, graph, activity=weight_scores.active(model, graph, batches))
    elif score == "magnitude":
        scores = weight_scores.magnitude(model, graph)
    elif score == "random":
        scores = weight_scores.random(graph, seed)
    else:
        scores = weight_scores.lookahead(model, graph, sides="both" if score == "lookahead" else score)
    return selection.choose(scores, 1 - kept, allocation=allocation)


def trained(model, data, recipe: Recipe, seed: int) -> dict[str, float]:
    """Train `model` and test it."""
    task = Classification(model, data)
    start = time.perf_counter()
    history = fit(model, task, recipe, seed=seed)
    found = {"train_loss": history[-1]["loss"], "seconds": time.perf_counter() - start}
    return found | {"accuracy": task.evaluate(model, data.test)["accuracy"]}


def board(asked: argparse.Namespace, path: Path) -> None:
    """Run what is not in the file yet."""
    setup = {key: value for key, value in vars(asked).items() if key not in ("seeds", "arms", "survivors")}
    setup = {**setup, "data": Path(asked.data.partition(":")[2]).name or asked.data}
    rows = Board(path, setup)
    data = load_data(asked.data, seed=0)
    for seed in asked.seeds:
        if all(
            rows.has(seed=seed, survivors=kept, arm=arm) for kept in asked.survivors for arm in asked.arms
        ):
            continue
        torch.manual_seed(seed)
        base = zoo.build(asked.network, data.classes, tuple(data.example.shape[1:]))
        recipe = Recipe(
            epochs=asked.base_epochs,
            batch_size=BATCH,
            optimizer="adamw",
            lr=asked.lr,
            weight_decay=0.0,
            precision=asked.precision,
        )
        found = trained(base, data, recipe, seed)
        if not rows.has(seed=seed, survivors=1.0, arm="dense"):
            rows.add({"seed": seed, "survivors": 1.0, "arm": "dense"} | found)
        graph = prunus.trace(base, data.example)
        again = Recipe(**{**vars(recipe), "epochs": asked.epochs})
        for kept in asked.survivors:
            for arm in asked.arms:
                if rows.has(seed=seed, survivors=kept, arm=arm):
                    continue
                model = copy.deepcopy(base)
                chosen = choose(arm, kept, model, graph, data, seed)
                masks.hold(model, graph, chosen)
                pruned = Classification(model, data).evaluate(model, data.test)["accuracy"]
                found = trained(model, data, again, seed)
                share = sum(int(m.sum()) for m in chosen.values()) / sum(m.numel() for m in chosen.values())
                row = {"seed": seed, "survivors": kept, "arm": arm, "share": share, "pruned": pruned}
                rows.add(row | found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=sorted(USUAL))
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--survivors", type=float, nargs="+")
    parser.add_argument("--base-epochs", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    for key, value in USUAL[asked.network].items():
        if getattr(asked, key) is None:
            setattr(asked, key, value)
    torch.set_num_threads(asked.threads)
    board(asked, Path(__file__).parent / "results" / f"lookahead_{asked.network}.json")


if __name__ == "__main__":
    main()
