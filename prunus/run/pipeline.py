"""The functions that prune a model in a folder, or preview what would be kept.

    result = prunus.prune(model, example, budget=Budget(macs=0.5), data="digits", out="small/")
    result = prunus.prune(model, budget=Sparsity(0.8), method="lookahead", data="digits", out="sparse/")

The stages are in stages.py; folder.py resumes a killed run.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from prunus import report
from prunus.data import Data
from prunus.errors import UserError
from prunus.export import store
from prunus.files import write_json
from prunus.graph import Graph
from prunus.machine import use_threads
from prunus.methods import Pruned
from prunus.options import no_preview
from prunus.progress import silent
from prunus.run import provenance
from prunus.run.advice import resolve_auto
from prunus.run.folder import RunFolder
from prunus.run.from_base import begin_from
from prunus.run.prepare import make_pipeline, make_task
from prunus.run.result import make_result
from prunus.run.settings import (
    Settings,
    check_steps,
    label,
    resolve_budget,
    resolve_repair,
    resolve_task,
    to_json,
)
from prunus.run.stages import Pipeline
from prunus.selection import Budget, Sparsity
from prunus.tasks import Task

WHOLE = Budget(macs=1.0)
NOTHING_PRUNED: dict[str, Any] = {
    "method": "random",
    "options": (),
    "steps": 1,
    "runtime": None,
    "repair": None,
}  # the settings of a base alone


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        folder: Its folder.
        values: The contents of result.json.
        model: The smaller model.
    """

    folder: Path
    values: dict[str, Any]
    model: nn.Module


def prune(
    model: nn.Module | str | None = None,
    example: Any = None,
    *,
    task: Task | str | None = None,
    budget: Budget | Sparsity | None = None,
    data: Data | str | None = None,
    out: str | Path,
    method: str | None = None,
    settings: Settings | None = None,
    resume: bool = False,
    base: str | Path | None = None,
    progress: Callable[..., Any] = silent,
) -> Result:
    """Prune a model to a budget, recover it, test it and write a report, all in one folder.

    Args:
        model: The model, or its SPEC. A module stays unchanged and is taken as trained.
        example: One input with a batch dimension of 1, such as an image (1, C, H, W); data.example if None.
        task: A task, such as a `prunus.Task`, which has a model and data of its own; or the name of one, as in
            settings.task, which is taken if None.
        budget: A Budget for methods that remove units, a Sparsity for those that set single weights to zero; None:
            half the multiply-adds, or the method's default sparsity.
        data: The data, or its SPEC.
        out: The folder of the run.
        method: The method's name; settings.method if None.
        settings: How the run proceeds; the defaults of `Settings` if None.
        resume: Whether to continue the run that the folder holds.
        base: The folder of another run with the same settings up to the end of its stage base, whose base this one
            takes in place of training its own; a run that `out` holds is continued.
        progress: How to show the progress of long stages; such as `prunus.progress.bar`.

    Returns:
        The finished run: its folder, result.json and the smaller model.

    Raises:
        UserError: An argument is wrong, or another process writes into the folder.
        PruningError: The smaller model is not proved, or the method exceeds the budget.
        TrainingError: A loss is not finite.
    """
    settings = replace(settings or Settings(), **({"method": method} if method else {}))
    settings, task = resolve_task(settings, task)
    settings, why = resolve_auto(settings, budget, task)
    budget = resolve_budget(settings, budget)
    resolve_repair(settings)  # both are refused before anything is read
    check_steps(settings, budget)
    stored = collect_settings(model, task, data, budget, settings)
    if base is not None:
        begin_from(Path(base), Path(out), stored)
    run = RunFolder(out, stored, resume=resume or base is not None, progress=progress)
    settings = replace(settings, repair=run.setting("repair"))
    with use_threads(settings.threads), run:
        pipeline = _make_pipeline(run, model, example, task, data, budget, settings)
        provenance.settle(run, pipeline.task.data)
        if why:
            run.log("auto", method=settings.method, why=why)
        records = {name: run.stage(name, getattr(pipeline, name)) for name in pipeline.stages}
        values = make_result(pipeline, records)
        run.write(lambda: write_json(run.path / "result.json", values))
        run.write(lambda: report.write_page(run.path / "report.html", values))
        run.log("done", **{key: values[key] for key in ("before", "pruned", "after")})
        return Result(run.path, values, store.load(run.path, pipeline.fresh_model()))


