"""Finding tasks by name.

The folder prunus/tasks is the registry: every file in it is a task of that name, which defines `Options`, the class of
its options, and `make(given, options)`. A user's own task is named "package.module:callable"; called without arguments,
it returns the task.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate.utils import set_seed

from prunus import tasks
from prunus.errors import UserError, unknown
from prunus.specs import user_object
from prunus.tasks._contract import Given, Options, Task

DEFAULT = "classification"


@dataclass(frozen=True)
class Kind:
    """A built-in task.

    Args:
        name: Its name.
        doc: Its docstring.
        options_class: The class of its options.
        make: make(given, options) returns the task.
    """

    name: str
    doc: str
    options_class: type[Options]
    make: Callable[[Given, Any], Task]


def kinds() -> list[str]:
    """List the names of the built-in tasks, sorted."""
    return sorted(
        module.name for module in pkgutil.iter_modules(tasks.__path__) if not module.name.startswith("_")
    )


def find_kind(name: str) -> Kind:
    """Find a built-in task.

    Args:
        name: The name of a file in prunus/tasks.

    Returns:
        The task's kind.

    Raises:
        UserError: There is no such task; the message names the nearest.
    """
    if name not in kinds():
        raise unknown("task", name, [*kinds(), "package.module:callable"])
    module = importlib.import_module(f"prunus.tasks.{name}")
    return Kind(name, module.__doc__ or "", module.Options, module.make)


def own_task(spec: str, seed: int) -> Task:
    """Make the task that a user's own callable returns, with random weights by the seed.

    Args:
        spec: "package.module:callable".
        seed: The seed.

    Returns:
        The task.

    Raises:
        UserError: There is no such callable, it needs arguments, or returns something else.
    """
    make = user_object(spec, "task", kinds())
    set_seed(seed)
    made = make()
    if not isinstance(made, Task):
        raise UserError(
            f"{spec} should return a task, prunus.Task(model, train=..., ...), but returned a {type(made).__name__}."
        )
    return made
