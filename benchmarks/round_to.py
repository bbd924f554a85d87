"""How fast are networks whose widths are multiples of 1, 2, 4, 8 or 16?

    python benchmarks/round_to.py [--model resnet20] [--rounds 21] [--threads 2]

One training step (forward and backward, batch 128, bf16 autocast, channels-last) of the dense network and of the
same cut to half its multiply-accumulates with each `round_to`, side by side: each round times all of them once,
in turn, and a ratio is the median over rounds of that round's time over the dense one's. `auto` is what `select`
does unless told otherwise. The dense network runs twice a round: how far `dense again` is from 1 is the noise, and
differences below it say nothing. CPU time is given beside wall time, because other programs stretch it less; with
one thread it holds no waiting. Goes to benchmarks/results/round_to[_MODEL][_THREADSthread].json.
"""

import argparse
import copy
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import prunus
from prunus import zoo
from prunus.files import write_json

GRIDS = {"auto": None, "1": 1, "2": 2, "4": 4, "8": 8, "16": 16}
BATCH, CLASSES, IN_SHAPE, SEED = 128, 10, (3, 32, 32), 0


def candidates(name: str) -> tuple[dict[str, torch.nn.Module], dict[str, dict]]:
    """The dense network and its cuts, and what is known of each."""
    torch.manual_seed(SEED)
    model = zoo.build(name, CLASSES, IN_SHAPE)
    graph = prunus.trace(model, torch.zeros(1, *IN_SHAPE))
    scores = prunus.scores.magnitude(model, graph)
    networks = {"dense": model, "dense again": copy.deepcopy(model)}
    facts = {label: {"macs": prunus.macs(graph)} for label in networks}
    for label, grid in GRIDS.items():
        try:
            keep = prunus.select(graph, scores, prunus.Budget(macs=0.5), round_to=grid)
        except prunus.errors.BudgetError as error:
            print(f"{label}: {error}")
            continue
        networks[label] = prunus.shrink(model, graph, keep)
        facts[label] = {"macs": prunus.macs(graph, keep), "widths": [len(kept) for kept in keep.values()]}
    return networks, facts


def step_ms(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """One forward and backward pass, in milliseconds on the wall's clock and of processor time."""
    model.zero_grad()
    wall, busy = time.perf_counter(), time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(x), y)
    loss.backward()
    return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - busy)


def measure(networks: dict[str, torch.nn.Module], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and processor milliseconds of each network in each round, after two rounds to warm up."""
    x = torch.randn(BATCH, *IN_SHAPE).to(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (BATCH,))
    for network in networks.values():
        network.train().to(memory_format=torch.channels_last)
    times = {label: [] for label in networks}
    for _ in range(rounds + 2):
        for label, network in networks.items():
            times[label].append(step_ms(network, x, y))
    return {label: each[2:] for label, each in times.items()}


def summary(each: list[tuple[float, float]], dense: list[tuple[float, float]]) -> dict[str, float]:
    """Medians of the times, and of their ratios to the dense network's in the same round."""
    row = {}
    for name, mine, other in zip(
        ("wall", "cpu"), zip(*each, strict=True), zip(*dense, strict=True), strict=True
    ):
        ratios = [a / b for a, b in zip(mine, other, strict=True)]
        row |= {f"{name}_ms": statistics.median(mine), f"{name}_to_dense": statistics.median(ratios)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    networks, facts = candidates(asked.model)
    load = os.getloadavg()[0]
    times = measure(networks, asked.rounds)
    print(f"{'round_to':<12}{'macs':>13}{'wall ms':>10}{'to dense':>10}{'cpu ms':>10}{'to dense':>10}")
    for label, each in times.items():
        facts[label] |= (row := summary(each, times["dense"]))
        print(f"{label:<12}{facts[label]['macs']:>13,}", *(f"{value:>9.3f}" for value in row.values()))
    name = "round_to" + f"_{asked.model}" * (asked.model != "resnet20")
    print(f"written to {write_times(name, asked, load, facts)}")


def write_times(name: str, asked: argparse.Namespace, load: float, networks: dict) -> Path:
    """Keep what was timed as results/NAME[_THREADSthread].json; where. load: of the machine before."""
    machine = {"processor": cpu(), "cores": os.cpu_count(), "load_before": load}
    machine |= {"python": platform.python_version(), "torch": torch.__version__, "prunus": prunus.__version__}
    suffix = f"_{asked.threads}thread" * (asked.threads != 2)
    path = Path(__file__).parent / "results" / f"{name}{suffix}.json"
    setup = vars(asked) | {"batch": BATCH, "seed": SEED}
    write_json(path, {"setup": setup, "machine": machine, "networks": networks})
    return path


def cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
