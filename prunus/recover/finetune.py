"""Fine-tuning of a pruned model with the unpruned one as its teacher; a model that it makes worse stays as it was."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from prunus.progress import Step, silent
from prunus.recover.norms import calibration_batches, renew_norms
from prunus.train import Recipe, Trainable, checkpoint, fit


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What a recovery did.

    Args:
        history: The history of the fine-tuning, a row for each epoch; see `train.fit`.
        kept: The model that was kept: that of the start, after its norms were renewed, or that of the end.
        on_val: The metric on val of both, by these names; empty if nothing was trained.
    """

    history: list[dict[str, Any]]
    kept: Literal["start", "end"] = "end"
    on_val: dict[str, float] = field(default_factory=dict)


def recover(
    small: nn.Module,
    task: Trainable,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    progress: Callable[..., AbstractContextManager[Step]] = silent,
    label: str = "recovering",
) -> Recovered:
    """Recover a pruned model in place: renew its norms, then fine-tune it, unless that makes it worse on val.

    Args:
        small: The pruned model.
        task: The loss, the metric and the data.
        recipe: The settings of the fine-tuning.
        teacher: The unpruned model, whose answers are learned too, by recipe.distill_weight; it moves to the device
            that trains, and is otherwise unchanged.
        folder: A folder for a checkpoint, from which the fine-tuning resumes.
        seed: The seed of the batches.
        progress: Shows the steps, such as `progress.bar`.
        label: The name of the stage, for `progress`.

    Returns:
        The history, and which of the models of the start and of the end was kept.

    Raises:
        TrainingError: The loss or a tensor is NaN or infinite.
        UserError: Nothing of the model is trained, or the checkpoint is of another training.
    """
    renew_norms(small, calibration_batches(task.data.train, seed))
    key, tensors = task.metric.key, checkpoint.named_tensors(small)
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()} if recipe.epochs else {}
    start = task.evaluate(small, task.data.val)[key] if recipe.epochs else None
    history = fit(
        small, task, recipe, seed=seed, teacher=teacher, folder=folder, progress=progress, label=label
    )
    if not history:
        return Recovered(history=history)
    assert start is not None
    on_val = {"start": start, "end": history[-1][key]}
    if not _agree(task.metric.is_worse(on_val["end"], on_val["start"])):
        return Recovered(history=history, on_val=on_val)
    with torch.no_grad():
        for name, tensor in checkpoint.named_tensors(small).items():
            tensor.copy_(before[name])
    return Recovered(history=history, kept="start", on_val=on_val)


def _agree(decision: bool) -> bool:
    """Return the decision of the first process in all, because each may have rounded its metric otherwise."""
    decisions = [decision]
    if PartialState().num_processes > 1:
        broadcast_object_list(decisions)
    return decisions[0]
