r"""Denoising and super-resolution: DHP against its controls, at equal steps and equal cost, from one base.

    python benchmarks/restoration.py denoise    # 40 minutes, estimated from epochs timed on one busy core
    python benchmarks/restoration.py sr         # 25 minutes, as above

    base     a small DnCNN (sigma 25) or EDSR (x4), trained here
    longer   the base, trained on as the arms are recovered, for all the epochs; losses are counted from it
    dhp      searches for some epochs, then recovers for the others
    l1       cuts the units with the smallest L1 norms at once, and recovers for all the epochs
    uniform  the same, with the same share of every axis
    random   the same share of every axis, drawn by lot

Each arm is a run of `prunus.prune`, proof included, in a folder of its own. PSNR in dB, higher is better: on all images
of two test sets, on which no choice was made. Rows that are there with the same setup are not run again, and a run that
was killed goes on where it was. The table at the end compares with the losses in DHP's table 3 (arXiv:2003.13683).
"""

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from board import Board
from torch import nn

import prunus
from prunus.data import Data, Downscaling, Noise, Patches, load_pairs
from prunus.run import Settings
from prunus.tasks import Denoising, SuperResolution, Task
from prunus.train import fit
from prunus.zoo.restoration import DnCNN, edsr

ARMS = {
    "dhp": ("dhp", ()),
    "l1": ("magnitude", ("p=1",)),
    "uniform": ("magnitude", ("p=1", "how=uniform")),
    "random": ("random", ("how=uniform",)),
}
TRAIN = {"denoise": "train400_gray", "sr": "bsds_train"}
TESTS = {"denoise": ("set12_gray", "bsd68_gray"), "sr": ("set5", "set14")}
PATCH = {"denoise": 40, "sr": 64}  # pixels
# Losses in dB at 60, 40 and 20 % of the multiply-adds in DHP's table 3, on BSD68 and on Set14.
PAPER = {
    "denoise": ("DnCNN, sigma 70, BSD68", {0.6: 0.02, 0.4: 0.04, 0.2: 0.09}),
    "sr": ("EDSR x4, Set14", {0.6: 0.03, 0.4: 0.06, 0.2: 0.13}),
}


def network(asked: argparse.Namespace, seed: int) -> nn.Module:
    """Build the network, freshly initialised."""
    torch.manual_seed(seed)
    if asked.experiment == "denoise":
        return DnCNN(1, layers=asked.layers, width=asked.width)
    return edsr(asked.scale, 3, blocks=asked.layers, width=asked.width)


def load(asked: argparse.Namespace, test: str) -> Data:
    """Load the training images, and those of one test set."""
    degradation = Noise(asked.sigma) if asked.experiment == "denoise" else Downscaling(asked.scale)
    patches = Patches(side=PATCH[asked.experiment], each=asked.patches)
    train = f"parquet:{asked.data / TRAIN[asked.experiment]}.parquet"
    return load_pairs(train, degradation, patches, test=f"parquet:{asked.data / test}.parquet")


def task_of(model: nn.Module, data: Data, asked: argparse.Namespace) -> Task:
    """Make the task of a model."""
    fields = {"lr": asked.lr, "batch_size": asked.batch_size}
    if asked.experiment == "denoise":
        return Denoising(model, data, fields)
    return SuperResolution(model, data, fields, scale=asked.scale)


def psnrs(model: nn.Module, tests: dict[str, Data], asked: argparse.Namespace) -> dict[str, float]:
    """Return the PSNR on each test set in dB."""
    return {
        name: task_of(model, data, asked).evaluate(model, data.judged)["psnr"] for name, data in tests.items()
    }


def trained_base(tests: dict[str, Data], asked: argparse.Namespace, seed: int) -> nn.Module:
    """Train the base; once, then it is read from its folder."""
    base, data = network(asked, seed), next(iter(tests.values()))
    task = task_of(base, data, asked)
    recipe = replace(task.recipe("scratch"), epochs=asked.base_epochs)
    fit(base, task, recipe, folder=asked.folder / asked.experiment / f"base_{seed}", seed=seed)
    return base


