"""Comparing methods: every method with every budget and seed, from the same base, with equally long training.

    found = prunus.compare("zoo:resnet20", data="digits", methods=["taylor", "magnitude", "scratch"],
                           budgets=["macs=0.5", "macs=0.25"], seeds=[0, 1, 2], out="board/", jobs=2)
    found.values["rows"]

The folder of a comparison:

    bases/seed0/        the base of each seed, trained once
    runs/NAME/          a run for each arm, like any other
    logs/NAME.txt       what the process of an arm showed, with several jobs
    compare.json        all figures; compare.html shows them

A run that is finished stays, one that was killed goes on. The milliseconds of all arms are measured at the end, in
turns.
"""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus import report
from prunus.data import Data
from prunus.errors import PrunusError, UserError
from prunus.export import store
from prunus.files import write_json
from prunus.inputs import move
from prunus.latency import measure, milliseconds
from prunus.machine import cores, use_threads
from prunus.progress import silent
from prunus.run.arms import BASES, RUNS, Arm, Limit, check_shared, plan_arms
from prunus.run.loading import BASE as BASE_FILE
from prunus.run.loading import load_into
from prunus.run.lock import check_free, sole_writer
from prunus.run.orders import Order, Queue, Subject, check_order
from prunus.run.reopen import reopen_task
from prunus.run.saved import read_result
from prunus.run.settings import Settings, resolve_task
from prunus.run.standing import AGAIN, BASE, make_standing
from prunus.run.workers import run_here, run_in_processes
from prunus.tasks import Task

