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
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch.backends.cpu import get_cpu_capability

from prunus.errors import FileError, PrunusError
from prunus.files import Amount, Count, Positive, Record, read_json, write_json
from prunus.latency.operator_timing import Like
from prunus.latency.operators import Operator, Sizes


class Sample(msgspec.Struct, frozen=True):
    """A random sub-network: its widths, in the order of the graph's axes, and its share of the whole model's time."""

    widths: list[Count]
    share: Amount


class Network(msgspec.Struct, frozen=True):
    """The times of a model and of sub-networks of it.

    Args:
        original_ms: The whole model's milliseconds.
        samples: Sub-networks.
        level: The grid of its operators' sizes; see table.GRIDS.
    """

    original_ms: Positive
    samples: list[Sample]
    level: Literal["fine", "middle", "coarse"]


class Times(Record, frozen=True, kw_only=True):
    """A file of times.

    Args:
        circumstances: Everything that changes times.
        operators: Milliseconds by the key of an operator and by its sizes; None: it does not run alone.
        networks: Times by the fingerprint of a model's operators.
    """

    circumstances: dict[str, Any]
    operators: dict[str, dict[str, Amount | None]]
    networks: dict[str, Network]


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
            found = read_json(self.path, Times)
            if found.circumstances != self.given:
                raise FileError(f"{self.path} holds times of other circumstances.")
        except FileError as error:
            self.damaged = True
            warnings.warn(f"the times in a file are measured again: {error}", stacklevel=2)
            return
        for key, times in found.operators.items():
            self.operators[key] = times | self.operators.get(key, {})
        self.networks = msgspec.to_builtins(found.networks) | self.networks

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
