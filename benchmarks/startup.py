"""Measure what starting Prunus costs beyond starting torch: python benchmarks/startup.py [--rounds 10]

Each program starts in a process of its own, in turns, after one round that warms the disk. Measured are CPU seconds, of
the user and of the system, which other programs change less than the clock. They go to benchmarks/results/startup.json,
from which benchmarks/reliability_page.py takes them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from prunus.machine import machine, versions

RESULT = Path(__file__).parent / "results" / "startup.json"
PROGRAMS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import prunus": ["-c", "import prunus"],
    "prunus.trace": ["-c", "import prunus; prunus.trace"],
    "prunus --help": ["-m", "prunus", "--help"],
    "prunus run --help": ["-m", "prunus", "run", "--help"],
}


def cpu_s(arguments: list[str]) -> float:
    """The CPU seconds of a Python program."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(rounds + 1):
        for name, arguments in PROGRAMS.items():
            found = cpu_s(arguments)
            if number:
                seconds[name].append(found)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    record = {"rounds": rounds, "cpu_s": median, "least_cpu_s": {n: min(v) for n, v in seconds.items()}}
    record |= {"versions": versions(), "machine": machine(torch.device("cpu"), 1)}
    print(json.dumps(record, indent=1))
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
