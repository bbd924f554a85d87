"""Loading what is only named, and refusing before anything is trained what would be refused later."""

import copy
from dataclasses import replace

from accelerate.utils import set_seed
from torch import Tensor, nn

from prunus import latency
from prunus.data import Data, load_data
from prunus.errors import UserError
from prunus.run.folder import Run
from prunus.run.settings import Settings, configured, given
from prunus.run.stages import Work
from prunus.selection import Budget, Metered, Sparsity
from prunus.tasks import Classification, Task
from prunus.zoo import load_model, load_weights


def classification(
    model: nn.Module | str, example: Tensor | None, data: Data | str, settings: Settings
) -> Classification:
    """Return the task of classifying `data` with `model`, of which either may be a SPEC."""
    if isinstance(data, str):
        data = load_data(data, seed=settings.seed, image_size=settings.image_size)
    if example is not None:
        data = replace(data, example=example)
    if isinstance(model, str):
        set_seed(settings.seed)
        model = load_model(model, classes=data.classes, in_shape=tuple(data.example.shape[1:]))
    return Classification(model, data)


def prepared(
    run: Run, task: Task, budget: Budget | Sparsity, settings: Settings, *, is_trained: bool
) -> Work:
    """See that model, data, method and limit fit together, and settle how the run trains.

    is_trained: whether the model comes with weights that need no training.
    """
    if settings.weights:
        load_weights(task.model, settings.weights)
    method, config = configured(settings)
    fields = given({"batch_size": settings.batch_size, "precision": settings.precision})
    task.recipe_fields = task.recipe_fields | fields
    task.check(task.model)
    budget = metered(run, task, budget, settings)
    # A budget of milliseconds that was met might not be if it were measured again.
    if not (isinstance(budget, Metered) and run.has("prune")):
        config.check(task.graph, budget)
    base_epochs = settings.base_epochs
    if base_epochs is None and is_trained:
        base_epochs = 0
    base = {"epochs": base_epochs, "lr": settings.base_lr}
    recovery = {"epochs": settings.epochs, "lr": settings.lr, "distill_weight": settings.distill_weight}
    purpose = "tune" if is_trained or settings.weights else "scratch"
    return Work(
        run=run,
        task=task,
        budget=budget,
        method=method,
        config=config,
        base_recipe=replace(task.recipe(purpose), **given(base)),
        recovery_recipe=replace(task.recipe("recover"), **given(recovery)),
    )


def metered(run: Run, task: Task, budget: Budget | Sparsity, settings: Settings) -> Budget | Sparsity:
    """A budget of milliseconds with a meter, which goes wherever the budget goes: methods hand it to `select` like any
    other, and need not know that something is measured. One process measures for all. Other budgets as they are."""
    if budget.name != "latency_ms":
        if settings.runtime is not None:
            raise UserError(
                f"runtime={settings.runtime} goes with a budget of latency_ms, not with {budget}."
            )
        return budget
    here = copy.deepcopy(task.model).to(run.processes.device)
    runtime = settings.runtime or "torch"
    meter = latency.Meter(here, task.graph, runtime=runtime, progress=run.progress, agree=run.agreed)
    return Metered(latency_ms=budget.value, meter=meter)
