"""Training a pruned model on, taught by the original."""

from pathlib import Path

from torch import nn

from prunus.progress import silent
from prunus.recover.norms import renew_norms, renewing_batches
from prunus.train import Recipe, Trainable, fit


def recover(
    small: nn.Module,
    task: Trainable,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    progress=silent,
) -> list[dict]:
    """Recover `small` in place; returns the history of its fine-tuning (see `fit`), which a checkpoint resumes.

    teacher: the unpruned model, whose answers count by recipe.distill_weight.
    """
    renew_norms(small, renewing_batches(task.data.train, seed))
    where = {"folder": folder, "progress": progress, "label": "recovering"}
    return fit(small, task, recipe, seed=seed, teacher=teacher, **where)
