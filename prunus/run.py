"""A run: a model, data and a budget become a folder with the smaller model in it.

    result = prunus.prune(model, example, budget=Budget(macs=0.5), data="digits", out="small/")
    result = prunus.prune(model, budget=Sparsity(0.8), method="lookahead", data="digits", out="sparse/")

What happens is in stages.py, how a killed run goes on in runfolder.py; here is what can be asked for and what
comes of it: result.json and report.html.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accelerate.utils import set_seed
from torch import Tensor, nn

from prunus import latency, report, scores
from prunus.data import Data, load_data
from prunus.errors import UserError
from prunus.export import store
from prunus.files import write_json
from prunus.graph import Graph, trace
from prunus.machine import machine, versions
from prunus.methods import Pruned
from prunus.methods import _registry as registry
from prunus.progress import silent
from prunus.runfolder import Run
from prunus.selection import Budget, Metered, Sparsity
from prunus.stages import Work
from prunus.tasks import Classification
from prunus.zoo import load_model, load_weights

STAGES = ("base", "prune", "shrink", "recover", "evaluate")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run goes. All of it is kept with the result, and only the same settings resume a run.

    options: the method's, each "name=value". weights: a file for the model. base_...: of the training before
    pruning, the others of the one after; None: as the task advises. A model that was given, not named, is
    taken as trained unless base_epochs says otherwise. runtime: in what a budget of milliseconds is measured, torch
    (None) on the device that trains, or onnxruntime on the processor.
    """

    method: str = "taylor"
    options: tuple[str, ...] = ()
    seed: int = 0
    weights: str | None = None
    image_size: int | None = None
    base_epochs: int | None = None
    base_lr: float | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    precision: str | None = None
    distill_weight: float | None = None
    runtime: str | None = None


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


def prepared(
    run: Run,
    model: nn.Module | str,
    example: Tensor | None,
    data: Data | str,
    budget: Budget | Sparsity,
    settings: Settings,
) -> Work:
    """Load what is only named, and see that model and data fit together."""
    if isinstance(data, str):
        data = load_data(data, seed=settings.seed, image_size=settings.image_size)
    if example is not None:
        data = replace(data, example=example)
    purpose, base_epochs = "tune", settings.base_epochs
    if isinstance(model, str):
        set_seed(settings.seed)
        model = load_model(model, classes=data.classes, in_shape=tuple(data.example.shape[1:]))
        purpose = "tune" if settings.weights else "scratch"
    elif base_epochs is None:
        base_epochs = 0
    if settings.weights:
        load_weights(model, settings.weights)
    method, config = configured(settings)
    settled = given({"batch_size": settings.batch_size, "precision": settings.precision})
    task = Classification(model, data, settled)
    budget = metered(run, model, data, budget, settings)
    # Refuse now what would be refused after the training.
    if isinstance(budget, Metered) and run.has("prune"):
        pass  # it was met, and measured again it might not be
    elif hasattr(config, "select"):
        graph = trace(model, data.example)
        config.select(graph, scores.random(graph, settings.seed), budget)
    elif isinstance(budget, Sparsity):
        config.check(trace(model, data.example), budget)
    base = {"epochs": base_epochs, "lr": settings.base_lr}
    recovery = {"epochs": settings.epochs, "lr": settings.lr, "distill_weight": settings.distill_weight}
    return Work(
        run=run,
        model=model,
        data=data,
        budget=budget,
        method=method,
        config=config,
        base_recipe=replace(task.recipe(purpose), **given(base)),
        recovery_recipe=replace(task.recipe("recover"), **given(recovery)),
        settled=settled,
    )


def metered(
    run: Run, model: nn.Module, data: Data, budget: Budget | Sparsity, settings: Settings
) -> Budget | Sparsity:
    """A budget of milliseconds with a meter, which goes wherever the budget goes: methods hand it to `select` like any
    other, and need not know that something is measured. One process measures for all. Other budgets as they are."""
    if budget.name != "latency_ms":
        if settings.runtime is not None:
            raise UserError(
                f"runtime={settings.runtime} goes with a budget of latency_ms, not with {budget}."
            )
        return budget
    here = copy.deepcopy(model).to(run.processes.device)
    runtime, graph = settings.runtime or "torch", trace(model, data.example)
    meter = latency.Meter(here, graph, runtime=runtime, progress=run.progress, agree=run.agreed)
    return Metered(latency_ms=budget.value, meter=meter)


def asked_for(settings: Settings, budget: Budget | Sparsity | None) -> Budget | Sparsity:
    """The budget, or what is usual for the method; UserError if the two do not go together."""
    method, config = configured(settings)
    budget = method.usual(config) if budget is None else budget
    method.check(budget)
    return budget


def configured(settings: Settings) -> tuple[registry.Method, object]:
    """The method and its options; UserError if there are none such."""
    method = registry.find(settings.method)
    kind = f"option of method {settings.method}"
    return method, registry.configure(method.config_class, settings.options, kind)


def given(values: dict) -> dict:
    """Those that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def label(thing: object) -> str:
    """How settings.json calls a model or data: the SPEC, or what class of thing was given."""
    if isinstance(thing, str):
        return thing
    return thing.name if isinstance(thing, Data) else f"{type(thing).__qualname__} (given)"


def result_of(work: Work, records: dict[str, dict]) -> dict:
    """result.json, from what the stages found."""
    base, shrink, evaluate = records["base"], records["shrink"], records["evaluate"]
    weights = {key: evaluate[key] for key in ("survivors", "left_dense") if key in evaluate}
    timed = {key: records["prune"][key] for key in ("latency",) if key in records["prune"]}
    return {
        "method": work.method.name,
        "seed": work.run.seed,
        "budget": {work.budget.name: work.budget.value},
        "metric": Classification.metric,
        "input": {"shape": list(work.data.example.shape[1:]), "classes": work.data.classes},
        "before": evaluate["before"] | base["test"],
        "pruned": shrink["test"],
        "after": evaluate["after"] | evaluate["test"],
        "verified": shrink["verified"],
        "widths": evaluate["widths"],
        **weights,
        **timed,
        "charts": records["prune"].get("charts", []),  # folders from before there were any have none
        "history": {"base": base["history"], "recover": records["recover"]["history"]},
        "seconds": {name: record["seconds"] for name, record in records.items()},
        "versions": versions(),
        "machine": machine(work.run.processes.device, work.run.processes.num_processes),
        "settings": work.run.asked
        | {"config": asdict(work.config), "base": asdict(work.base_recipe)}
        | {"recovery": asdict(work.recovery_recipe)},
    }
