"""The versions and the machine with which a figure was made."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import prunus


def versions() -> dict[str, str]:
    """Of Python and of the libraries that can change a figure."""
    found = {"python": platform.python_version(), "prunus": prunus.__version__}
    for name in ("torch", "accelerate", "datasets", "torchvision", "timm", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(device: torch.device, processes: int) -> dict[str, object]:
    """What the times were taken on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "system": platform.platform(),
        "device": device.type,
        "processor": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
