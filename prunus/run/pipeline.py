"""The functions that prune a model in a folder, or preview what would be kept.

    result = prunus.prune(model, example, budget=Budget(macs=0.5), data="digits", out="small/")
    result = prunus.prune(model, budget=Sparsity(0.8), method="lookahead", data="digits", out="sparse/")

The stages are in stages.py; folder.py resumes a killed run.
"""

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
from prunus.progress import silent
from prunus.run import provenance
from prunus.run.folder import RunFolder
from prunus.run.prepare import make_pipeline, make_task
from prunus.run.result import make_result
from prunus.run.settings import READ_BY, Settings, label, resolve_budget, resolve_task, to_json
from prunus.run.stages import Pipeline
from prunus.selection import Budget, Sparsity
from prunus.tasks import Task


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
    budget = resolve_budget(settings, budget)
    stored = _collect_settings(model, task, data, budget, settings)
    run = RunFolder(out, stored, resume=resume, progress=progress)
    with use_threads(settings.threads), run:
        pipeline = _make_pipeline(run, model, example, task, data, budget, settings)
        provenance.settle(run, pipeline.task.data)
        records = {name: run.stage(name, getattr(pipeline, name)) for name in READ_BY}
        values = make_result(pipeline, records)
        run.write(lambda: write_json(run.path / "result.json", values))
        run.write(lambda: report.write_page(run.path / "report.html", values))
        run.log("done", **{key: values[key] for key in ("before", "pruned", "after")})
        return Result(run.path, values, store.load(run.path, pipeline.fresh_model()))


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
    budget = resolve_budget(settings, budget)
    with use_threads(settings.threads), tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder, to_json(settings), progress=progress)
        pipeline = _make_pipeline(run, model, example, task, data, budget, settings)
        pipeline = replace(pipeline, config=pipeline.config.preview())
        return pipeline.graph, pipeline.choose(pipeline.fresh_model())


def _collect_settings(
    model: nn.Module | str | None,
    task: Task | None,
    data: Data | str | None,
    budget: Budget | Sparsity,
    settings: Settings,
) -> dict[str, Any]:
    """Return the contents of settings.json; a run resumes only with the same."""
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
    return things | {"budget": {budget.name: budget.value}} | to_json(settings)


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
