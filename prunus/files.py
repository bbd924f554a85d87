"""Files that are complete or absent when written, and of the expected form when read.

A file is written to a temporary one beside its path, flushed, then renamed. It is read through a schema, a type that
says what it has to hold: a frozen `Record` beside its reader, or any type that msgspec knows. Whatever is damaged, too
large or of another version is a FileError that names the place in the file.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
import safetensors.torch
import torch
from msgspec import Meta

from prunus.errors import FileError, PrunusError

LARGEST = 2**26  # bytes of a JSON file that is read
DEEPEST = 64  # lists and objects inside each other
SHOWN = 60  # characters of a value in an error
RESTORE = "Restore the file from a copy, or write it again."

T = TypeVar("T")
Count = Annotated[int, Meta(ge=0, le=2**62)]
LIMIT = 1e300  # of numbers, so that they stay finite when they are shown as per cent
Real = Annotated[float, Meta(ge=-LIMIT, le=LIMIT)]
Amount = Annotated[float, Meta(ge=0, le=LIMIT)]
Positive = Annotated[float, Meta(ge=1 / LIMIT, le=LIMIT)]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The base of the schemas of files. Entries that a schema does not name are ignored.

    Args:
        format: The version of the file's form; files of version 0.1.0 that state none have the first.
    """

    oldest: ClassVar[int] = 1  # the forms that this schema describes, from this one
    newest: ClassVar[int] = 1  # to this one
    remedy: ClassVar[str] = RESTORE  # what a user does about a damaged file
    format: int = 1


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


def read_json(path: Path, kind: type[T] = dict[str, Any]) -> T:
    """Read a JSON file through a schema.

    Args:
        path: The file.
        kind: What the file has to hold.

    Returns:
        The contents as a `kind`.

    Raises:
        FileError: The file is missing, too large, no JSON, of another version, or does not hold a `kind`.
    """
    return decode(read_bytes(path), kind, str(path))


def read_bytes(path: Path) -> bytes:
    """Read a file of at most LARGEST bytes.

    Args:
        path: The file.

    Returns:
        Its bytes.

    Raises:
        FileError: The file is missing, too large or not readable.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist.") from error
    except (OSError, ValueError) as error:
        raise FileError(f"{path} could not be read: {error}.") from error
    if len(data) > LARGEST:
        raise FileError(f"{path} should hold at most {LARGEST} bytes, but holds more. {RESTORE}")
    return data


def decode(data: bytes, kind: type[T], where: str, *, nonfinite: bool = False) -> T:
    """Decode JSON through a schema.

    Args:
        data: The JSON, in UTF-8.
        kind: What it has to hold.
        where: What it was read from, for errors.
        nonfinite: Whether NaN and infinity may stand for numbers; JSON has none, but Python writes them.

    Returns:
        The contents as a `kind`.

    Raises:
        FileError: It is no JSON, of another version, or not a `kind`.
    """
    try:
        value = json.loads(data) if nonfinite else msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where} is not readable as JSON ({error}). {remedy_of(kind)}") from error
    return check_json(value, kind, where)


def check_json(value: Any, kind: type[T], where: str) -> T:
    """Convert plain JSON by a schema.

    Args:
        value: The JSON as dicts, lists, numbers, texts; an error may leave it changed.
        kind: What it has to hold.
        where: What it was read from, for errors.

    Returns:
        The contents as a `kind`.

    Raises:
        FileError: It is of another version, nested too deeply, or not a `kind`; the message names the place.
    """
    if is_deep(value):
        raise FileError(f"{where} holds more than {DEEPEST} lists inside each other. {remedy_of(kind)}")
    if isinstance(kind, type) and issubclass(kind, Record) and isinstance(value, dict):
        version = value.get("format", 1)
        if type(version) is int and not kind.oldest <= version <= kind.newest:
            read = (
                f"format {kind.newest}"
                if kind.oldest == kind.newest
                else f"formats {kind.oldest} to {kind.newest}"
            )
            raise FileError(
                f"{where} is of format {shorten(version)}, but this version of Prunus reads {read}. "
                "Read it with the version that wrote it."
            )
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        place, found = find_place(value, kind, str(error))
        what = str(error).partition(" - at ")[0].replace("`", "")
        seen = "" if isinstance(found, dict | list) else f", there is {shorten(found)}"
        raise FileError(f"{where} is damaged at {place}: {what}{seen}. {remedy_of(kind)}") from error


def is_deep(value: Any) -> bool:
    """Return whether more than DEEPEST lists and objects stand inside each other."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for each in chain.from_iterable(inner) if isinstance(each, dict | list)]
    return bool(level)


