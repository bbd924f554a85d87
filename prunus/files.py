"""Files that are either complete or absent: written to a temporary file beside their path, flushed, then renamed."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from prunus.errors import FileError, PrunusError


def expand_home(path: str | Path) -> Path:
    """Make a path in which a leading ~ is the user's home.

    Args:
        path: A path.

    Returns:
        The path; unchanged if it begins with no ~, or with that of a user that the system does not know.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file completely or not at all.

    Args:
        path: The file; its folder is created if absent.
        write: Writes the contents to the temporary path that it is given.

    Raises:
        PrunusError: The system refused, for example because the disk is full; nothing is left half-written.
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
            "a file that was there before is unchanged."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically.

    Args:
        path: The file.
        value: Plain JSON; NaN and infinity are refused with ValueError.

    Raises:
        PrunusError: As for `write_atomic`.
    """
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text))


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Args:
        path: The file.

    Returns:
        The object as a dict.

    Raises:
        FileError: The file is missing, is not JSON, or holds something other than an object.
    """
    try:
        value = json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist.") from error
    except (OSError, ValueError) as error:
        raise FileError(f"{path} is not readable as JSON ({error}); write it again.") from error
    if not isinstance(value, dict):
        raise FileError(f"{path} should hold a JSON object, but holds a {type(value).__name__}.")
    return value


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict | None = None) -> None:
    """Write tensors as safetensors, atomically.

    Args:
        path: The file.
        tensors: Tensors by name; those that share memory must be given once.
        metadata: Text by name, for the file's header.

    Raises:
        PrunusError: As for `write_atomic`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file onto the CPU.

    Args:
        path: The file.

    Returns:
        Tensors by name.

    Raises:
        FileError: The file is missing, truncated or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist.") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise FileError(
            f"{path} is not a whole safetensors file ({error}); write or copy it again."
        ) from error
