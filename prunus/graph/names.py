"""The dotted names of modules, and of the parameters, buffers and modules that they hold."""

from __future__ import annotations


def full_name(module: str, name: str) -> str:
    """Return the name of what a module holds, "a.b.weight" for "weight" in "a.b".

    Args:
        module: The name of the module; "" is the whole model.
        name: The name that the thing has in the module.

    Returns:
        The name that it has in the model.
    """
    return f"{module}.{name}" if module else name


def holder(name: str) -> str:
    """Return the name of the module that holds something, "a.b" for "a.b.weight".

    Args:
        name: The name of a module, parameter or buffer.

    Returns:
        The name of the module; "" is the whole model.
    """
    return name.rpartition(".")[0]


def lies_in(name: str, other: str) -> bool:
    """Return whether a name is another one or lies within it: "a.b" lies in "a.b" and in "a", "ab" does not.

    Args:
        name: The name of a module, parameter or buffer, or the path of an output.
        other: The other one; not "".

    Returns:
        Whether it lies there.
    """
    return f"{name}.".startswith(f"{other}.")
