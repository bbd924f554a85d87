"""A survey of a table of images before anything is trained: their content, and which cannot be read.

Every image is read, hashed and decoded where that is affordable: up to 2 GiB of encoded images, about three minutes
on two cores, and always where they are decoded into memory. Of more, the first and last 4 KiB of each are hashed and
its header is read; what is damaged between is found only when training reads it. Data sets that a user's own code
returns are not read for this, because reading an item may take long or be random: they are known by their positions.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from prunus.data.decode import Encoded, decode, header, read_bytes
from prunus.data.images import DECODERS, InMemory, Lazy, Tensors
from prunus.data.preprocessing import Preprocessing
from prunus.data.readers import Rows
from prunus.data.split import Source
from prunus.errors import UserError

AFFORDABLE_BYTES = 2 * 2**30  # encoded images, of all splits together
END_BYTES = 4096
BLOCK = 256  # images that are in memory at once
ALL, ENDS, NOTHING = "all bytes", f"size, first and last {END_BYTES} bytes", "not hashed"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the images of a data set are read.

    Args:
        how: Their preprocessing; None for tensors that a user has prepared.
        in_memory: Whether all are decoded once and kept.
        hashed: What the digests cover: ALL, ENDS or NOTHING.
    """

    how: Preprocessing | None
    in_memory: bool
    hashed: str


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A table of images, looked through.

    Args:
        source: The source that reads them.
        keys: A hash of each image's size and ends, uint64 (N,), which decides where it belongs.
        digests: A hash of each image's content, which shows whether it changed.
        broken: Why images cannot be read, by position.
    """

    source: Source
    keys: np.ndarray
    digests: list[str]
    broken: dict[int, UserError]


def survey(table: Rows, reading: Reading) -> Survey:
    """Look through a table of images, and make the source that reads them."""
    keys, digests = np.zeros(len(table.rows), np.uint64), [""] * len(table.rows)
    broken: dict[int, UserError] = {}
    pixels = np.zeros(0, np.uint8)
    if reading.in_memory and reading.how is not None:
        pixels = np.zeros((len(table.rows), *reading.how.size, reading.how.channels), np.uint8)
    if reading.hashed == NOTHING:  # what users' code returns is known by its position
        keys = np.array([hash_bytes(name.encode()) for name in table.names], np.uint64)
    for index, found in enumerate(look_at_all(table.rows, reading)):
        if isinstance(found, UserError):
            broken[index] = found
            continue
        content, image = found
        if content is not None:
            keys[index], digests[index] = content.key, content.digest
        if image is not None:
            pixels = pixels.astype(
                np.result_type(pixels, image), copy=False
            )  # float from the first deep image on
            pixels[index] = image
    return Survey(source=make_source(table, reading, pixels), keys=keys, digests=digests, broken=broken)


def make_source(table: Rows, reading: Reading, pixels: np.ndarray) -> Source:
    """Make the source that reads a table's images; pixels: those kept in memory."""
    if reading.how is None:
        return Tensors(table.rows)
    return InMemory(pixels, reading.how) if reading.in_memory else Lazy(table.rows, reading.how)


@dataclass(frozen=True)
class Content:
    """The hashes of an image: of its size and ends, and of all that is read."""

    key: int
    digest: str


Look = tuple[Content | None, np.ndarray | None] | UserError


def look_at_all(rows: Iterable[tuple[str, Encoded]], reading: Reading) -> Iterator[Look]:
    """Yield for each row its content, and its pixels if they are kept in memory; or the error of reading it."""
    if reading.hashed == NOTHING and not reading.in_memory:
        return

    def look(row: tuple[str, Encoded]) -> Look:
        try:
            return look_at(*row, reading)
        except UserError as error:
            return error

    if reading.in_memory:  # for images this small a second thread only costs time
        yield from map(look, rows)
        return
    with ThreadPoolExecutor(DECODERS) as pool:
        left = iter(rows)
        while block := list(islice(left, BLOCK)):
            yield from pool.map(look, block)


def look_at(name: str, data: Encoded, reading: Reading) -> tuple[Content | None, np.ndarray | None]:
    """Return an image's content, and its pixels if they are kept in memory. Raises UserError if it is damaged."""
    assert reading.how is not None  # tensors are not looked at
    if reading.hashed == ENDS:
        header(name, data)
        return content_of_ends(name, data), None
    data = read_bytes(name, data)
    content = content_of(data) if reading.hashed == ALL else None
    image = decode(name, data, reading.how.channels)
    return content, reading.how.resize(image, None) if reading.in_memory else None


def content_of(data: bytes | Image.Image) -> Content:
    """Hash all of an image."""
    if isinstance(data, Image.Image):
        data = f"{data.mode} {data.size} ".encode() + data.tobytes()
    key = hash_ends(len(data), data[:END_BYTES], data[-END_BYTES:])
    return Content(key, hashlib.blake2b(data, digest_size=8).hexdigest())


def content_of_ends(name: str, data: Encoded) -> Content:
    """Hash the size and the ends of an image; of a file no more is read."""
    if not isinstance(data, Path):
        found = content_of(read_bytes(name, data))
        return Content(found.key, f"{found.key:016x}")
    with data.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(END_BYTES)
        file.seek(max(size - END_BYTES, 0))
        key = hash_ends(size, head, file.read(END_BYTES))
    return Content(key, f"{key:016x}")


def hash_ends(size: int, head: bytes, tail: bytes) -> int:
    """Hash a size in bytes, and the first and last of these bytes."""
    return hash_bytes(size.to_bytes(8, "little") + head + tail)


def hash_bytes(data: bytes) -> int:
    """Hash bytes to a number of 64 bits."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
