r"""Choosing widths without labels: what to compare between axes, and at which prices.

    python benchmarks/widths.py --round-to 1 --data parquet:../shared/data/cifar10 \
        --weights ../shared/weights/cifar10_resnet20.safetensors

Every arm cuts the same base to the same share of its multiply-adds, and fits what is left in order to 256 unlabelled
training images. Accuracy in % on 1,280 validation images, on which such choices are made; docs/repair.md reports test.

    labels      Taylor's scores on 2,048 images with labels: order of units and widths
    projection  the same on random projections of the answer, without labels
    NAME order  the widths of NAME, but the units that the curves of 1,024 images keep longest
    layers      those units, and widths by what the layers that read an axis leave unexplained
    answers     those units, and widths by how far the answer moves
"""

from itertools import islice
from pathlib import Path

import torch
from board import Board, arguments, tuned
from torch import nn

import prunus
from prunus import scores
from prunus.data import Data, load_data
from prunus.refit import Moments, in_answers, repair
from prunus.tasks import Classification

ARMS = ("labels", "labels order", "projection", "projection order", "layers", "answers")


def all_scores(base: nn.Module, data: Data, seed: int) -> dict[str, dict]:
    """Score units for each arm."""
    graph = prunus.trace(base, data.example)
    inputs = [x for x, _ in islice(data.train.batches(128, seed=seed, augment=True), 8)]
    moments = Moments(base, graph, inputs)
    curves = moments.curves()
    found = {
        "layers": curves.scores(),
        "answers": in_answers(curves, moments, base, graph, inputs[:2]).scores(),
    }
    losses = {"labels": Classification(base, data).loss, "projection": scores.random_projection(seed)}
    for name, loss in losses.items():
        batches = islice(data.train.batches(64, seed=seed), 32)
        found[name] = scores.taylor(base, graph, loss, batches)
        found[f"{name} order"] = curves.scores(found[name])
    return found


def accuracy(model: nn.Module, batches: list) -> float:
    """Measure the accuracy in %."""
    model.eval()
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).float() for x, y in batches]
    return 100 * float(torch.cat(right).mean())


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "runs/repair")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25], help="of the multiply-adds")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--how", nargs="+", default=["per_cost", "curves"])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = asked.out or Path(__file__).parent / "results" / f"widths_{asked.network}.json"
    apart = ("data", "weights", "shares", "arms", "how", "seeds", "folder", "base", "out")
    board = Board(out, {name: value for name, value in vars(asked).items() if name not in apart})
    data = load_data(asked.data)
    base = tuned(asked, data).eval()
    graph, batches = prunus.trace(base, data.example), list(islice(data.val.batches(128), 10))
    for seed in asked.seeds:
        found = all_scores(base, data, seed)
        images = [x for x, _ in islice(data.train.batches(128, seed=seed, augment=True), 2)]
        for share in asked.shares:
            for arm in asked.arms:
                for how in asked.how:
                    if board.has(arm=arm, share=share, how=how, seed=seed):
                        continue
                    budget = prunus.Budget(macs=share)
                    keep = prunus.select(graph, found[arm], budget, how=how, round_to=asked.round_to)
                    small = repair(base, graph, keep, images)
                    row = {"arm": arm, "share": share, "how": how, "seed": seed}
                    board.add(row | {"widths": graph.widths(keep), "order": accuracy(small, batches)})


if __name__ == "__main__":
    main()
