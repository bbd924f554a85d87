"""How long the choice of weights takes, over reading every weight once and writing its score.

    python benchmarks/patterns.py [--rounds 5] [--threads 2]

The networks of benchmarks/weight_scores.py: ResNet-50 and a transformer-shaped stack of 300 M parameters, float32 and
bfloat16. The floor is a fresh float32 copy of every weight that is scored; the scores (magnitude, float32) are made
before. Each round times the floor and every choice once, in turn; a ratio is the median over rounds of that round's
time over that round's floor. Then, on ResNet-50: what the permutation search takes and gains, for magnitude.
Goes to benchmarks/results/patterns.json.
"""

import argparse
import os
import platform
import time
from pathlib import Path

import torch
from weight_scores import measure, networks

import prunus
from prunus.files import write_json
from prunus.sparse import scores as scoring
from prunus.sparse.patterns import contracted, unfit
from prunus.sparse.permutation import permuted
from prunus.sparse.selection import choose


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    rows, load, permutation = [], os.getloadavg()[0], {}
    for name, model, example in networks():
        graph = prunus.trace(model, example)
        for dtype in (torch.float32, torch.bfloat16):
            found = measure(choices(model.to(dtype), graph), asked.rounds)
            weights = sum(graph.shapes[weight].numel() for weight in scoring.maskable(graph))
            rows.append({"network": name, "dtype": str(dtype)[6:], "weights": weights, "times": found})
            print(f"{name}, {dtype}, {weights:,} weights")
            for choice, row in found.items():
                print(
                    f"  {choice:<18}{row['seconds']:>9.4f} s{row['over_floor']:>8.2f} x the floor", flush=True
                )
        if name == "resnet50":
            permutation = search(model.float(), graph)
            print("  permutation", permutation)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "load_before": load}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "prunus": prunus.__version__}
    path = Path(__file__).parent / "results" / "patterns.json"
    write_json(
        path,
        {
            "setup": vars(asked),
            "machine": machine,
            "versions": versions,
            "rows": rows,
            "permutation_resnet50": permutation,
        },
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
