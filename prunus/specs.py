"""Objects of the user's own, named as "package.module:callable"."""

import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from prunus.errors import UserError, unknown


def user_object(spec: str, kind: str, known: Iterable[str]) -> Callable:
    """What "package.module:callable" names, looked for in the working folder too.

    kind, known: what is asked for and what might have stood before the colon, for the error's words.
    """
    module, colon, name = spec.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = importlib.import_module(module) if colon and module and name else None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"{spec} cannot be imported: {error}.") from error
        found = None
    finally:
        sys.path.remove(here)
    if found is None:
        raise unknown(kind, module, known)
    if not callable(getattr(found, name, None)):
        others = [key for key, value in vars(found).items() if callable(value)]
        raise unknown(f"callable in {module}", name, others)
    return getattr(found, name)
