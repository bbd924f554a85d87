r"""Repair without training: a cut network as it is, with norms renewed, and fitted again in one pass and in order.

    python benchmarks/repair.py --data parquet:../shared/data/cifar10 \
        --weights ../shared/weights/cifar10_resnet20.safetensors        # 20 minutes on two cores

The base is the network with the weights given, tuned to the data. Every arm cuts the same base with the same units to
the same share of its multiply-adds, and gets the same unlabelled, augmented training images, with which norms are
renewed in all columns but the first. Accuracy in % on the test set, which no choice was made on. Seconds: of the
fitting alone, and of the plain forward passes of both networks over the same images, which it cannot avoid.
Rows that are there with the same setup are not run again.
"""

import copy
import time
from itertools import islice
from pathlib import Path

import torch
from board import Board, arguments, tuned
from torch import nn

import prunus
from prunus import scores
from prunus.data import Data, load_data
from prunus.graph import Graph
from prunus.recover import renew_norms
from prunus.refit import Moments, fit_in_order, in_answers
from prunus.surgery import clone
from prunus.tasks import Classification

SELECTIONS = (
    *("l2", "l2 uniform", "taylor per_cost", "taylor uniform"),
    *("submodular per_cost", "submodular curves", "layers per_cost", "answers per_cost"),
    "loss per_cost",
)
COLUMNS = ("cut", "renewed", "once", "order")


def submodular(worth: str, base: nn.Module, graph: Graph, data: Data, seed: int) -> dict:
    """Score units as the method submodular does, with what it takes units to be worth; `loss` alone reads labels."""
    batches = list(islice(data.train.batches(64, seed=seed), 32 if worth == "loss" else 16))
    inputs = [x for x, _ in batches[:16]]
    moments = Moments(base, graph, inputs)
    curves = moments.curves()
    if worth == "answers":
        return in_answers(curves, moments, base, graph, inputs[:2]).scores()
    if worth == "layers":
        return curves.scores()
    if worth == "loss":
        return curves.scores(scores.taylor(base, graph, Classification(base, data).loss, batches))
    loss = scores.random_projection(seed)
    return curves.scores(scores.taylor(base, graph, loss, ((x, None) for x in inputs)))


def kept(selection: str, share: float, round_to: int | None, base: nn.Module, data: Data, seed: int) -> dict:
    """Choose the units that stay."""
    graph, (name, _, how) = prunus.trace(base, data.example), selection.partition(" ")
    found = scores.magnitude(base, graph)
    if name in ("submodular", "layers", "answers", "loss"):
        found = submodular(name, base, graph, data, seed)
    if name == "taylor":
        batches = islice(data.train.batches(64, seed=seed), 32)
        found = scores.taylor(base, graph, Classification(base, data).loss, batches)
    return prunus.select(graph, found, prunus.Budget(macs=share), how=how or "global", round_to=round_to)


def run_arm(selection: str, share: float, base: nn.Module, data: Data, asked, seed: int) -> dict:
    """Make one row."""
    graph = prunus.trace(base, data.example)
    keep = kept(selection, share, asked.round_to, base, data, seed)
    batches = islice(data.train.batches(128, seed=seed, augment=True), asked.images // 128)
    images = [x for x, _ in batches]

    def tested(model: nn.Module) -> float:
        return 100 * Classification(model, data).evaluate(model, data.test)["accuracy"]

    def renewed(model: nn.Module) -> nn.Module:
        renew_norms(model, [(x, None) for x in images])
        return model

    cut = prunus.shrink(base, graph, keep)
    row = {"macs": prunus.macs(graph, keep) / prunus.macs(graph), "cut": tested(cut)}
    row["renewed"] = tested(renewed(copy.deepcopy(cut)))
    began = time.perf_counter()
    moments = Moments(base, graph, images)
    row["moments_s"], began = time.perf_counter() - began, time.perf_counter()
    weights = moments.weights(keep)
    row["once_s"] = time.perf_counter() - began
    row["once"] = tested(renewed(prunus.shrink(clone(base, weights), graph, keep)))
    began = time.perf_counter()
    fitted = fit_in_order(base, cut, graph, keep, images)
    row["order_s"], began = time.perf_counter() - began, time.perf_counter()
    with torch.no_grad():
        for x in images:
            base.eval()(x), cut.eval()(x)
    row["forward_s"] = time.perf_counter() - began
    return row | {"order": tested(renewed(cut)), "layers": len(fitted.layers)}


def table(rows: list[dict]) -> str:
    """Make a table in Markdown."""
    lines = [
        ["selection", "multiply-adds", "as cut", "norms renewed", "fitted in one pass", "fitted in order"]
    ]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        if row["arm"] != "base":
            lines.append(
                [row["arm"], f"{100 * row['macs']:.1f} %", *(f"{row[column]:.1f}" for column in COLUMNS)]
            )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "runs/repair")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25], help="of the multiply-adds")
    parser.add_argument("--selections", nargs="+", choices=SELECTIONS, default=list(SELECTIONS))
    parser.add_argument("--images", type=int, default=1024)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = asked.out or Path(__file__).parent / "results" / f"repair_{asked.network}.json"
    apart = ("data", "weights", "shares", "selections", "seeds", "folder", "base", "out")
    board = Board(out, {name: value for name, value in vars(asked).items() if name not in apart})
    data = load_data(asked.data)
    base = tuned(asked, data)
    if not board.has(arm="base"):
        board.add(
            {
                "arm": "base",
                "accuracy": 100 * Classification(base, data).evaluate(base, data.test)["accuracy"],
            }
        )
    for seed in asked.seeds:
        for share in asked.shares:
            for selection in asked.selections:
                if not board.has(arm=selection, share=share, seed=seed):
                    row = run_arm(selection, share, base, data, asked, seed)
                    board.add({"arm": selection, "share": share, "seed": seed} | row)
    print(table(board.rows))


if __name__ == "__main__":
    main()
