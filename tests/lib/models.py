"""Models of torchvision, where it is there, and packages that import it."""

import importlib
import sys
from pathlib import Path

import pytest

SHIM = Path(__file__).parents[3] / "shared" / "tools"


def torchvision_models():
    return imported_beside_torchvision("torchvision").models


def imported_beside_torchvision(name: str):
    """A package that is torchvision, or imports it where it is there, such as torchmetrics."""
    if SHIM.exists():
        sys.path.insert(0, str(SHIM))
        try:
            import torchvision_cpu  # noqa: F401  (lets torchvision import beside a CPU build of torch)
        except ImportError:
            pass
    try:
        package = pytest.importorskip(name)
        if name == "transformers":
            load_models_without_torchvision(package)
    except RuntimeError as error:  # torchvision built for another torch
        pytest.skip(f"{name} does not import: {error}")
    return package


def load_models_without_torchvision(transformers):
    """Let transformers do without a torchvision that is built for another torch; only its models of text need none."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for module in (transformers.utils, transformers.utils.import_utils):
            module.is_torchvision_available = lambda: False
