"""Measured times on disk: one JSON file for each set of circumstances, in the user's cache folder.

Circumstances are everything that changes times: the program, the processor, the number of threads, versions, the
tensors' type and memory format. Operators are stored by their key, so that models share them; whole networks by the
model that they were cut from. To measure again, delete the folder.
"""

import hashlib
import json
import os
import platform
import warnings
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path

import torch
from torch.backends.cpu import get_cpu_capability

from prunus.errors import FileError, PrunusError
from prunus.files import read_json, write_json
from prunus.latency.operator_timing import Like
from prunus.latency.operators import Operator, Sizes
from prunus.latency.table import GRIDS


def cache_folder() -> Path:
    """The folder for times: $XDG_CACHE_HOME/prunus, or ~/.cache/prunus."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunus"


def circumstances(runtime: str, like: Like) -> dict:
    """Everything that changes times, as plain JSON."""
    return {
        "runtime": runtime,
        "device": device_name(torch.device("cpu") if runtime == "onnxruntime" else like.device),
        "threads": torch.get_num_threads(),
        "versions": {
            name: library_version(name) for name in ("torch", "onnxruntime") if name in ("torch", runtime)
        },
        "dtype": str(like.dtype),
        "channels_last": like.channels_last,
    }


def device_name(device: torch.device) -> str:
    """Name a device.

    Args:
        device: An accelerator, or the processor.

    Returns:
        The accelerator's name, or the processor's with its cores and the instructions that torch uses.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {get_cpu_capability()}"


def library_version(name: str) -> str:
    """Look up the version of a library.

    Args:
        name: The library.

    Returns:
        The version, or "not installed".
    """
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


class Timings:
    """The times known in given circumstances. A file that cannot be read is ignored with a warning."""

    def __init__(self, folder: Path, given: dict):
        self.given = given
        code = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]
        self.path = Path(folder) / f"times-{given['runtime']}-{code}.json"
        self.operators: dict[str, dict[str, float | None]] = {}
        self.networks: dict[str, dict] = {}
        self.damaged = False
        self.read()

    def read(self) -> None:
        """Read the times on disk; times in memory take precedence."""
        if self.damaged or not self.path.exists():
            return
        try:
            found = read_json(self.path)
            problem = find_fault(found, self.given)
        except FileError as error:
            found, problem = {}, str(error)
        if problem:
            self.damaged = True
            warnings.warn(f"{self.path} is measured again: {problem}", stacklevel=2)
            return
        for key, times in found["operators"].items():
            self.operators[key] = times | self.operators.get(key, {})
        self.networks = found["networks"] | self.networks

    def write(self) -> None:
        """Write all times, merged with those that other processes wrote meanwhile. Failing is only a warning."""
        self.read()
        known = {"circumstances": self.given, "operators": self.operators, "networks": self.networks}
        try:
            write_json(self.path, known)
        except PrunusError as error:
            warnings.warn(f"these times will be measured again next time: {error}", stacklevel=2)

    def has(self, operator: Operator, sizes: Sizes) -> bool:
        """Whether an operator was measured at these sizes, or found not to run alone."""
        return point_key(sizes) in self.operators.get(operator.key, {})

    def get(self, operator: Operator, sizes: Sizes) -> float | None:
        """Milliseconds of an operator that was measured; None if it does not run alone."""
        return self.operators[operator.key][point_key(sizes)]

    def put(self, operator: Operator, sizes: Sizes, ms: float | None) -> None:
        """Store the milliseconds of an operator; None if it does not run alone."""
        self.operators.setdefault(operator.key, {})[point_key(sizes)] = ms


def point_key(sizes: Sizes) -> str:
    """The key of sizes in the file."""
    return ",".join(map(str, sizes))


def find_fault(found: dict, given: dict) -> str:
    """Say what is wrong with the contents of a file; empty if nothing is."""

    def is_time(value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return isfinite(value) and value >= 0

    if found.get("circumstances") != given:
        return "it holds times of other circumstances"
    operators, networks = found.get("operators"), found.get("networks")
    if not isinstance(operators, dict) or not isinstance(networks, dict):
        return "it does not hold operators and networks"
    for key, times in operators.items():
        if not isinstance(times, dict) or not all(
            value is None or is_time(value) for value in times.values()
        ):
            return f"the times of {key} are not numbers"
    for key, entry in networks.items():
        ok = (
            isinstance(entry, dict)
            and is_time(entry.get("original_ms"))
            and isinstance(entry.get("samples"), list)
        )
        if (
            not ok
            or entry.get("level") not in GRIDS
            or not all(
                isinstance(each, dict) and isinstance(each.get("widths"), list) and is_time(each.get("share"))
                for each in entry["samples"]
            )
        ):
            return f"the networks of {key} are not widths and times"
    return ""
