"""How long scoring single weights takes, over reading every weight once and writing its score.

    python benchmarks/weight_scores.py [--rounds 7] [--threads 2]

ResNet-50 (torchvision) and a transformer-shaped stack of 300 M parameters, float32 and bfloat16, random weights. The
floor is a fresh float32 copy of every weight that is scored; each round times the floor and every variant once, in
turn, and a ratio is the median over rounds of that round's time over that round's floor. The trace is done before: it
is the same for all and serves every call. Sequential passes choose masks on the way, so their time includes a
threshold per layer. Goes to benchmarks/results/weight_scores.json.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.files import write_json
from prunus.sparse import scores as weight_scores

SHARED_TOOLS = Path(__file__).parents[2] / "shared" / "tools"
WIDTH, LAYERS, HEADS = 1024, 24, 16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def networks():
    """name -> (model, example)"""
    yield "transformer, 302 M", nn.Sequential(*(Block() for _ in range(LAYERS))), torch.zeros(1, 8, WIDTH)
    if SHARED_TOOLS.exists():
        sys.path.insert(0, str(SHARED_TOOLS))
        import torchvision_cpu  # noqa: F401  lets torchvision import beside a CPU build of torch
    import torchvision

    yield "resnet50", torchvision.models.resnet50(), torch.zeros(1, 3, 224, 224)


def half(name: str, scores: torch.Tensor) -> torch.Tensor:
    """A stand-in for a choice: what lies above the mean."""
    return scores > scores.mean()


def variants(model, graph):
    """name -> what is timed"""
    names = weight_scores.maskable(graph)
    parameters = dict(model.named_parameters())

    def scored(**options):
        return lambda: weight_scores.lookahead(model, graph, **options)

    def passed(order):
        return lambda: weight_scores.sequential(model, graph, half, order)

    return {
        "floor": lambda: [parameters[name].detach().to(torch.float32, copy=True) for name in names],
        "magnitude": lambda: weight_scores.magnitude(model, graph),
        "lookahead": scored(),
        "before only": scored(sides="before"),
        "behind only": scored(sides="behind"),
        "trailing norms": scored(norms="trailing"),
        "exact kernels": scored(conv="exact"),
        "forward pass": passed("forward"),
        "backward pass": passed("backward"),
    }


def measure(timed: dict, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of seconds and of ratios to the floor of the same round, after one round to warm up."""
    seconds = {name: [] for name in timed}
    for _ in range(rounds + 1):
        for name, run in timed.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    floor = seconds["floor"][1:]
    return {
        name: {
            "seconds": statistics.median(each[1:]),
            "over_floor": statistics.median(a / b for a, b in zip(each[1:], floor, strict=True)),
        }
        for name, each in seconds.items()
    }


def asked(doc: str) -> argparse.Namespace:
    """The command line, of this board and of patterns.py."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def board(setup: argparse.Namespace, timed_of) -> dict:
    """What `timed_of(model, graph)` gives, measured on both networks in both precisions; shown as it comes."""
    torch.set_num_threads(setup.threads)
    torch.manual_seed(0)
    rows, load = [], os.getloadavg()[0]
    for name, model, example in networks():
        graph = prunus.trace(model, example)
        for dtype in (torch.float32, torch.bfloat16):
            found = measure(timed_of(model.to(dtype), graph), setup.rounds)
            weights = sum(graph.shapes[weight].numel() for weight in weight_scores.maskable(graph))
            rows.append({"network": name, "dtype": str(dtype)[6:], "weights": weights, "times": found})
            print(f"{name}, {dtype}, {weights:,} weights")
            for what, row in found.items():
                print(
                    f"  {what:<18}{row['seconds']:>9.4f} s{row['over_floor']:>8.2f} x the floor", flush=True
                )
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "load_before": load}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "prunus": prunus.__version__}
    return {"setup": vars(setup), "machine": machine, "versions": versions, "rows": rows}


def write(name: str, record: dict) -> None:
    """Keep a board's figures."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    write_json(path, record)
    print(f"written to {path}")


if __name__ == "__main__":
    write("weight_scores", board(asked(__doc__), variants))