def find_place(value: Any, kind: Any, message: str) -> tuple[str, Any]:
    """Find the place of an error of msgspec, which writes [...] for the names of entries.

    Args:
        value: What was converted; entries before the faulty one are removed.
        kind: The schema.
        message: The error.

    Returns:
        The place, such as `$.axes['conv1'].size`, and what stands there.
    """
    place, node = "$", value
    for step in re.findall(r"\.\w+|\[\d+\]|\[\.\.\.\]", message.partition(" - at `$")[2]):
        if step == "[...]":
            name = keep_faulty(value, kind, node, message)
            if name is None:
                return f"{place}[...]", node
            place, node = f"{place}[{shorten(name)}]", node[name]
        else:
            place, node = place + step, node[step[1:] if step[0] == "." else int(step[1:-1])]
    return place, node


def keep_faulty(value: Any, kind: Any, entries: dict[str, Any], message: str) -> str | None:
    """Remove all entries of a part of `value` but the first that causes an error; return its name, None if none does
    alone."""
    for name, inner in dict(entries).items():
        entries.clear()
        entries[name] = inner
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            if str(error) == message:
                return name
    return None


def remedy_of(kind: Any) -> str:
    """Return what a user does about a damaged file."""
    return kind.remedy if isinstance(kind, type) and issubclass(kind, Record) else RESTORE


def shorten(value: Any) -> str:
    """Return a value as text of limited length, in which control characters are escaped."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 4 :]}"


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.

    Raises:
        FileError: The file is missing or not readable.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"{path} could not be read: {error}.") from error


def hash_json(value: object) -> str:
    """Compute the SHA-256 of plain JSON, whatever the order of its entries.

    Args:
        value: Plain JSON.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
    with explain_tensors(path):
        return safetensors.torch.load_file(path)


def same_kind(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compare the types of two tensors.

    Args:
        one: A tensor, for example from a file.
        other: Another one, for example of a model.

    Returns:
        Whether both are of the same type, or both floating-point.
    """
    return one.dtype == other.dtype or (one.is_floating_point() and other.is_floating_point())


def read_header(path: Path, name: str, kind: type[T]) -> T:
    """Read the JSON that the header of a safetensors file holds under a name.

    Args:
        path: The file.
        name: The name.
        kind: What the JSON has to hold; numbers may be NaN or infinite.

    Returns:
        The JSON as a `kind`.

    Raises:
        FileError: The file is missing or damaged, or its header holds no `kind` under this name.
    """
    with explain_tensors(path), safetensors.safe_open(path, "pt") as opened:
        text = (opened.metadata() or {}).get(name)
    if text is None:
        raise FileError(f"the header of {path} should hold {name}, but does not. {remedy_of(kind)}")
    return decode(text.encode(), kind, f"{name} in the header of {path}", nonfinite=True)


@contextmanager
def explain_tensors(path: Path) -> Iterator[None]:
    """Raise FileError for whatever goes wrong while a safetensors file is read."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist.") from error
    except (OSError, RuntimeError, LookupError, ValueError, safetensors.SafetensorError) as error:
        raise FileError(
            f"{path} is not a whole safetensors file ({error}); write or copy it again."
        ) from error
