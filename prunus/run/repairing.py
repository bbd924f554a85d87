"""Repairing the pruned model of a run: on which inputs, and whether it is better for it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal

from torch import nn

from prunus.errors import PruningError, UserError
from prunus.graph import Graph, Keep
from prunus.inputs import count_examples, tensors_in
from prunus.progress import Step
from prunus.recover import RENEW_BATCH_SIZE, RENEW_BATCHES, calibration_batches, renew_norms
from prunus.refit import Fitted, cut_and_fit
from prunus.run.watching import WatchedSplit
from prunus.selection import cost
from prunus.tasks import Task

EXAMPLES = 1024  # to which a model is fitted
MOST_MB = (
    4096.0  # of what one pass of both models over all of them holds, by the closed form of `cost.memory_mb`
)

Progress = Callable[..., AbstractContextManager[Step]]


def repair_cut(
    cut: nn.Module,
    task: Task,
    keep: Keep,
    *,
    how: Literal["order", "once"],
    must: bool,
    seed: int,
    progress: Progress,
) -> tuple[nn.Module, dict[str, Any]]:
    """Repair a pruned model, unless that makes it worse on val. Norms are renewed in both before they are compared.

    Args:
        cut: The pruned model; its norms are renewed in place.
        task: The task of the model it was cut from.
        keep: The units that stayed.
        how: The way of repairing; see `prunus.repair`.
        must: Whether a model that cannot be repaired is an error; otherwise `cut` is returned.
        seed: The seed of the inputs' order and augmentation.
        progress: Shows the steps, such as `progress.bar`.

    Returns:
        The better model, and what was done, plain JSON: the fields of `report.Repaired` without `test`.

    Raises:
        PruningError: The model cannot be repaired, and it must be.
        UserError: The same, for inputs with which it cannot be called.
    """
    inputs = take_inputs(task, keep, seed)
    try:
        repaired, fitted = cut_and_fit(
            task.model, task.graph, keep, inputs, how=how, verify="off", progress=progress
        )
    except (PruningError, UserError) as error:
        if must:
            raise
        return cut, {"how": how, "kept": "cut", "refused": str(error)}
    models = {"cut": cut, "repaired": repaired}
    for model in models.values():
        renew(model, task, seed, progress)
    on_val = {name: judge(model, task, progress) for name, model in models.items()}
    kept = "cut" if task.metric.is_worse(on_val["repaired"], on_val["cut"]) else "repaired"
    return models[kept], {"how": how, "kept": kept, "on_val": on_val, **describe(fitted)}


def take_inputs(task: Task, keep: Keep, seed: int) -> list[Any]:
    """Take the inputs to which a pruned model is fitted: training examples, augmented as those that renew norms are.

    Args:
        task: The task of the model it was cut from.
        keep: The units that stayed.
        seed: The seed of the order and the augmentation.

    Returns:
        Batches without targets: at most 1,024 examples in all, and no more than `MOST_MB` allows, where an input takes
        as many times the memory of the traced example as it has values; but always one batch, of the loader's own size
        if a user gave a loader.
    """
    train = task.data.train
    first, _ = next(iter(train.batches(1, seed=seed, augment=True)))
    number = count_allowed(task.graph, keep, size_of(first) / max(1, size_of(task.example)))
    inputs, taken = [], 0
    for x, _ in train.batches(min(RENEW_BATCH_SIZE, number), seed=seed, augment=True):
        taken += count_examples(x)
        if inputs and taken > number:
            break
        inputs.append(x)
    return inputs


def count_allowed(graph: Graph, keep: Keep, times: float) -> int:
    """Return how many examples may be held at once in both models, 1 to `EXAMPLES`.

    Args:
        graph: The graph of the original.
        keep: The units that stay in the other.
        times: How many times larger the inputs are than the traced example.

    Returns:
        The number of examples.
    """
    each_mb = times * (cost.memory_mb(graph) + cost.memory_mb(graph, keep))
    return max(1, min(EXAMPLES, int(MOST_MB / max(each_mb, MOST_MB / EXAMPLES))))


def size_of(inputs: Any) -> float:
    """Return the number of values of one example of a batch."""
    return sum(tensor.numel() for tensor in tensors_in(inputs)) / count_examples(inputs)


def renew(model: nn.Module, task: Task, seed: int, progress: Progress) -> None:
    """Renew the norms of a model in place, as recovery does it."""
    train = task.data.train
    with progress("renewing norms", min(RENEW_BATCHES, train.steps(RENEW_BATCH_SIZE))) as step:
        renew_norms(model, map(partial(counted, step), calibration_batches(train, seed)))


def counted(step: Step, batch: Any) -> Any:
    """Count a batch that is read, and return it."""
    step(1)
    return batch


def judge(model: nn.Module, task: Task, progress: Progress) -> float:
    """Return the task's metric of a model on val."""
    val = task.data.val
    with progress("comparing on val", len(val)) as step:
        return task.evaluate(model, WatchedSplit(val, step))[task.metric.key]


def describe(fitted: Fitted) -> dict[str, Any]:
    """Return what was fitted, as plain JSON."""
    return {
        "examples": fitted.examples,
        "layers": len(fitted.layers),
        "unexplained": list(fitted.unexplained()),
        "left": fitted.left,
    }
