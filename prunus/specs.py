"""Objects of the user's own, named as "package.module:callable"."""

import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from prunus.errors import UserError, unknown


def user_object(spec: str, kind: str, known: Iterable[str]) -> Callable:
    """Import the callable that a SPEC names; the working folder is searched too.

    Args:
        spec: "package.module:callable".
        kind: The kind of thing that was asked for, for the error message.
        known: The words that may stand before the colon, for the error message.

    Returns:
        The callable.

    Raises:
        UserError: The module or the name does not exist, or importing the module failed.
    """
    module, colon, name = spec.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = importlib.import_module(module) if colon and module and name else None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"{spec} cannot be imported: {error}. Install or correct it.") from error
        found = None
    finally:
        sys.path.remove(here)
    if found is None:
        raise unknown(kind, module, known)
    if not callable(getattr(found, name, None)):
        others = [key for key, value in vars(found).items() if callable(value)]
        raise unknown(f"callable in {module}", name, others)
    return getattr(found, name)
