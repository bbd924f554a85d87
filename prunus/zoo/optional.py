"""Libraries that may be missing: imported where they are used, with an error that says how to install them."""

import importlib

import torch

from prunus.errors import UserError


def library(name: str, extra: str = "models"):
    """Import an optional library.

    Args:
        name: The module to import.
        extra: The extra of Prunus that installs it.

    Returns:
        The module.

    Raises:
        UserError: It cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        raise cannot_import(name.partition(".")[0], error, extra) from error


def cannot_import(package: str, error: Exception, extra: str) -> UserError:
    """Make the error for a library that cannot be imported, or only in part."""
    return UserError(
        f"{package} cannot be imported ({error}). Install a build that fits torch {torch.__version__}: "
        f"pip install 'prunus[{extra}]'."
    )
