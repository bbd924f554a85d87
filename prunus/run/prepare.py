"""Loading what is named by a SPEC, and checking everything before anything is trained."""

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from prunus import latency
from prunus.data import Data
from prunus.errors import UserError
from prunus.methods import Options, configure
from prunus.run.folder import RunFolder
from prunus.run.recipes import check_warmup
from prunus.run.settings import Settings, resolve_method, resolve_repair
from prunus.run.stages import Pipeline
from prunus.selection import Budget, Metered, Selection, Sparsity
from prunus.tasks import Given, Task, find_kind
from prunus.train import Recipe
from prunus.zoo import load_weights


def make_task(
    model: nn.Module | str, example: Any, data: Data | str, settings: Settings, split_by: str
) -> Task:
    """Return the built-in task that the settings name; model and data may be SPECs. split_by: see `load_data`."""
    kind = find_kind(settings.task)
    options = configure(kind.options_class, settings.task_options, f"option of task {kind.name}")
    given = Given(
        model=model,
        data=data,
        example=example,
        seed=settings.seed,
        images=settings.images,
        weights=settings.weights,
        workers=settings.workers,
        skip_broken=settings.skip_broken,
        split_by=split_by,
    )
    return kind.make(given, options)


def make_pipeline(
    run: RunFolder, task: Task, budget: Budget | Sparsity, settings: Settings, *, is_trained: bool
) -> Pipeline:
    """Check that model, data, method and limit fit together, and decide how the run trains.

    is_trained: whether the model's weights need no training.

    The run works on a copy of the task and of its model, so that nothing it does can change what a user gave.
    """
    task = task.on(copy.deepcopy(task.model))
    if settings.weights:
        load_weights(task.model, settings.weights)
    (method, config), asked = resolve_method(settings), settings.asked
    task.recipe_fields = {**task.recipe_fields, **asked.everywhere}
    task.search_fields = asked.of_search(method, config)
    task.check(task.model)
    config.check_task(task)
    budget = with_meter(run, task, budget, settings)
    if isinstance(config, Selection) and config.prefer == "measured":
        found = {} if run.is_finished("prune") else measured_widths(run, task, budget)
        config = replace(config, widths=found)
    if settings.steps > 1 and task.graph.behind:
        raise UserError(
            f"steps={settings.steps}: {min(task.graph.behind)} stands behind a parametrisation, and only weights that "
            "stand in the model as they are can be pruned in steps. Remove the parametrisation "
            "(torch.nn.utils.parametrize.remove_parametrizations), or leave steps out."
        )
    # A budget of milliseconds that was met might not be met if it were measured again.
    if not (isinstance(budget, Metered) and run.is_finished("prune")):
        config.check(task.graph, budget)
    has_weights = is_trained or settings.weights or task.is_pretrained
    base = task.recipe("tune" if has_weights else "scratch")
    base = base.adapt(**({"epochs": 0.0} if is_trained else {}) | asked.of("base"))
    of_recovery = asked.of("recover")
    if settings.total_epochs is not None:
        config, epochs = config.share_training(task, settings.total_epochs)
        of_recovery["epochs"] = epochs + (base.epochs if config.recovery_purpose == "scratch" else 0)
    recovery = advised_recovery(task, config).adapt(**of_recovery)
    for part, recipe in (("base", base), ("recover", recovery)):
        task.check_recipe(check_warmup(recipe, part))
    task.check_recipe(task.search_recipe())
    return Pipeline(
        run=run,
        task=task,
        budget=budget,
        method=method,
        config=config,
        base_recipe=base,
        recovery_recipe=recovery,
        minutes=settings.minutes,
        repairs=resolve_repair(settings),
        must_repair=settings.repair is not None,
        steps=settings.steps,
    )


def measured_widths(run: RunFolder, task: Task, budget: Budget | Sparsity) -> dict[str, tuple[int, ...]]:
    """Find the widths that are fast in the model on the device of the run; one process measures for all."""
    if isinstance(budget, Metered):
        price = budget.meter.price
    else:
        model = copy.deepcopy(task.model).to(run.device)
        price = latency.Meter(model, task.graph, progress=run.progress, agree=run.compute_once).price
    return {axis: tuple(widths) for axis, widths in latency.fast_widths(task.graph, price).items()}


def advised_recovery(task: Task, config: Options) -> Recipe:
    """Return the recipe that the task advises after pruning, or from scratch, with the base as teacher in both."""
    taught = task.recipe("recover")
    if config.recovery_purpose == "recover":
        return taught
    teaching = {"distill_weight": taught.distill_weight, "distill_temperature": taught.distill_temperature}
    return replace(task.recipe("scratch"), **teaching)


def with_meter(
    run: RunFolder, task: Task, budget: Budget | Sparsity, settings: Settings
) -> Budget | Sparsity:
    """Return a budget of milliseconds with the meter that measures it, and any other budget as it is.

    Methods pass the budget to `select` like any other, and need not know that it is measured. One process measures
    for all.
    """
    if isinstance(budget, Sparsity) or "latency_ms" not in budget.limits:
        if settings.runtime is not None:
            raise UserError(
                f"runtime={settings.runtime} needs a budget of latency_ms, but the budget is {budget}; leave out "
                "the runtime."
            )
        return budget
    model = copy.deepcopy(task.model).to(run.device)
    runtime = settings.runtime or "torch"
    meter = latency.Meter(model, task.graph, runtime=runtime, progress=run.progress, agree=run.compute_once)
    return Metered(**budget.limits, meter=meter)
