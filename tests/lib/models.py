"""Models of torchvision, where it is there."""

import sys
from pathlib import Path

import pytest

SHIM = Path(__file__).parents[3] / "shared" / "tools"


def torchvision_models():
    if SHIM.exists():
        sys.path.insert(0, str(SHIM))
        try:
            import torchvision_cpu  # noqa: F401  (lets torchvision import beside a CPU build of torch)
        except ImportError:
            pass
    try:
        return pytest.importorskip("torchvision").models
    except RuntimeError as error:  # torchvision built for another torch
        pytest.skip(f"torchvision does not import: {error}")
