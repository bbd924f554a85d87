"""A run: a model, data and a budget become a folder with the smaller model in it.

    result = prunus.prune(model, example, budget=Budget(macs=0.5), data="digits", out="small/")
    result = prunus.prune(model, budget=Sparsity(0.8), method="lookahead", data="digits", out="sparse/")

The stages are in stages.py, the way a killed run is resumed in folder.py.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus import report
from prunus.data import Data
from prunus.errors import UserError
from prunus.export import store
from prunus.files import write_json
from prunus.graph import Graph
from prunus.methods import Pruned
from prunus.progress import silent
from prunus.run.folder import Run
from prunus.run.prepare import classification, prepared
from prunus.run.result import result_of
from prunus.run.settings import Settings, asked_for, label
from prunus.run.stages import Work
from prunus.selection import Budget, Sparsity
from prunus.tasks import Task

STAGES = ("base", "prune", "shrink", "recover", "evaluate")


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, result.json as `values`, and the smaller model."""

    folder: Path
    values: dict
    model: nn.Module


def prune(
    model: nn.Module | str | None = None,
    example: Tensor | None = None,
    *,
    task: Task | None = None,
    budget: Budget | Sparsity | None = None,
    data: Data | str | None = None,
    out: str | Path,
    method: str | None = None,
    settings: Settings | None = None,
    resume: bool = False,
    progress: Callable = silent,
) -> Result:
    """Prune a model to a budget, recover it, test and report it, all in one folder.

    Args:
        model: The model, or its SPEC; a model that is given stays as it is, and is taken as trained.
        example: One input (1, C, H, W); data.example if not given.
        task: A model, data and what the model is for, in place of `model` and `data`, which classify images.
        budget: A Budget for methods that remove units, a Sparsity for those that set single weights to zero; None:
            half the multiply-adds, or the method's default sparsity.
        data: The data, or its SPEC.
        out: The folder of the run.
        method: The method's name, settings.method if not given.
        settings: How the run goes.
        resume: Whether to go on with the run that the folder holds.
        progress: Such as `prunus.progress.bar`, which shows how far each stage is.

    Returns:
        The finished run: its folder, result.json and the smaller model.

    Raises:
        UserError: For anything wrong with what was given.
        PruningError: If the smaller model is not proved, or a method overruns the budget.
        TrainingError: If a loss is not finite.
    """
    settings = replace(settings or Settings(), **({"method": method} if method else {}))
    budget = asked_for(settings, budget)
    run = Run(out, _asked(model, task, data, budget, settings), resume=resume, progress=progress)
    work = _work(run, model, example, task, data, budget, settings)
    run.begin()
    records = {name: run.stage(name, getattr(work, name)) for name in STAGES}
    values = result_of(work, records)
    run.write(lambda: write_json(run.path / "result.json", values))
    run.write(lambda: report.write_page(run.path / "report.html", values))
    run.log("done", **{key: values[key] for key in ("before", "pruned", "after")})
    return Result(run.path, values, store.load(run.path, work.fresh()))


def preview(
    model: nn.Module | str | None = None,
    example: Tensor | None = None,
    *,
    task: Task | None = None,
    budget: Budget | Sparsity | None = None,
    data: Data | str | None = None,
    settings: Settings | None = None,
    progress: Callable = silent,
) -> tuple[Graph, Pruned]:
    """Return the graph, and what `prune` would keep of the model as it is now; trains nothing, leaves no file.

    Its arguments are those of `prune`.
    """
    settings = settings or Settings()
    budget = asked_for(settings, budget)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder, asdict(settings), progress=progress)
        work = _work(run, model, example, task, data, budget, settings)
        work = replace(work, config=work.config.preview())
        return work.graph(), work.choice(work.fresh())


def _asked(
    model: nn.Module | str | None,
    task: Task | None,
    data: Data | str | None,
    budget: Budget | Sparsity,
    settings: Settings,
) -> dict[str, Any]:
    """What settings.json holds: only the same may be resumed."""
    if task is None:
        if model is None or data is None:
            raise UserError("prune needs a model and data, or a task that has both.")
        things = {"model": label(model), "data": label(data)}
    else:
        if model is not None or data is not None:
            raise UserError(
                "give either a task, or a model and data; a task has a model and data of its own."
            )
        things = {"model": label(task.model), "data": label(task.data), "task": type(task).__qualname__}
    return things | {"budget": {budget.name: budget.value}} | asdict(settings)


def _work(
    run: Run,
    model: nn.Module | str | None,
    example: Tensor | None,
    task: Task | None,
    data: Data | str | None,
    budget: Budget | Sparsity,
    settings: Settings,
) -> Work:
    is_trained = not isinstance(model, str)
    if task is None:
        assert model is not None and data is not None
        task = classification(model, example, data, settings)
    else:
        task = copy.copy(task)  # the user's keeps its own recipe fields
    return prepared(run, task, budget, settings, is_trained=is_trained)