def train_base(
    model: nn.Module | str | None = None,
    example: Any = None,
    *,
    task: Task | str | None = None,
    data: Data | str | None = None,
    out: str | Path,
    settings: Settings,
    resume: bool = False,
    progress: Callable[..., Any] = silent,
) -> None:
    """Train the base of a run, and nothing else; other runs can begin with it (from_base.py).

    Args:
        model: As in `prune`.
        example: As in `prune`.
        task: As in `prune`.
        data: As in `prune`.
        out: The folder.
        settings: The settings, of which those of the stage base count (`READ_BY`).
        resume: As in `prune`.
        progress: As in `prune`.

    Raises:
        UserError: As in `prune`.
        TrainingError: As in `prune`.
    """
    settings, task = resolve_task(replace(settings, **NOTHING_PRUNED), task)
    stored = collect_settings(model, task, data, WHOLE, settings)
    run = RunFolder(out, stored, resume=resume, progress=progress)
    with use_threads(settings.threads), run:
        pipeline = _make_pipeline(run, model, example, task, data, WHOLE, settings)
        provenance.settle(run, pipeline.task.data)
        run.stage("base", pipeline.base)


def preview(
    model: nn.Module | str | None = None,
    example: Any = None,
    *,
    task: Task | str | None = None,
    budget: Budget | Sparsity | None = None,
    data: Data | str | None = None,
    settings: Settings | None = None,
    progress: Callable[..., Any] = silent,
) -> tuple[Graph, Pruned]:
    """Choose what `prune` would keep of the model as it is now; trains nothing and leaves no file.

    Args:
        model: As in `prune`.
        example: As in `prune`.
        task: As in `prune`.
        budget: As in `prune`.
        data: As in `prune`.
        settings: As in `prune`.
        progress: As in `prune`.

    Returns:
        The graph, and the method's choice.

    Raises:
        UserError: An argument is wrong, or the method decides only by training or searching.
    """
    settings, task = resolve_task(settings or Settings(), task)
    settings, _ = resolve_auto(settings, budget, task)
    budget = resolve_budget(settings, budget)
    if settings.steps > 1:
        raise no_preview(
            f"steps={settings.steps}", "training between steps", "a single step by leaving steps out"
        )
    with use_threads(settings.threads), tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder, to_json(settings), progress=progress)
        pipeline = _make_pipeline(run, model, example, task, data, budget, settings)
        pipeline = replace(pipeline, config=pipeline.config.preview())
        return pipeline.graph, pipeline.choose(pipeline.fresh_model())


def collect_settings(
    model: nn.Module | str | None,
    task: Task | None,
    data: Data | str | None,
    budget: Budget | Sparsity,
    settings: Settings,
) -> dict[str, Any]:
    """Return the contents of settings.json; a run resumes only with the same.

    Args:
        model: As in `prune`.
        task: A task of the user's own; None for a built-in one.
        data: As in `prune`.
        budget: The limit.
        settings: The settings.

    Returns:
        Plain JSON.

    Raises:
        UserError: Model or data are missing, or given twice.
    """
    if task is None:
        if model is None or data is None:
            missing = "model" if model is None else "data"
            raise UserError(f"prune needs a model and data, or a task that has both; {missing} is None.")
        things: dict[str, Any] = {"model": label(model), "data": label(data)}
    else:
        if model is not None or data is not None:
            raise UserError(
                "give either a task, or a model and data; a task has a model and data of its own."
            )
        things = {"model": label(task.model), "data": label(task.data), "task": type(task).__qualname__}
    return json.loads(json.dumps(things | {"budget": budget.limits} | to_json(settings)))


def _make_pipeline(
    run: RunFolder,
    model: nn.Module | str | None,
    example: Any,
    task: Task | None,
    data: Data | str | None,
    budget: Budget | Sparsity,
    settings: Settings,
) -> Pipeline:
    is_trained = not isinstance(model, str)
    if task is None:
        assert model is not None and data is not None
        task = make_task(model, example, data, settings, provenance.split_of(run.path))
    return make_pipeline(run, task, budget, settings, is_trained=is_trained)
