"""Fine-tuning of a pruned model with the unpruned one as its teacher."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from prunus.progress import Step, silent
from prunus.recover.norms import calibration_batches, renew_norms
from prunus.train import Recipe, Trainable, fit


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
) -> list[dict[str, Any]]:
    """Recover a pruned model in place: renew its norms, then fine-tune it.

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
        The history of the fine-tuning, a row for each epoch; see `train.fit`.

    Raises:
        TrainingError: The loss or a tensor is NaN or infinite.
        UserError: Nothing of the model is trained, or the checkpoint is of another training.
    """
    renew_norms(small, calibration_batches(task.data.train, seed))
    return fit(small, task, recipe, seed=seed, teacher=teacher, folder=folder, progress=progress, label=label)
