"""How well are milliseconds predicted, and does a budget of them hold?

    python benchmarks/latency.py [--networks resnet20 resnet56] [--threads 1] [--seconds 60]

For each network, in torch and in onnxruntime, on one input and with random weights: the tables (nothing is taken from
the user's cache), R2 and the worst error on held-out random sub-networks; then, for each limit, what `select_measured`
keeps by L2 magnitude: predicted, measured (in turns with the original), the share of multiply-adds that is left, and
the share measured once more afterwards, of the original, in a race of its own. Goes to benchmarks/results/latency.json.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import torch

import prunus
from prunus import latency, zoo
from prunus.errors import BudgetError
from prunus.files import write_json
from prunus.latency import device_name, library_version, profiling
from prunus.progress import bar

LIMITS = (0.7, 0.5)
IN_SHAPE, CLASSES, SEED = (3, 32, 32), 10, 0


def rows_of(name: str, runtime: str, seconds: float, cache: str) -> dict:
    """All figures of one network in one runtime."""
    torch.manual_seed(SEED)
    model, example = zoo.build(name, CLASSES, IN_SHAPE).eval(), torch.randn(1, *IN_SHAPE)
    graph = prunus.trace(model, example)
    table = latency.measure_tables(model, graph, runtime=runtime, seconds=seconds, cache=cache, progress=bar)
    scores = prunus.scores.magnitude(model, graph)
    found = {
        "network": name,
        "runtime": runtime,
        "original_ms": table.original_ms,
        "r2": table.fit.r2,
        "worst_error": table.fit.worst_error,
        "fitted_on": table.fit.fitted_on,
        "held_out": table.fit.held_out,
        "points": table.measured,
        "table_s": table.seconds,
        "limits": [],
    }
    for limit in LIMITS:
        begun = time.perf_counter()
        try:
            keep, figures = latency.select_measured(
                model, graph, scores, prunus.Budget(latency_ms=limit), table
            )
        except BudgetError as error:
            found["limits"].append({"limit": limit, "refused": str(error)})
            continue
        seconds_taken = time.perf_counter() - begun
        small = prunus.shrink(model, graph, keep)
        again = latency.measure({"original": model, "small": small}, example, runtime=runtime, seconds=5)
        found["limits"].append(
            {
                "limit": limit,
                "predicted": figures["predicted_ms"] / figures["original_ms"],
                "measured": figures["measured_ms"] / figures["original_ms"],
                "again": again["small"].median_ms / again["original"].median_ms,
                "macs": prunus.macs(graph, keep) / prunus.macs(graph),
                "tried": figures["tried"],
                "select_s": seconds_taken,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=profiling.SECONDS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    load, rows = os.getloadavg()[0], []
    for name in asked.networks:
        for runtime in ("torch", "onnxruntime"):
            with tempfile.TemporaryDirectory() as cache:
                rows.append(rows_of(name, runtime, asked.seconds, cache))
            print({key: value for key, value in rows[-1].items() if key != "limits"}, flush=True)
            print(*rows[-1]["limits"], sep="\n", flush=True)
    path = Path(__file__).parent / "results" / "latency.json"
    record = {
        "setup": vars(asked) | {"limits": LIMITS, "seed": SEED, "input": [1, *IN_SHAPE]},
        "machine": {"device": device_name(torch.device("cpu")), "system": platform.platform()},
        "versions": {name: library_version(name) for name in ("torch", "onnxruntime")},
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "rows": rows,
    }
    write_json(path, record)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
