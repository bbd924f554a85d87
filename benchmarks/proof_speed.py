"""How long a proof takes, over the two plain forward passes that it cannot do without.

    python benchmarks/proof_speed.py [--rounds 9] [--threads 1]

Five networks of torchvision, one image of 224 x 224, random weights, every axis halved at random. Each round times in
turn, in processor seconds: a plain float32 forward pass of the original, one of the small model, the cut without proof,
and the proof. Ratios are medians over rounds. What was imported is left out of garbage collection (gc.freeze), because
a collection takes longer than a proof of the smaller networks. Goes to benchmarks/results/proof_speed.json.
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import prunus
from prunus.files import write_json

SHARED_TOOLS = Path(__file__).parents[2] / "shared" / "tools"
MODELS = ("resnet50", "vit_b_16", "convnext_tiny", "mobilenet_v3_large", "densenet121")
GOAL = 3.0  # of the proof over both forward passes


def measure(name: str, rounds: int) -> dict:
    """Median milliseconds of one network, and the ratio."""
    import torchvision

    torch.manual_seed(0)
    model, example = torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)
    graph, draw = prunus.trace(model, example), random.Random(0)
    halves = {n: draw.sample(range(axis.size), max(1, axis.size // 2)) for n, axis in graph.axes.items()}
    keep = graph.check_keep(halves)
    small = prunus.shrink(model, graph, keep, verify="off")
    found: list[prunus.Proof] = []
    actions: dict[str, Callable[[], object]] = {
        "masked_size_forward_ms": lambda: model(example),
        "small_forward_ms": lambda: small(example),
        "cut_ms": lambda: prunus.shrink(model, graph, keep, verify="off"),
        "proof_ms": lambda: found.append(prunus.verify(model, graph, keep, small)),
    }
    times: dict[str, list[float]] = {label: [] for label in actions}
    gc.collect()
    gc.freeze()
    with torch.no_grad():
        for _ in range(rounds + 1):
            for label, action in actions.items():
                start = time.process_time()
                action()
                times[label].append(1000 * (time.process_time() - start))
    columns = [column[1:] for column in times.values()]
    ratios = [proof / (full + part) for full, part, _, proof in zip(*columns, strict=True)]
    return {
        "model": name,
        **{label: statistics.median(column) for label, column in zip(times, columns, strict=True)},
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "error": found[-1].max_abs_error,
        "tolerance": found[-1].tolerance,
        "dtype": str(found[-1].dtype).removeprefix("torch."),
        "modes": list(found[-1].modes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "proof_speed.json")
    arguments = parser.parse_args()
    if SHARED_TOOLS.exists():
        sys.path.insert(0, str(SHARED_TOOLS))
        import torchvision_cpu  # noqa: F401  lets torchvision import beside a CPU build of torch
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in MODELS:
        rows.append(measure(name, arguments.rounds))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "rows": rows,
        "goal": GOAL,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "seed": 0,
        "torch": torch.__version__,
        "prunus": prunus.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
