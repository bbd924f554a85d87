"""A run: a model, data and a budget become a folder with the smaller model in it.

    result = prunus.prune(model, example, budget=Budget(macs=0.5), data="digits", out="small/")
    result = prunus.prune(model, budget=Sparsity(0.8), method="lookahead", data="digits", out="sparse/")

What happens is in stages.py, how a killed run goes on in runfolder.py; here is what can be asked for and what
comes of it: result.json and report.html.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from prunus import report
from prunus.data import Data
from prunus.export import store
from prunus.files import write_json
from prunus.graph import Graph
from prunus.methods import Pruned
from prunus.progress import silent
from prunus.run.folder import Run
from prunus.run.prepare import prepared
from prunus.run.result import result_of
from prunus.run.settings import Settings, asked_for, label
from prunus.selection import Budget, Sparsity

STAGES = ("base", "prune", "shrink", "recover", "evaluate")


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, result.json as `values`, and the smaller model."""

    folder: Path
    values: dict
    model: nn.Module


def prune(
    model: nn.Module | str,
    example: Tensor | None = None,
    *,
    budget: Budget | Sparsity | None = None,
    data: Data | str,
    out: str | Path,
    method: str | None = None,
    settings: Settings | None = None,
    resume: bool = False,
    progress: Callable = silent,
) -> Result:
    """Prune `model` to `budget`, recover it on `data`, test and report it, all in the folder `out`.

    budget: a Budget for methods that remove units, a Sparsity for those that set single weights to zero; None is
    half the multiply-adds, or the method's usual sparsity.
    model, data: the things themselves, or SPECs; a model given stays as it is. example: one input
    (1, C, H, W), data.example if not given. method: settings.method if not given. progress: such as
    `prunus.progress.bar`, which shows how far each stage is.
    Raises UserError for anything wrong with what was given, PruningError, TrainingError.
    """
    settings = replace(settings or Settings(), **({"method": method} if method else {}))
    budget = asked_for(settings, budget)
    asked = {"model": label(model), "data": label(data), "budget": {budget.name: budget.value}}
    run = Run(out, asked | asdict(settings), resume=resume, progress=progress)
    work = prepared(run, model, example, data, budget, settings)
    run.begin()
    records = {name: run.stage(name, getattr(work, name)) for name in STAGES}
    values = result_of(work, records)
    run.write(lambda: write_json(run.path / "result.json", values))
    run.write(lambda: report.write_page(run.path / "report.html", values))
    run.log("done", **{key: values[key] for key in ("before", "pruned", "after")})
    return Result(run.path, values, store.load(run.path, work.fresh()))


def preview(
    model: nn.Module | str,
    example: Tensor | None = None,
    *,
    budget: Budget | Sparsity | None = None,
    data: Data | str,
    settings: Settings | None = None,
    progress: Callable = silent,
) -> tuple[Graph, Pruned]:
    """What `prune` would keep of the model as it is now, nothing trained before or while; leaves no file behind."""
    settings = settings or Settings()
    budget = asked_for(settings, budget)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder, asdict(settings), progress=progress)
        work = prepared(run, model, example, data, budget, settings)
        if hasattr(work.config, "at_once"):
            work = replace(work, config=work.config.at_once())
        return work.graph(), work.choice(work.fresh())
