"""What a run leaves when it is killed, meets another writer, or has no space left: a campaign over methods.

    python -m tests.campaign.interrupt [--kills 200] [--pairs 100] [--sizes 20] [--seed 0] [--record FILE]

Each run prunes a tiny network whole (base, method, proof, recovery, report) in a process of its own:

- killed: SIGKILL after a random part of the time that a whole run takes, resumed, until it ends; then files and figures
  must be those of a run that nothing disturbed, to the bit, a search's journal included;
- two writers: two processes begin in one new folder at the same moment; one must win, the other be refused, and the
  result be the winner's;
- full disk: a small file system (tmpfs, which needs root) fills up somewhere; the run must end with a sentence, and be
  resumed to the same bits once the space has grown.

Prints a line for each case. Started again with the same record, it goes on with the cases that are missing.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prunus.errors import PrunusError, UserError
from prunus.run import Settings, prune
from prunus.testing import tiny_task
from tests.campaign.record import CampaignRecord, Case, add_option
from tests.lib.programs import figures

METHODS = {
    "taylor": ("batches=2",),
    "dhp": (),
    "metapruning": (
        "images=8",
        "calibration=32",
        "generations=2",
        "population=6",
        "mutants=3",
        "crossovers=2",
    ),
    "pass": ("steps=24", "snapshots=2"),
    "lookahead": (),
}
FILES = ("model.safetensors", "keep.json", "base.safetensors")
ENDED, FAILED, REFUSED, BROKEN = 0, 3, 4, 5  # exit statuses of a run's process
KIB = 1024


def run_whole(method: str, folder: Path, resume: bool) -> None:
    """Prune the tiny network in a folder; the process ends with the status that says how it went."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        settings = Settings(method=method, options=METHODS[method], epochs=2)
        prune(task=tiny_task("residual"), out=folder, settings=settings, resume=resume)
    except UserError:
        os._exit(REFUSED)
    except PrunusError:
        os._exit(FAILED)
    except BaseException:
        traceback.print_exc()
        os._exit(BROKEN)
    os._exit(ENDED)


def begin(method: str, folder: Path, resume: bool) -> Any:
    process = multiprocessing.get_context("fork").Process(target=run_whole, args=(method, folder, resume))
    process.start()
    return process


def run_to_end(method: str, folder: Path, resume: bool = False) -> int | None:
    process = begin(method, folder, resume)
    process.join()
    return process.exitcode


def same_bits(folder: Path, whole: Path) -> str:
    """What differs between a run and the undisturbed one; empty if nothing does."""
    names = [*FILES, *(str(path.relative_to(whole)) for path in whole.rglob("*journal*.jsonl"))]
    for name in names:
        if (folder / name).read_bytes() != (whole / name).read_bytes():
            return f"{name} differs"
    ours, theirs = figures(folder), figures(whole)
    return (
        "" if ours == theirs else f"result.json differs in {[k for k in theirs if ours.get(k) != theirs[k]]}"
    )


# ---------------------------------------------------------------------------------------------- killed
def killed(method: str, whole: Path, seconds: float, folder: Path, lot: random.Random, most: int) -> Case:
    """Kill and resume until the run ends, or has been killed `most` times, then let it end."""
    kills, resume = 0, False
    while kills < most:
        process = begin(method, folder, resume)
        process.join(lot.uniform(0, 0.7) * seconds)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills, resume = kills + 1, folder.exists() and any(folder.iterdir())
    status = run_to_end(method, folder, resume)
    wrong = same_bits(folder, whole) if status == ENDED else f"the last process ended with {status}"
    return {"kills": kills, "wrong": wrong}


# ----------------------------------------------------------------------------------------- two writers
def together(method: str, whole: Path, folder: Path) -> Case:
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(2)

    def at_once() -> None:
        gate.wait()
        run_whole(method, folder, False)

    pair = [context.Process(target=at_once) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    found = sorted(process.exitcode or 0 for process in pair)
    wrong = same_bits(folder, whole) if found == [ENDED, REFUSED] else f"they ended with {found}"
    return {"wrong": wrong}


# ------------------------------------------------------------------------------------------- full disk
def on_small_disk(method: str, whole: Path, folder: Path, size_kib: int) -> Case:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "prunus", folder], check=True)
    try:
        run = folder / "run"
        first = run_to_end(method, run)
        subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)
        last = run_to_end(method, run, resume=run.exists() and any(run.iterdir()))
        if first not in (ENDED, FAILED, REFUSED):
            wrong = f"with {size_kib} KiB it ended with {first}, not with a sentence"
        else:
            wrong = same_bits(run, whole) if last == ENDED else f"resumed, it ended with {last}"
    finally:
        subprocess.run(["umount", folder], check=True)
    return {"kib": size_kib, "was_full": first != ENDED, "wrong": wrong}


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "prunus", folder], capture_output=True
        )
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return done.returncode == 0


# --------------------------------------------------------------------------------------------- campaign
def campaign(kills: int, pairs: int, sizes: int, seed: int, home: Path, record: CampaignRecord) -> list[Case]:
    """Go through all cases, methods in turn; returns them."""
    whole, seconds, cases = {}, {}, []
    for method in METHODS:
        begun = time.monotonic()
        status = run_to_end(method, home / f"{method}_whole")
        if status != ENDED:
            raise SystemExit(f"{method} did not run undisturbed: it ended with {status}")
        whole[method], seconds[method] = home / f"{method}_whole", time.monotonic() - begun

    def note(kind: str, number: int, make: Callable[[str, Path], Case]) -> Case:
        method = list(METHODS)[number % len(METHODS)]
        folder = home / f"{kind}{number}".replace(" ", "")
        case = record.once(kind, f"seed {seed}, {number}", lambda: {"method": method} | make(method, folder))
        shutil.rmtree(folder, ignore_errors=True)
        cases.append(case)
        print(kind, case, flush=True)
        return case

    number = left = 0
    while (left := kills - sum(case["kills"] for case in cases)) > 0:
        lot, most = random.Random(f"{seed}, {number}"), min(8, left)
        note("killed", number, lambda m, f: killed(m, whole[m], seconds[m], f, lot, most))  # noqa: B023
        number += 1
    for number in range(pairs):
        note("two writers", number, lambda m, f: together(m, whole[m], f))
    for number in range(sizes if can_mount() else 0):

        def fill(method: str, folder: Path, part: float = number / sizes) -> Case:
            needed = sum(path.stat().st_size for path in whole[method].rglob("*") if path.is_file()) // KIB
            return on_small_disk(method, whole[method], folder, 16 + int(needed * part))

        note("full disk", number, fill)
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--sizes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    add_option(parser)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    record = CampaignRecord(asked.record)
    record.note_circumstances()
    with tempfile.TemporaryDirectory() as home:
        cases = campaign(asked.kills, asked.pairs, asked.sizes, asked.seed, Path(home), record)
    wrong = [case for case in cases if case["wrong"]]
    print(f"{len(cases)} cases, {sum(case.get('kills', 0) for case in cases)} kills, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