METHODS = ("taylor", "magnitude", "magnitude:how=uniform", "random", "scratch")
TOTAL_EPOCHS = 10
SECONDS_EACH = 1.0  # of measuring, for each network


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Args:
        folder: Its folder.
        values: The contents of compare.json.
        failed: Why arms failed, by their names.
    """

    folder: Path
    values: dict[str, Any]
    failed: dict[str, str]


def compare(
    model: nn.Module | str | None = None,
    example: Any = None,
    *,
    task: Task | str | None = None,
    data: Data | str | None = None,
    out: str | Path,
    methods: Sequence[str] = METHODS,
    budgets: Sequence[str | Limit] = ("macs=0.5",),
    seeds: Sequence[int] = (0,),
    settings: Settings | None = None,
    jobs: int = 1,
    resume: bool = False,
    progress: Callable[..., Any] = silent,
) -> Comparison:
    """Compare methods: run every one with every budget and seed from the same base, and report them side by side.

    Every arm is trained for as long: settings.total_epochs (10 if None) are those of search and recovery together. The
    base of a seed is trained once, so every arm is the very run that its settings give alone.

    Args:
        model: As in `prune`.
        example: As in `prune`.
        task: As in `prune`.
        data: As in `prune`.
        out: The folder of the comparison.
        methods: The methods, each with options if need be, such as "magnitude:how=uniform"; "scratch" is the network of
            the first method's widths, trained from scratch. The others are compared with the first.
        budgets: The limits, such as "macs=0.5" or "sparsity=0.8"; a method takes those of its kind.
        seeds: The seeds.
        settings: What all runs share; its options go to all methods that have them.
        jobs: How many runs at once, in processes of their own; for 1 in this one.
        resume: Whether to continue the comparison that the folder holds, which may get more arms.
        progress: As in `prune`.

    Returns:
        The finished comparison. An arm that failed is named in it with its reason; the others have gone on.

    Raises:
        UserError: An argument is wrong, or another process writes into the folder.
        PrunusError: No arm was finished.
    """
    settings = settings or Settings()
    check_shared(settings)
    if settings.total_epochs is None:
        settings = replace(settings, total_epochs=TOTAL_EPOCHS)
    if jobs > 1 and settings.threads is None:
        settings = replace(settings, threads=max(1, cores() // jobs))
    settings, own = resolve_task(settings, task)
    folder = Path(out)
    subject = Subject(model=model, example=example, task=None if isinstance(task, str) else task, data=data)
    check_processes(jobs, subject)
    arms = plan_arms(methods, budgets, seeds, settings, folder, own)
    orders = make_orders(folder, arms)
    check_folder(folder, resume)
    for order in orders:
        check_order(order, subject, own)
    with sole_writer(folder):
        (folder / BASES).mkdir(exist_ok=True)
        queue = Queue(orders)
        if jobs > 1:
            run_in_processes(queue, subject, jobs, folder / "logs", progress)
        else:
            run_here(queue, subject, progress)
        results = {
            arm.name: read_result(folder / RUNS / arm.name) for arm in arms if arm.name not in queue.failed
        }
        if not results:
            raise PrunusError(f"no arm was finished. {next(iter(queue.failed.values()))}")
        with use_threads(settings.threads):
            latency = measure_arms(folder, results, subject, progress)
        values = make_standing(arms, results, queue.failed, latency)
        write_json(folder / "compare.json", values)
        report.write_board(folder / "compare.html", values)
    return Comparison(
        folder, values, {arm.name: queue.failed[arm.name] for arm in arms if arm.name in queue.failed}
    )


def make_orders(folder: Path, arms: Sequence[Arm]) -> list[Order]:
    """Make the orders of a comparison: the bases first, then the arms."""
    orders: dict[str, Order] = {}
    for arm in arms:
        name = f"base-seed{arm.seed}"
        orders.setdefault(
            name, Order(name=name, out=folder / BASES / f"seed{arm.seed}", settings=arm.settings)
        )
    for arm in arms:
        base = orders[f"base-seed{arm.seed}"]
        orders[arm.name] = Order(
            name=arm.name,
            out=folder / RUNS / arm.name,
            settings=arm.settings,
            limit=arm.limit,
            base=base.out,
            needs=(base.name, *([arm.after.name] if arm.after else [])),
        )
    return list(orders.values())


def check_processes(jobs: int, subject: Subject) -> None:
    """Raise UserError unless so many processes can work on what is pruned."""
    if jobs < 1:
        raise UserError(f"jobs should be a whole number from 1, but is {jobs}; the nearest is 1.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a comparison starts processes of its own: begin it without torchrun, with jobs.")
    if jobs > 1 and not subject.is_named:
        raise UserError(
            f"jobs={jobs}: other processes make model and data from their names, but an object was given; name them "
            "(model='package.module:callable'), or leave jobs=1."
        )


def check_folder(folder: Path, resume: bool) -> None:
    """Raise UserError unless the folder is free, or holds a comparison and `resume` is on."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, but a comparison needs a folder; choose another path.")
    check_free(folder)
    there = folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir())
    if there and not resume:
        raise UserError(
            f"{folder} is not empty. Continue the comparison in it by adding --resume, or choose another folder."
        )
    if there and not (folder / BASES).is_dir():
        raise UserError(f"{folder} holds no comparison to resume (no {BASES}/); choose another folder.")


def measure_arms(
    folder: Path, results: dict[str, dict[str, Any]], subject: Subject, progress: Callable[..., Any]
) -> dict[str, milliseconds.Latency]:
    """Measure the milliseconds of all finished arms and of a base side by side, on the device that trains.

    A second copy of the base tells how much of a difference is chance.
    """
    name, result = next(iter(results.items()))
    task = subject.task
    if task is None:
        given = subject.model if isinstance(subject.model, nn.Module) else None
        task = reopen_task(folder / RUNS / name, result, given)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = accelerator or torch.device("cpu")
    base = load_into(copy.deepcopy(task.model), folder / RUNS / name / BASE_FILE)
    models = {BASE: base, AGAIN: copy.deepcopy(base)}
    models |= {name: store.load(folder / RUNS / name, task.model) for name in results}
    models = {name: model.to(device) for name, model in models.items()}
    return measure(models, move(task.example, device), seconds=SECONDS_EACH * len(models), progress=progress)
