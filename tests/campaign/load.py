"""The tests that could depend on how busy a machine is, again and again beside loops that keep it busy.

    python -m tests.campaign.load [--rounds 20] [--threads 1 2] [--tests FILE ...] [--record FILE]

Those that start, kill or race processes and threads, or measure times, run in turn with one thread and with two, beside
a busy loop for each processor. Prints a line for each round. Started again with the same record, it goes on with the
rounds that are missing.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.campaign.record import ROOT, CampaignRecord, Case, add_option

TESTS = (
    "tests/run/test_lock.py",
    "tests/search/test_search_journal.py",
    "tests/latency/test_latency.py",
    "tests/graph/test_threads.py",
    "tests/train/test_train.py",
    "tests/selection/test_cost.py",
)
LOOP = "while True: pass"


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep processors busy with endless loops."""
    started = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(loops)]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def round_of(threads: int, tests: list[str]) -> Case:
    """Run tests once with a number of threads."""
    loops, begun = os.cpu_count() or 1, time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with busy(loops):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return {
        "threads": threads,
        "loops": loops,
        "tests": tests,
        "seconds": round(time.monotonic() - begun),
        "passed": int((re.findall(r"(\d+) passed", lines[-1]) or [0])[0]),
        "wrong": [line for line in lines if line.startswith(("FAILED", "ERROR"))] or done.returncode,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="rounds with each number of threads")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help="what to run, as pytest names it")
    add_option(parser)
    asked = parser.parse_args()
    record = CampaignRecord(asked.record)
    record.note_circumstances()
    cases = []
    for number in range(asked.rounds):
        for threads in asked.threads:
            name = f"{' '.join(asked.tests)}, {threads} threads, round {number}"
            cases.append(record.once("under load", name, lambda n=threads: round_of(n, asked.tests)))
            print(cases[-1], flush=True)
    wrong = [case for case in cases if case["wrong"]]
    print(f"{len(cases)} rounds, {len(wrong)} with failures")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
