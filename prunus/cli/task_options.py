"""The options of a built-in task, written as if they were the command's own: `--task sr --scale 4`."""

from prunus.methods import option_types
from prunus.tasks import find_kind


def gather_task_options(arguments: list[str]) -> list[str]:
    """Rewrite the options of the task that is named as `--task-set NAME=VALUE`, which the command knows.

    Args:
        arguments: The arguments of a command that has --task.

    Returns:
        The arguments; the same ones if they name no built-in task.

    Raises:
        UserError: There is no task of that name.
    """
    name = _value_of("task", arguments)
    if name is None or ":" in name:
        return arguments
    known = {option for option, _ in option_types(find_kind(name).options_class)}
    gathered: list[str] = []
    left = iter(arguments)
    for argument in left:
        flag, equals, value = argument.partition("=")
        option = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and option in known:
            gathered += ["--task-set", f"{option}={value if equals else next(left, '')}"]
        else:
            gathered.append(argument)
    return gathered


def _value_of(name: str, arguments: list[str]) -> str | None:
    """The value of an option, written as `--name value` or `--name=value`."""
    for at, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == f"--{name}":
            return value if equals else next(iter(arguments[at + 1 :]), None)
    return None
