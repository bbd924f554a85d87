"""The method that `auto` stands for: the one that the board recommends for what is asked, and why.

docs/compare.md, "What auto takes", holds the measurements behind each line.
"""

import copy
from dataclasses import dataclass, replace
from typing import Literal

from prunus.run.settings import Settings
from prunus.selection import Budget, Sparsity
from prunus.tasks import Task, own_task

AUTO = "auto"
Case = Literal["units", "units without a loss", "weights"]


@dataclass(frozen=True)
class Advice:
    """A recommended method.

    Args:
        method: Its name.
        options: Its options, each "name=value".
        why: The reason, as a clause that follows the method's name.
    """

    method: str
    options: tuple[str, ...]
    why: str


BOARD: dict[Case, Advice] = {
    "units": Advice(
        "taylor",
        (),
        "after recovery no search for widths is better, and it takes seconds instead of a training",
    ),
    "units without a loss": Advice(
        "activation", (), "the model answers with its loss in training mode alone, which taylor cannot use"
    ),
    "weights": Advice("lookahead", (), "it is the method that sets single weights to zero"),
}


def resolve_auto(
    settings: Settings, limit: Budget | Sparsity | None, task: Task | None = None
) -> tuple[Settings, str | None]:
    """Replace the method `auto` by the one that the board recommends.

    Args:
        settings: The settings.
        limit: The limit; None: half the multiply-adds.
        task: A task of the user's own; None: the one that the settings name.

    Returns:
        The settings with the method's name and its recommended options before those of the settings, and a sentence
        that says why; the same settings and None if the method is not `auto`.

    Raises:
        UserError: The settings name a task of the user's own that cannot be made.
    """
    if settings.method != AUTO:
        return settings, None
    if task is None and ":" in settings.task:
        task = own_task(settings.task, settings.seed)
    case: Case = "weights" if isinstance(limit, Sparsity) else "units"
    if case == "units" and task is not None and not has_loss(task):
        case = "units without a loss"
    found = BOARD[case]
    why = f"auto is {found.method} here, because {found.why} (docs/compare.md)."
    return replace(settings, method=found.method, options=(*found.options, *settings.options)), why


def has_loss(task: Task) -> bool:
    """Return whether a task has a loss in evaluation mode, tried on a copy of it, as a run does at its start."""
    tried = task.on(copy.deepcopy(task.model))
    tried.check(tried.model)
    return tried.evaluates_loss
