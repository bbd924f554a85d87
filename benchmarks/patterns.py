"""How long the choice of weights takes, over reading every weight once and writing its score.

    python benchmarks/patterns.py [--rounds 7] [--threads 2]

The networks of benchmarks/weight_scores.py: ResNet-50 and a transformer-shaped stack of 300 M parameters, float32 and
bfloat16. The floor is a fresh float32 copy of every weight that is scored; the scores (magnitude, float32) are made
before. Each round times the floor and every choice once, in turn; a ratio is the median over rounds of that round's
time over that round's floor. Then, on ResNet-50: what the permutation search takes and gains, for magnitude.
Goes to benchmarks/results/patterns.json.
"""

import time

import torch
from weight_scores import asked, board, networks, write

import prunus
from prunus.sparse import choose, contracted, permuted, unfit
from prunus.sparse import scores as scoring


def choices(model, graph):
    """name -> what is timed"""
    scores, dims = scoring.magnitude(model, graph), contracted(graph)
    parameters = dict(model.named_parameters())
    shapes = {name: score.shape for name, score in scores.items()}

    def fitting(pattern):
        refused = unfit(shapes, pattern, dims)
        return {name: score for name, score in scores.items() if name not in refused}

    def chosen(sparsity, pattern):
        fit = fitting(pattern)
        return lambda: choose(fit, sparsity, pattern=pattern, dims=dims)

    return {
        "floor": lambda: [parameters[name].detach().to(torch.float32, copy=True) for name in scores],
        "2:4": chosen(0.5, "2:4"),
        "4:8": chosen(0.5, "4:8"),
        "4x4 blocks, 80 %": chosen(0.8, "4x4"),
        "uniform, 80 %": lambda: choose(scores, 0.8),
        "LAMP, 80 %": lambda: choose(scores, 0.8, allocation="lamp"),
    }


def search(model, graph) -> dict[str, float]:
    """What the permutation search for 2:4 takes, and which share of the scores is kept before and after."""
    start = time.perf_counter()
    found = permuted(model, graph, scoring.magnitude(model, graph), "2:4")
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "kept_before": found.before,
        "kept_after": found.after,
        "axes": len(found.order),
    }


if __name__ == "__main__":
    record = board(asked(__doc__), choices)
    found = next(search(model, prunus.trace(model, x)) for name, model, x in networks() if name == "resnet50")
    print("  permutation", found)
    write("patterns", record | {"permutation_resnet50": found})
