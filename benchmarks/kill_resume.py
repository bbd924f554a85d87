"""Kill a run with SIGKILL in three stages, resume it each time, and compare with an uninterrupted run.

    python benchmarks/kill_resume.py OUT --model zoo:resnet56 --weights FILE --data parquet:DIR --method taylor

Writes OUT/whole and OUT/killed (two run folders) and prints whether metrics, keep and weights are the same
to the bit. The kills fall in the training of the base, after the base is stored, and in the recovery.
Takes as long as two runs; killed moments are chosen by what the folder holds, not by the clock.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

MOMENTS = ("base/checkpoint.safetensors", "stages/base.json", "recover/checkpoint.safetensors")
METRICS = ("before", "pruned", "after", "verified")
TIMED = ("latency_ms", "latency_spread_ms")


def command(folder: Path, options: list[str]) -> list[str]:
    return [sys.executable, "-m", "prunus", "run", *options, "--out", str(folder)]


def killed_run(folder: Path, options: list[str]) -> None:
    """Start, wait for each moment's file, let it work a little longer, kill, resume."""
    resume: list[str] = []
    for moment in MOMENTS:
        process = subprocess.Popen(command(folder, [*options, *resume]))
        while not (folder / moment).exists():
            if process.poll() is not None:
                raise SystemExit(f"the run ended before {moment} was there")
            time.sleep(0.2)
        time.sleep(5 if "checkpoint" in moment else 0.5)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        print(f"killed after {moment}", flush=True)
        resume = ["--resume"]
    subprocess.run(command(folder, [*options, *resume]), check=True)


def metrics(folder: Path) -> dict:
    """What a result says, timings apart."""
    result = json.loads((folder / "result.json").read_text())
    return {
        key: {k: v for k, v in result[key].items() if k not in TIMED}
        if isinstance(result[key], dict)
        else result[key]
        for key in METRICS
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    arguments, options = parser.parse_known_args()
    whole, killed = arguments.out / "whole", arguments.out / "killed"
    first = subprocess.Popen(command(whole, options))
    killed_run(killed, options)
    if first.wait():
        raise SystemExit("the uninterrupted run failed")
    same_metrics = metrics(whole) == metrics(killed)
    same_files = all(
        (whole / name).read_bytes() == (killed / name).read_bytes()
        for name in ("keep.json", "model.safetensors")
    )
    print(
        json.dumps(
            {"metrics": metrics(whole), "same_metrics": same_metrics, "same_files": same_files}, indent=1
        )
    )
    raise SystemExit(0 if same_metrics and same_files else 1)


if __name__ == "__main__":
    main()
