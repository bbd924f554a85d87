"""The structure column against torch-pruning 1.6.1: analyse, L2 scores, half of every axis, remove for real.

    python benchmarks/core.py [--repeats 5] [--out benchmarks/results/core.json]

Both tools get the same five networks with random weights, on the CPU, interleaved in one process; medians
and ratios are reported. torch-pruning gets its documented settings (the classifier ignored, heads of attention
given), Prunus nothing but the model. The proof, which torch-pruning does not have, is timed apart. Then: the
rate of cost queries, and what tracing costs over a plain meta-device forward pass.
Needs torchvision and torch-pruning==1.6.1.
"""

import argparse
import copy
import json
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import prunus
from prunus.graph import make_skeleton
from prunus.selection import cost

SHIM = Path(__file__).parents[2] / "shared" / "tools"
if SHIM.exists():
    sys.path.insert(0, str(SHIM))
    import torchvision_cpu  # noqa: F401  (lets torchvision import beside a CPU build of torch)
import torch_pruning  # noqa: E402
import torchvision  # noqa: E402

MODELS = ["resnet50", "densenet121", "vit_b_16", "convnext_tiny", "mobilenet_v3_large"]
EXAMPLE = torch.randn(1, 3, 224, 224)


def ours(model: nn.Module) -> nn.Module:
    """Trace, score by L2, keep the better half of each axis, shrink; no proof."""
    graph = prunus.trace(model, EXAMPLE)
    scores = prunus.scores.magnitude(model, graph, p=2)
    keep = {
        name: scores[name].topk(max(1, axis.size // 2)).indices.sort().values.tolist()
        for name, axis in graph.axes.items()
    }
    return prunus.shrink(model, graph, keep, verify="off")


def theirs(model: nn.Module) -> nn.Module:
    """The same with torch-pruning's MagnitudePruner, which prunes in place."""
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    classifier = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        EXAMPLE,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=classifier,
        num_heads=heads,
        prune_num_heads=bool(heads),
    )
    pruner.step()
    return model


def timed(work, *args) -> float:
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


def race(name: str, repeats: int) -> dict:
    """Median seconds of both, interleaved, after one round to warm up; and of our proof."""
    model = torchvision.models.get_model(name, weights=None).eval()
    rounds = [(timed(ours, model), timed(theirs, copy.deepcopy(model))) for _ in range(repeats + 1)][1:]
    our_s, their_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    graph = prunus.trace(model, EXAMPLE)
    keep = {
        name: torch.randperm(axis.size)[: max(1, axis.size // 2)].tolist()
        for name, axis in graph.axes.items()
    }
    proof = prunus.verify(model, graph, keep)
    small, pruned = ours(model), theirs(copy.deepcopy(model))
    return {
        "model": name,
        "prunus_s": our_s,
        "torch_pruning_s": their_s,
        "times_faster": their_s / our_s,
        "proof_s": proof.seconds,
        "proof_error": proof.max_abs_error,
        "params_left": sum(p.numel() for p in small.parameters())
        / sum(p.numel() for p in model.parameters()),
        "torch_pruning_params_left": sum(p.numel() for p in pruned.parameters())
        / sum(p.numel() for p in model.parameters()),
        **tracing(model, repeats),
    }


def tracing(model: nn.Module, repeats: int) -> dict:
    """Seconds of a trace and of one plain meta-device forward pass, interleaved."""
    bare = make_skeleton(model)
    meta = EXAMPLE.to("meta")

    def plain() -> None:
        with torch.no_grad():
            bare(meta)

    rounds = [(timed(prunus.trace, model, EXAMPLE), timed(plain)) for _ in range(repeats + 1)][1:]
    trace_s, plain_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {"trace_s": trace_s, "plain_meta_forward_s": plain_s, "trace_over_plain": trace_s / plain_s}


def query_rate(candidates: int = 100_000, repeats: int = 5) -> float:
    """Width vectors whose MACs are computed per second, ResNet-50."""
    graph = prunus.trace(torchvision.models.resnet50(weights=None), EXAMPLE)
    sizes = torch.tensor([axis.size for axis in graph.axes.values()])
    widths = (torch.rand(candidates, len(sizes)) * sizes).ceil()
    return candidates / statistics.median(timed(cost.of, graph, "macs", widths) for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "core.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in MODELS:
        rows.append(race(name, arguments.repeats))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "rows": rows,
        "median_times_faster": statistics.median(row["times_faster"] for row in rows),
        "resnet50_width_vectors_per_second": query_rate(),
        "repeats": arguments.repeats,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "torch_pruning": "1.6.1",
            "prunus": prunus.__version__,
        },
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "rows"}, indent=1))


if __name__ == "__main__":
    main()
