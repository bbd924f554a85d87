"""Which of 142 models of torchvision, timm and transformers Prunus halves, and how that is known.

    python benchmarks/coverage.py [--list timm] [--model NAME ...] [--jobs 2] [--limit 900] [--again]
    python benchmarks/coverage.py --sample                             twelve small models, for continuous integration
    python benchmarks/coverage.py --peer --peer-path FOLDER            timed in turns with torch-pruning 1.6.1

Every model has a process of its own with one thread (coverage_stages.py, coverage_peer.py). What was found is a line
of runs/coverage.jsonl, and models that have one are skipped unless `--again` is given, so a run can be stopped and goes
on. At the end all lines together become benchmarks/results/coverage.json (coverage_peer.json) and docs/coverage.md.
Those of a sample do not; it ends with 1 if a stage failed.
Needs torchvision, timm, transformers.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import coverage_models
import coverage_page
import torch
from coverage_stages import STAGES

from prunus.files import write_json
from prunus.machine import machine, versions

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PACKAGES = sysconfig.get_path("purelib")
TURNS = 6  # the most that one turn of a race may take, as a part of the limit

Row = dict[str, Any]


def one_model(script: str, kind: str, name: str, limit: float, *more: str) -> Row:
    """Run a script on one model, and gather the lines that it printed until it ended or was stopped."""
    command = [sys.executable, "-W", "ignore", str(HERE / script), kind, name, *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    ended = ""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=limit)
        printed = done.stdout
        if done.returncode:
            complaints = done.stderr.decode(errors="replace").strip().splitlines() or [""]
            ended = f"ended with {done.returncode}: {complaints[-1]}"
    except subprocess.TimeoutExpired as stopped:
        printed, ended = stopped.stdout or b"", f"out of time ({limit:.0f} s)"
    lines = [
        json.loads(line, parse_float=lambda text: float(f"{float(text):.4g}"))
        for line in printed.decode().splitlines()
    ]
    return {"list": kind, "name": name, "ended": ended, "lines": lines}


def staged(row: Row) -> Row:
    """What the lines of coverage_stages.py say of a model: its stages by name."""
    stages = {line.pop("stage"): line for line in row["lines"] if "stage" in line}
    if row["ended"]:  # in the stage that had begun last
        begun = [line["begins"] for line in row["lines"] if "begins" in line] or ["build"]
        stages[begun[-1]] = {"ok": False, "error": row["ended"]}
    peak = [line["peak_mb"] for line in row["lines"] if "peak_mb" in line]
    return {"list": row["list"], "name": row["name"], "stages": stages, "peak_mb": peak[0] if peak else None}


def raced(row: Row) -> Row:
    """What the lines of coverage_peer.py say of a model: seconds, multiply-adds left and errors of each tool."""
    found: Row = {"list": row["list"], "name": row["name"]}
    for who in coverage_page.RACERS:
        lines = [line for line in row["lines"] if line.get("who") == who]
        errors = [line["error"] for line in lines if "error" in line]
        if errors or not lines:
            found[who] = {"error": errors[0] if errors else row["ended"]}
            continue
        seconds = [line["cpu_s"] for line in lines]
        after_warm_up = seconds[1:] or seconds
        found[who] = {"cpu_s": after_warm_up, "macs_left": lines[0]["macs_left"]}
    return found


def read_lines(path: Path) -> dict[tuple[str, str], Row]:
    """The last line of each model."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["list"], row["name"]): row for row in rows}


def wanted(asked: argparse.Namespace) -> list[tuple[str, str]]:
    """The models that were asked for, in the order of the lists."""
    if asked.sample:
        return [(kind, name) for kind, names in coverage_models.SAMPLE.items() for name in names.split()]
    return [
        (kind, name)
        for kind, names in coverage_models.LISTS.items()
        for name in names
        if asked.list in (None, kind) and (not asked.model or name in asked.model)
    ]


def failures(row: Row) -> list[str]:
    """The stages that were tried and did not hold, each with its error."""
    return [f"{name}: {stage['error']}" for name, stage in row["stages"].items() if not stage["ok"]]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", choices=list(coverage_models.LISTS))
    parser.add_argument("--model", nargs="+", metavar="NAME")
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument(
        "--peer-path", default="", help="the folder in which torch-pruning 1.6.1 was installed"
    )
    parser.add_argument("--jobs", type=int, default=1, help="models at once; more than one blurs the seconds")
    parser.add_argument("--limit", type=float, default=900, help="seconds for each model")
    parser.add_argument("--again", action="store_true", help="also those that have a line already")
    parser.add_argument("--lines", type=Path, help="the file of lines (default: runs/coverage*.jsonl)")
    return parser.parse_args()


def main() -> None:
    asked = parsed()
    topic = "coverage_peer" if asked.peer else "coverage"
    lines = asked.lines or Path("runs") / f"{topic}{'_sample' * asked.sample}.jsonl"
    lines.parent.mkdir(parents=True, exist_ok=True)
    known = {} if asked.again or asked.sample else read_lines(lines)
    todo = [model for model in wanted(asked) if model not in known]
    absent = {kind: why for kind in dict(todo) if asked.sample and (why := coverage_models.missing(kind))}
    for kind, why in absent.items():
        print(f"{kind}: left out, because its library cannot be imported here: {why}")
    todo = [model for model in todo if model[0] not in absent]
    script, more, of_row = ("coverage_stages.py", (), staged)
    if asked.peer:
        script, more, of_row = ("coverage_peer.py", (asked.peer_path, str(asked.limit / TURNS)), raced)
    bad = 0
    with ThreadPoolExecutor(asked.jobs) as pool, lines.open("a") as file:
        running = [pool.submit(one_model, script, *model, asked.limit, *more) for model in todo]
        for number, done in enumerate(as_completed(running), start=1):
            row = of_row(done.result())
            file.write(
                json.dumps(row).replace(f"{PACKAGES}/", "") + "\n"
            )  # a place of this machine tells nobody
            file.flush()
            words = (
                coverage_page.race_words(row) if asked.peer else "; ".join(failures(row)) or "all stages hold"
            )
            bad += not asked.peer and bool(failures(row))
            print(f"{number}/{len(todo)} {row['list']} {row['name']}: {words}", flush=True)
    if asked.sample:
        sys.exit(f"{bad} of {len(todo)} models failed a stage" if bad else 0)
    torch.set_num_threads(1)
    write_json(
        RESULTS / f"{topic}.json",
        {
            "setup": {"limit_s": asked.limit, "jobs": asked.jobs, "stages": list(STAGES)},
            "machine": machine(torch.device("cpu"), 1) | {"cores": os.cpu_count()},
            "versions": versions(),
            "rows": in_order(read_lines(lines)),
        },
    )
    coverage_page.write()


def in_order(rows: dict[tuple[str, str], Row]) -> list[Row]:
    """Rows in the order of the lists."""
    return [
        rows[kind, name]
        for kind, names in coverage_models.LISTS.items()
        for name in names
        if (kind, name) in rows
    ]


if __name__ == "__main__":
    main()
