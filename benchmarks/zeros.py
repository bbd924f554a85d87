"""What zeros gain in time: networks with random weights, uniformly pruned by size, no unit removed.

    python benchmarks/zeros.py [--seconds 3] [--threads 2]

Each sparsity is measured by `prunus.bench` next to the dense network, in every program that is installed; the base runs
twice in each, to tell chance. Goes to benchmarks/results/zeros.json.
"""

import argparse
import copy
import os
from pathlib import Path

import torch
from torch import nn

import prunus
from prunus import sparse, zoo
from prunus.files import write_json
from prunus.run import bench

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)


def networks():
    """name -> (model, shape of an input)"""
    torch.manual_seed(0)
    yield "fcn, 784-500-500-500-500-10", zoo.build("fcn"), (1, 28, 28)
    wide = [layer for _ in range(3) for layer in (nn.Linear(2048, 2048), nn.ReLU())]
    yield "mlp, 3 x 2048 x 2048", nn.Sequential(*wide, nn.Linear(2048, 10)), (2048,)
    yield "resnet20, 32x32", zoo.build("resnet20"), (3, 32, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    load, rows = os.getloadavg()[0], []
    for name, model, shape in networks():
        graph = prunus.trace(model, torch.zeros(1, *shape))
        scores = sparse.magnitude(model, graph)
        for sparsity in SPARSITIES:
            zeros = copy.deepcopy(model)
            sparse.hold(zeros, graph, sparse.choose(scores, sparsity))
            sparse.finalise(zeros)
            found = bench.bench(model, zeros, shape, zeros=sparsity, seconds=asked.seconds)
            rows.append({"network": name, "sparsity": sparsity} | found)
            print(name, sparsity, *found["words"], sep="\n  ", flush=True)
    path = Path(__file__).parent / "results" / "zeros.json"
    write_json(path, {"setup": vars(asked), "load_before": load, "rows": rows})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
