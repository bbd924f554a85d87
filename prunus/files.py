"""Files that are either whole or not there: written beside their place, flushed, then renamed."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from prunus.errors import FileError, PrunusError


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then rename it to `path`.

    Raises PrunusError (with the cause, a full disk for instance) and leaves nothing half-written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise PrunusError(
            f"could not write {path}: {error}. Free some space or choose another folder; "
            "what stood there before is unchanged."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text))


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises FileError naming the file and what is wrong with it."""
    try:
        value = json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist.") from error
    except (OSError, ValueError) as error:
        raise FileError(f"{path} is not readable as JSON ({error}); make it anew.") from error
    if not isinstance(value, dict):
        raise FileError(f"{path} should hold a JSON object, but holds a {type(value).__name__}.")
    return value


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict | None = None) -> None:
    """Write tensors as safetensors, atomically. Tensors that share memory must be given once."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file onto the CPU. Raises FileError if it is missing, cut short or damaged."""
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist.") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise FileError(f"{path} is not a whole safetensors file ({error}); make or copy it anew.") from error