def run_arm(
    arm: str, share: float, base: nn.Module, tests: dict[str, Data], asked: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Make one row."""
    method, options = ARMS[arm]
    epochs, began_s = asked.epochs, time.perf_counter()
    if arm == "dhp":
        options, epochs = (f"epochs={asked.search_epochs}",), asked.epochs - asked.search_epochs
    out = asked.folder / asked.experiment / f"{arm}_{share}_{seed}"
    result = prunus.prune(
        task=task_of(base, next(iter(tests.values())), asked),
        method=method,
        budget=prunus.Budget(macs=share),
        out=out,
        settings=Settings(options=options, seed=seed, base_epochs=0, epochs=epochs),
        resume=out.exists(),
    )
    values, first = result.values, next(iter(tests))
    return {
        "macs": values["after"]["macs"] / values["before"]["macs"],
        "params": values["after"]["params"] / values["before"]["params"],
        "proof": values["verified"]["max_abs_error"],
        "pruned": {first: values["pruned"]["psnr"]},
        "recovered": psnrs(result.model, tests, asked),
        "seconds": time.perf_counter() - began_s,
    }


def trained_on(base: nn.Module, tests: dict[str, Data], asked: argparse.Namespace, seed: int) -> nn.Module:
    """Train the base for as many epochs as the arms have."""
    model = copy.deepcopy(base)
    task = task_of(model, next(iter(tests.values())), asked)
    recipe = replace(task.recipe("recover"), epochs=asked.epochs)
    fit(model, task, recipe, folder=asked.folder / asked.experiment / f"longer_{seed}", seed=seed)
    return model


def table(rows: list[dict[str, Any]], asked: argparse.Namespace) -> str:
    """Make a table in Markdown: means over the seeds of the PSNR and of the loss beside the base trained on."""
    names, (paper, losses) = TESTS[asked.experiment], PAPER[asked.experiment]
    head = ["arm", "multiply-adds", *(f"{name}, dB" for name in names), "loss, dB", f"DHP's loss ({paper})"]
    lines = [head, ["---"] * len(head)]
    for arm in ("base", "longer"):
        base = [row for row in rows if row["arm"] == arm]
        lines.append([arm, "100 %", *(f"{mean(base, name):.2f}" for name in names), "", ""])
    for share in asked.shares:
        for arm in asked.arms:
            found = [row for row in rows if (row["arm"], row.get("share")) == (arm, share)]
            lost = ", ".join(f"{mean(base, name) - mean(found, name):+.2f}" for name in names)
            figures = [f"{mean(found, name):.2f}" for name in names]
            stated = f"{losses[share]:+.2f}" if arm == "dhp" and share in losses else ""
            lines.append([arm, f"{100 * share:g} %", *figures, lost, stated])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean(rows: list[dict[str, Any]], name: str) -> float:
    """Return the mean PSNR on a test set."""
    return sum(row["recovered"][name] for row in rows) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", choices=TRAIN)
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "restoration"
    parser.add_argument("--data", type=Path, default=default, help="the folder of the parquet files")
    parser.add_argument("--sigma", type=float, default=25.0)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument(
        "--layers", type=int, default=4, help="inner convolutions of DnCNN, or blocks of EDSR"
    )
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--patches", type=int, default=6, help="of each image in an epoch")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--base-epochs", type=int, default=16)
    parser.add_argument("--search-epochs", type=int, default=2, help="of dhp")
    parser.add_argument("--epochs", type=int, default=6, help="after the base; of dhp its search included")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.6, 0.4, 0.2], help="of the multiply-adds"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/restoration"), help="for what the arms keep"
    )
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = asked.out or Path(__file__).parent / "results" / f"restoration_{asked.experiment}.json"
    apart = ("data", "shares", "arms", "seeds", "folder", "out")
    board = Board(out, {name: value for name, value in vars(asked).items() if name not in apart})
    tests = {name: load(asked, name) for name in TESTS[asked.experiment]}
    for seed in asked.seeds:
        base = trained_base(tests, asked, seed)
        if not board.has(arm="base", seed=seed):
            steps = asked.base_epochs * next(iter(tests.values())).train.steps(asked.batch_size)
            board.add({"arm": "base", "seed": seed, "steps": steps, "recovered": psnrs(base, tests, asked)})
        if not board.has(arm="longer", seed=seed):
            longer = trained_on(base, tests, asked, seed)
            board.add({"arm": "longer", "seed": seed, "recovered": psnrs(longer, tests, asked)})
        for share in asked.shares:
            for arm in asked.arms:
                if not board.has(arm=arm, share=share, seed=seed):
                    row = run_arm(arm, share, base, tests, asked, seed)
                    board.add({"arm": arm, "share": share, "seed": seed} | row)
    print(table(board.rows, asked))


if __name__ == "__main__":
    main()
