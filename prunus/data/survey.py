"""A survey of a table of images before anything is trained: their content, and which cannot be read.

Every image is read, hashed and decoded where that is affordable: up to 2 GiB and 50,000 encoded images, about a minute
on two cores, and always where they are decoded into memory. Of more, a sample of each image is hashed (all of up to
64 KiB, otherwise its size and 16 blocks of 4 KiB spread evenly over it), and of up to 50,000 the header is read; damage
elsewhere is found only when training reads it. Data sets that a user's own code returns are not read for this, because
reading an item may take long or be random: their images are known by their positions.

The sample alone decides where an image belongs when data are split, so that this does not depend on what is affordable.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from prunus.data.decode import Encoded, decode, header, read_bytes
from prunus.data.images import InMemory, Lazy, Tensors, Transformed
from prunus.data.preprocessing import Preprocessing
from prunus.data.readers import Rows
from prunus.data.split import Source
from prunus.errors import UserError
from prunus.machine import cores

AFFORDABLE_BYTES = 2 * 2**30  # encoded images, of all splits together
AFFORDABLE_IMAGES = 50_000  # of all splits together
BLOCKS, BLOCK_BYTES = 16, 4096  # of the sample of an image
AT_ONCE = 256  # images that are read together
ALL, SAMPLE, NOTHING = "all bytes", f"size and {BLOCKS} blocks of {BLOCK_BYTES} bytes", "not hashed"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the images of a data set are read.

    Args:
        how: Their preprocessing; None for tensors that a user has prepared.
        in_memory: Whether all are decoded once and kept.
        hashed: What the digests cover: ALL, SAMPLE or NOTHING.
        opened: Whether each image is opened at least, so that damage of its header is found.
    """

    how: Preprocessing | None
    in_memory: bool
    hashed: str
    opened: bool = True


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A table of images, looked through.

    Args:
        source: The source that reads them.
        keys: A hash of a sample of each image, uint64 (N,), which decides where it belongs.
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
            if image.dtype.itemsize > pixels.dtype.itemsize:  # the first of more than 8 bits
                pixels = pixels.astype(image.dtype)
            pixels[index] = image
    return Survey(source=make_source(table, reading, pixels), keys=keys, digests=digests, broken=broken)


def make_source(table: Rows, reading: Reading, pixels: np.ndarray) -> Source:
    """Make the source that reads a table's images; pixels: those kept in memory."""
    if reading.how is None:
        return Tensors(table.rows)
    if reading.how.transform is not None:
        return Transformed(table.rows, reading.how)
    return InMemory(pixels, reading.how) if reading.in_memory else Lazy(table.rows, reading.how)


@dataclass(frozen=True)
class Content:
    """The hashes of an image: of a sample of it, and of all that is read."""

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
    left = iter(rows)
    blocks = iter(lambda: list(islice(left, AT_ONCE)), [])
    with ThreadPoolExecutor(cores()) as pool:
        while some := list(islice(blocks, cores())):
            for found in pool.map(lambda block: list(map(look, block)), some):
                yield from found


def look_at(name: str, data: Encoded, reading: Reading) -> tuple[Content | None, np.ndarray | None]:
    """Return an image's content, and its pixels if they are kept in memory. Raises UserError if it is damaged."""
    assert reading.how is not None  # tensors are not looked at
    if reading.hashed == SAMPLE:
        if reading.opened:
            header(name, data)
        key = sample_file(name, data) if isinstance(data, Path) else content_of(read_bytes(name, data)).key
        return Content(key, f"{key:016x}"), None
    data = read_bytes(name, data)
    content = content_of(data) if reading.hashed == ALL else None
    image = decode(name, data, reading.how.channels)
    return content, reading.how.resize(image, reading.how.box(image)) if reading.in_memory else None


def content_of(data: bytes | Image.Image) -> Content:
    """Hash all of an image."""
    if isinstance(data, Image.Image):
        data = f"{data.mode} {data.size} ".encode() + data.tobytes()
    key = hash_sample(len(data), lambda start, size: data[start : start + size])
    return Content(key, hashlib.blake2b(data, digest_size=8).hexdigest())


def sample_file(name: str, path: Path) -> int:
    """Hash a sample of a file, of which no more is read. Raises UserError if it cannot be read."""
    try:
        with path.open("rb") as file:

            def read(start: int, size: int) -> bytes:
                file.seek(start)
                return file.read(size)

            return hash_sample(os.fstat(file.fileno()).st_size, read)
    except OSError as error:
        raise UserError(f"image {name} cannot be read: {error}.") from error


def hash_sample(size: int, read: Callable[[int, int], bytes]) -> int:
    """Hash a sample of `size` bytes; read(start, size) returns a part of them."""
    if size <= BLOCKS * BLOCK_BYTES:
        blocks = [read(0, size)]
    else:
        blocks = [read(i * (size - BLOCK_BYTES) // (BLOCKS - 1), BLOCK_BYTES) for i in range(BLOCKS)]
    return hash_bytes(size.to_bytes(8, "little") + b"".join(blocks))


def hash_bytes(data: bytes) -> int:
    """Hash bytes to a number of 64 bits."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
