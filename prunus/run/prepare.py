"""Loading what is only named, and refusing before anything is trained what would be refused later."""

import copy
from dataclasses import replace

from accelerate.utils import set_seed
from torch import Tensor, nn

from prunus import latency, scores
from prunus.data import Data, load_data
from prunus.errors import UserError
from prunus.graph import trace
from prunus.run.folder import Run
from prunus.run.settings import Settings, configured, given
from prunus.run.stages import Work
from prunus.selection import Budget, Metered, Sparsity
from prunus.tasks import Classification
from prunus.zoo import load_model, load_weights


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
