"""The versions and the machine that produced a figure."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import prunus


def versions() -> dict[str, str]:
    """Look up the versions of Python and of the libraries that can change a figure.

    Returns:
        Version by name; libraries that are not installed are left out.
    """
    found = {"python": platform.python_version(), "prunus": prunus.__version__}
    for name in ("torch", "accelerate", "datasets", "torchvision", "timm", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(device: torch.device, processes: int) -> dict[str, object]:
    """Describe the machine on which a figure was measured.

    Args:
        device: The device that computed.
        processes: The number of processes that computed together.

    Returns:
        System, device, processor, threads and processes, as plain JSON.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "system": platform.platform(),
        "device": device.type,
        "processor": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
