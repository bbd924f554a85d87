r"""Which side of lookahead is wrong on networks with batch norm: the score, its norms, or the shares made from it.

    python benchmarks/lookahead_norms.py --data parquet:../shared/data/cifar10 --network resnet20 \
        --weights ../shared/weights/cifar10_resnet20.safetensors             # minutes
    python benchmarks/lookahead_norms.py --epochs 2                          # scikit-learn's digits

Scores and shares are chosen independently: the arms are SCORE of the weights of a layer, and OF, from whose scores the
shares of the layers are made by LAMP; `uniform`: every layer has the same share. `folded` is the size of a weight times
the scale of the batch norm behind it. Accuracy in % on test, norms renewed, and after as many epochs of training as
were asked for, taught by the base, with the masks held. Rows that are there with the same setup are not run again.
"""

import copy
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from board import Board, arguments, tuned
from torch import Tensor, nn

import prunus
from prunus.data import Data, load_data
from prunus.graph import Graph
from prunus.recover import renew_norms
from prunus.sparse import masks, top
from prunus.sparse import scores as weight_scores
from prunus.sparse.allocation import allocate
from prunus.tasks import Classification
from prunus.train import fit

ARMS = [  # score, whose shares
    *((score, "uniform") for score in ("magnitude", "folded", "lookahead fold", "lookahead off")),
    *(
        (score, score)
        for score in ("magnitude", "folded", "lookahead fold", "lookahead off", "lookahead trailing")
    ),
    *((score, "magnitude") for score in ("folded", "lookahead fold", "lookahead off", "lookahead trailing")),
    *((score, "magnitude") for score in ("before", "behind")),
    ("magnitude", "lookahead fold"),
]
RENEWED = 1024  # images


def scored(score: str, model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """Score all single weights."""
    kind, _, norms = score.partition(" ")
    if kind == "lookahead":
        return weight_scores.lookahead(model, graph, norms=norms)
    if kind in ("before", "behind"):
        return weight_scores.lookahead(model, graph, sides=kind)
    found = weight_scores.magnitude(model, graph)
    return {name: each * scales(model, name) for name, each in found.items()} if kind == "folded" else found


def scales(model: nn.Module, name: str) -> Tensor:
    """The squared factors of the batch norm behind a convolution of a ResNet, by its name; 1 without one."""
    path = name.removesuffix(".weight").replace("conv", "bn")
    norm = dict(model.named_modules()).get(path)
    if not isinstance(norm, nn.BatchNorm2d):
        return torch.ones(())
    return (norm.weight.square() / (norm.running_var + norm.eps)).detach()[:, None, None, None]


def run_arm(score: str, of: str, sparsity: float, base: nn.Module, data: Data, asked, seed: int) -> dict:
    """Make one row."""
    model, graph = copy.deepcopy(base), prunus.trace(base, data.example)
    found = scored(score, model, graph)
    if of == "uniform":
        counts = allocate(found, sparsity, "uniform")
    else:
        counts = allocate(scored(of, model, graph), sparsity, "lamp")
    masks.hold(model, graph, {name: top(each, counts[name]) for name, each in found.items()})
    shown = data.train.batches(128, seed=seed, augment=True)
    renew_norms(model, islice(shown, max(1, RENEWED // 128)))
    task = Classification(model, data)
    test = data.test.take(np.arange(min(asked.tested, len(data.test))))
    row = {"renewed": 100 * task.evaluate(model, test)["accuracy"]}
    if asked.epochs:
        fit(model, task, task.recipe("recover").adapt(epochs=asked.epochs), seed=seed, teacher=base)
        row["trained"] = 100 * task.evaluate(model, test)["accuracy"]
    return row


def table(rows: list[dict]) -> str:
    """Make a table in Markdown."""
    shares = sorted({row["sparsity"] for row in rows})
    columns = [(share, key) for share in shares for key in ("renewed", "trained") if key in rows[0]]
    lines = [["score", "shares of", *(f"{share:.0%} zeros, {key}" for share, key in columns)]]
    lines.append(["---"] * len(lines[0]))
    for score, of in ARMS:
        cells = []
        for share, key in columns:
            values = [
                row[key] for row in rows if (row["score"], row["of"], row["sparsity"]) == (score, of, share)
            ]
            cells.append(f"{sum(values) / len(values):.1f}" if values else "")
        lines.append([score, of, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "runs/lookahead_norms", digits=True)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9])
    parser.add_argument("--epochs", type=float, default=0)
    parser.add_argument("--tested", type=int, default=10000, help="images of test")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = asked.out or Path(__file__).parent / "results" / f"lookahead_norms_{asked.network}.json"
    board = Board(out, {name: getattr(asked, name) for name in ("network", "epochs", "tested", "threads")})
    data = load_data(asked.data)
    base = tuned(asked, data)
    for seed in asked.seeds:
        for sparsity in asked.sparsities:
            for score, of in ARMS:
                key = {"score": score, "of": of, "sparsity": sparsity, "seed": seed}
                if not board.has(**key):
                    board.add(key | run_arm(score, of, sparsity, base, data, asked, seed))
    print(table(board.rows))


if __name__ == "__main__":
    main()
