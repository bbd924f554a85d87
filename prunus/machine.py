"""The versions and the machine that produced a figure."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

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


def cores() -> int:
    """Return the number of processor cores that this process may use, divided among torchrun's on this machine."""
    try:
        found = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        found = os.cpu_count() or 1
    return max(1, found // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


# Parts of an environment with which sums are rounded otherwise; the others may change what is computed.
ROUNDING = ("threads", "processes", "instructions", "python")


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Describe what a run's numbers depend on besides its settings: the same environment gives the same bits.

    Args:
        device: The device that computes.
        processes: The number of processes that compute together.

    Returns:
        Threads, processes, device, the processor's vector instructions, and versions, as plain JSON.
    """
    known = versions()
    return {
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **{name: known[name] for name in ("python", "torch", "prunus")},
    }


def explain_change(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Say that a run goes on in another environment, what changed, and what that means for its numbers.

    Args:
        before: The environment until now.
        now: The environment from now on.

    Returns:
        Two sentences; the first lacks its subject, the run.
    """
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    listed = "; ".join(f"{name} was {before.get(name)}, is now {now.get(name)}" for name in changed)
    meaning = "may differ from those of an undisturbed run by as much as with another seed"
    if all(name in ROUNDING for name in changed):
        meaning = "are rounded otherwise: they may differ in the last digits, and training lets that grow"
    return f"goes on in another environment: {listed}. Its numbers {meaning}."


@contextmanager
def use_threads(number: int | None) -> Iterator[None]:
    """Let torch compute with a number of threads, and with as many as before at the end.

    This sets the threads of one operator (OpenMP, MKL, oneDNN), which decide how sums are split and so how they are
    rounded; onnxruntime is given the same number. Threads that run several operators at once change no number.

    Args:
        number: The number of threads; None: as many as are set.

    Yields:
        Nothing.
    """
    if number is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
