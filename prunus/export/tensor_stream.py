"""Safetensors files, read and written one tensor at a time.

The format (https://huggingface.co/docs/safetensors): eight bytes with the length of the header, the header as JSON with
each tensor's type, shape and place, then the numbers. The library writes a file from tensors that are all in memory;
`write` asks for each tensor when its turn comes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch

from prunus.errors import FileError
from prunus.files import explain_tensors, write_atomic

ALIGNMENT = 8  # bytes, of the place where the numbers begin
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


class Entry(NamedTuple):
    """The type and the shape of a tensor in a file.

    Args:
        dtype: The name of the type in the format, such as BF16.
        shape: The length of each dimension.
    """

    dtype: str
    shape: tuple[int, ...]


class Source:
    """A safetensors file that is read one tensor at a time.

    The file is opened anew for each tensor: while it is open, all that was read of it counts as memory of the process.

    Args:
        path: The file.

    Raises:
        FileError: The file is missing, torn or damaged, or holds a type that torch cannot index.
    """

    def __init__(self, path: Path):
        self.path = path
        with explain_tensors(path), safetensors.safe_open(path, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            self.entries = {name: Entry(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
            self.metadata: dict[str, str] = dict(opened.metadata() or {})
        strange = [
            f"{name} is {entry.dtype}" for name, entry in self.entries.items() if entry.dtype not in DTYPES
        ]
        if strange:
            raise FileError(
                f"{path}: {strange[0]}, a type that cannot be cut; these can: {', '.join(DTYPES)}. Convert the "
                "checkpoint first."
            )

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor onto the CPU."""
        with explain_tensors(self.path), safetensors.safe_open(self.path, "pt") as opened:
            return opened.get_tensor(name).clone()  # the tensor itself may keep the file open


def write(
    path: Path,
    entries: Mapping[str, Entry],
    make: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str],
) -> int:
    """Write a file, complete or not at all; one tensor at a time is in memory.

    Args:
        path: The file.
        entries: name -> the type and shape of each tensor, in the order in which the file is to hold them.
        make: Returns the tensor of a name.
        metadata: Text by name, for the header.

    Returns:
        The bytes of all tensors.

    Raises:
        FileError: A tensor is not of the type or shape that was announced.
        PrunusError: The file cannot be written.
    """
    total = 0
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, (dtype, shape) in entries.items():
        size = torch.empty(shape, dtype=DTYPES[dtype], device="meta").nbytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [total, total + size]}
        total += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, (dtype, shape) in entries.items():
                tensor = make(name).contiguous()
                if tensor.dtype != DTYPES[dtype] or tensor.shape != shape:
                    raise FileError(
                        f"{name} should be {shape} {dtype} in {path}, but is {tuple(tensor.shape)} {tensor.dtype}."
                    )
                file.write(tensor.view(-1).view(torch.uint8).numpy().data)
                del tensor  # before the next one is made

    write_atomic(path, fill)
    return total
