"""What timings of training steps share: things timed side by side, in several processes, and kept in a file.

Where the activations of a network come to lie in memory is settled anew in every process, stays so while it runs, and
makes a step up to a tenth slower or faster. So things are timed in turn, which takes out what changes with time, and
again in further processes, which takes out that.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

import prunus
from prunus.files import write_json

BATCH, CLASSES, IN_SHAPE, SEED = 128, 10, (3, 32, 32), 0
WARM_UP = 3  # rounds

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Times = dict[str, dict[str, list[float]]]  # of each thing, by each clock, milliseconds in each round
Rows = dict[str, dict[str, float]]  # of each thing, what is known of it


def arguments(description: str, *, rounds: int, processes: int) -> argparse.ArgumentParser:
    """What all of these are asked with."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="in which each is timed once")
    parser.add_argument("--processes", type=int, default=processes, help="one after the other")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Random images and classes."""
    x = torch.randn(BATCH, *IN_SHAPE).to(memory_format=torch.channels_last)
    return x, torch.randint(CLASSES, (BATCH,))


def side_by_side(actions: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = WARM_UP) -> Times:
    """How long each action takes, all of them once a round, the order turned round every second time."""
    times: Times = {label: {clock: [] for clock in CLOCKS} for label in actions}
    for number in range(warm_up + rounds):
        for label in list(actions)[:: 1 if number % 2 else -1]:
            before = {clock: now() for clock, now in CLOCKS.items()}
            actions[label]()
            for clock, now in CLOCKS.items():
                times[label][clock].append(1000 * (now() - before[clock]))
    return {label: {clock: ms[warm_up:] for clock, ms in each.items()} for label, each in times.items()}


def summary(times: Times, to: str) -> Rows:
    """Medians over rounds, of the times and of their ratios to those of `to` in the same round."""
    rows: Rows = {}
    for label, each in times.items():
        row = rows[label] = {}
        for clock, ms in each.items():
            row[f"{clock}_ms"] = statistics.median(ms)
            row[f"{clock}_ratio"] = statistics.median(
                a / b for a, b in zip(ms, times[to][clock], strict=True)
            )
    return rows


def in_processes(asked: argparse.Namespace, measured: Callable[..., Rows], *given: object) -> Rows:
    """Medians of the rows that `measured(asked, *given)` gives in each of so many new processes; of wall_ratio the
    least and the most, too."""
    of_each = []
    for _ in range(asked.processes):
        with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (asked.threads,)) as pool:
            of_each.append(pool.submit(measured, asked, *given).result())
    rows: Rows = {}
    for label, first in of_each[0].items():
        columns = {key: [rows[label][key] for rows in of_each] for key in first}
        rows[label] = {key: statistics.median(column) for key, column in columns.items()}
        if "wall_ratio" in columns:
            rows[label] |= {"least": min(columns["wall_ratio"]), "most": max(columns["wall_ratio"])}
        print(f"{given[0]:<10}{label:<14}", {k: round(v, 3) for k, v in rows[label].items()}, flush=True)
    return rows


def write(
    name: str, asked: argparse.Namespace, load: float, networks: dict[str, Rows], batch: int = BATCH
) -> None:
    """Keep what was timed as results/NAME[_THREADSthread].json. load: of the machine before."""
    machine = {"processor": cpu(), "cores": os.cpu_count(), "load_before": load}
    machine |= {"python": platform.python_version(), "torch": torch.__version__, "prunus": prunus.__version__}
    suffix = f"_{asked.threads}thread" * (asked.threads != 2)
    path = Path(__file__).parent / "results" / f"{name}{suffix}.json"
    setup = vars(asked) | {"batch": batch, "seed": SEED}
    write_json(path, {"setup": setup, "machine": machine, "networks": networks})
    print(f"written to {path}")


def cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor()
    )
