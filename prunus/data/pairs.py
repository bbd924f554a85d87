"""Pairs of images, such as a degraded one and the clean one: patches to train on, whole images to evaluate on."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunus.data.bicubic import to_bytes
from prunus.data.decode import Encoded, decode, pixels
from prunus.data.degrade import Degradation
from prunus.data.split import generator, hold_out, read_ahead
from prunus.files import expand_home
from prunus.options import Checked, Count, Pixels

SEED = 0  # of what is drawn for evaluation: the same for every run, so that their figures can be compared
WAYS = 8  # in which a square can be turned and mirrored


@dataclass(frozen=True, kw_only=True)
class Patches(Checked):
    """How patches are cut out of images.

    Args:
        side: The side of a clean patch in pixels, a multiple of the scale.
        each: The number of patches that an epoch takes from each image.
    """

    side: Pixels
    each: Count


class PairReader(Protocol):
    """A source of pairs of images.

    rows: (name, encoded image) of the first image of each pair, by index.
    """

    rows: Sequence[tuple[str, Encoded]]

    @property
    def described(self) -> str:
        """Say how the second image of a pair is made of the first, or read; for the digest."""
        ...

    def whole(self, index: int) -> tuple[Tensor, Tensor]:
        """Return both images of a pair, as batches of one."""
        ...

    def patches(
        self, indices: np.ndarray, side: int, rng: np.random.Generator, turn: bool
    ) -> tuple[Tensor, Tensor]:
        """Cut one patch out of each pair, at a random place; with `turn` changed at random too."""
        ...


class PairSource:
    """Images, each with its degraded one; what is not drawn is computed once and kept if `keeps`.

    Args:
        rows: (name, encoded image) by index.
        channels: 1 for gray, 3 for colour.
        degradation: The degradation.
        keeps: Whether decoded images are kept in memory.
    """

    def __init__(
        self, rows: Sequence[tuple[str, Encoded]], channels: int, degradation: Degradation, keeps: bool
    ):
        self.rows, self.channels, self.degradation, self.keeps = rows, channels, degradation, keeps
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def described(self) -> str:
        """The degradation."""
        return str(self.degradation)

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the degraded image before anything is drawn, and the clean one: both uint8 (H, W, C).

        The clean image is cropped at its right and bottom to a multiple of the scale, so a pixel of the degraded one
        stands for scale x scale of its pixels.
        """
        if index in self._kept:
            return self._kept[index]
        name, encoded = self.rows[index]
        clean = to_bytes(pixels(decode(name, encoded, self.channels), self.channels))
        scale = self.degradation.scale
        height, width = (side // scale * scale for side in clean.shape[:2])
        clean = np.ascontiguousarray(clean[:height, :width])
        found = self.degradation.shrink(clean), clean
        if self.keeps:
            self._kept[index] = found
        return found

    def whole(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image, degraded and clean, as batches of one; what is drawn depends on its content alone."""
        small, clean = self.pair(index)
        content = hashlib.blake2b(clean.tobytes(), digest_size=8).digest()
        rng = generator(SEED, int.from_bytes(content, "little"))
        x = self.degradation.disturb(to_floats(small)[None], rng)
        return torch.from_numpy(x), torch.from_numpy(to_floats(clean)[None])

    def patches(
        self, indices: np.ndarray, side: int, rng: np.random.Generator, turn: bool
    ) -> tuple[Tensor, Tensor]:
        """Cut one patch out of each image, at a random place; with `turn` it is turned and mirrored at random too."""
        scale = self.degradation.scale
        numbers, ways = rng.random((len(indices), 2)), rng.integers(0, WAYS, len(indices)) * turn
        cut: list[list[np.ndarray]] = [[], []]
        for index, place, way in zip(indices.tolist(), numbers, ways.tolist(), strict=True):
            small, clean = self.pair(index)
            room = np.array(small.shape[:2]) - side // scale + 1
            top, left = (place * room).astype(int).tolist()
            for found, image, factor in zip(cut, (small, clean), (1, scale), strict=True):
                size = side // scale * factor
                part = image[top * factor :, left * factor :][:size, :size]
                found.append(to_floats(turned(part, way)))
        x = self.degradation.disturb(np.stack(cut[0]), rng)
        return torch.from_numpy(x), torch.from_numpy(np.stack(cut[1]))


def read_whole(image: str | Path | bytes | Image.Image, channels: int) -> Tensor:
    """Read an image whole, as pairs are read.

    Args:
        image: A file, the bytes of one, or an open image.
        channels: 1 for gray, 3 for colour.

    Returns:
        The image, float32 (1, C, H, W) in 0..1.

    Raises:
        UserError: The image is missing or damaged.
    """
    name = str(image) if isinstance(image, str | Path) else "(given)"
    data = expand_home(image) if isinstance(image, str | Path) else image
    return torch.from_numpy(to_floats(to_bytes(pixels(decode(name, data, channels), channels)))[None])


def to_floats(image: np.ndarray) -> np.ndarray:
    """Convert an image uint8 (H, W, C) to float32 (C, H, W) in 0..1."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / np.float32(255)


def turned(image: np.ndarray, way: int) -> np.ndarray:
    """Turn a square (H, W, C) by `way` % 4 right angles, and mirror it if `way` is at least 4."""
    image = np.rot90(image, way % 4)
    return image[:, ::-1] if way >= 4 else image


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A split of pairs of images, such as (degraded, clean): patches in batches, or whole images one by one.

    Args:
        source: The source of the images.
        members: The images' indices in the source, int64 (N,).
        patches: How patches are cut; None: whole images, which differ in size, so each is a batch of its own.
    """

    source: PairReader
    members: np.ndarray
    patches: Patches | None = None

    def __len__(self) -> int:
        return len(self.members) * (self.patches.each if self.patches else 1)

    def take(self, chosen: np.ndarray) -> Self:
        """Take the examples at the positions `chosen`, in that order; of a patch its image, from which one is cut."""
        patches = self.patches and replace(self.patches, each=1)
        return replace(self, members=self._images(chosen), patches=patches)

    def hold_out(self, share: float, seed: int) -> tuple[Self, Self]:
        """Split the images in two at random: those that stay, and those held out, at least one."""
        parts = hold_out(np.zeros(len(self.members), np.int64), share, seed)
        rest, held = (replace(self, members=self.members[part]) for part in parts)
        return rest, held

    def digest(self) -> str:
        """Hash the images' indices in their order, and how pairs are made and cut."""
        whole = hashlib.blake2b(f"{self.source.described} {self.patches}".encode(), digest_size=8)
        whole.update(np.ascontiguousarray(self.members).tobytes())
        return whole.hexdigest()

    def read(self, positions: np.ndarray, draw: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
        """Read one batch: patches, turned and mirrored if `draw` is given; of whole images only one at once."""
        if self.patches is None:
            (index,) = self._images(positions).tolist()
            return self.source.whole(index)
        return self._cut(positions, draw or (SEED, *positions.tolist()), draw is not None)

    def _images(self, positions: np.ndarray) -> np.ndarray:
        """The images' indices of the examples at positions; the patches of an image are as many positions apart."""
        return self.members[positions % max(len(self.members), 1)]

    def _cut(self, positions: np.ndarray, draw: tuple[int, ...], turn: bool) -> tuple[Tensor, Tensor]:
        assert self.patches is not None
        return self.source.patches(self._images(positions), self.patches.side, generator(*draw), turn)

    def steps(self, batch_size: int) -> int:
        """The number of batches of an epoch."""
        return -(-len(self) // batch_size) if self.patches else len(self)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        start: int = 0,
        augment: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the batches of an epoch; order, places and noise depend on (seed, epoch, batch number) alone.

        Args:
            batch_size: The most patches in a batch, of all processes together; whole images are always alone.
            seed: The seed of the order; None: in order.
            epoch: The number of the epoch.
            start: The number of the first batch.
            augment: Whether patches are turned and mirrored at random; whole images never are.
            share: (rank, processes); each process reads its part of every batch.

        Yields:
            The first and the second images of pairs, such as degraded images float32 (B, C, h, w) and clean ones
            (B, C, scale * h, scale * w), in 0..1; noise exceeds it.
        """
        order = np.arange(len(self)) if seed is None else generator(seed, epoch).permutation(len(self))
        rank, processes = share
        if self.patches is None:
            jobs = [(np.array([position]),) for position in order[start:][rank::processes]]
            return read_ahead(self.read, jobs)

        def cut(number: int, positions: np.ndarray) -> tuple[Tensor, Tensor]:
            return self._cut(positions[rank::processes], (seed or 0, epoch, number + 1, rank), augment)

        parts = np.array_split(order, max(self.steps(batch_size), 1))
        return read_ahead(cut, list(enumerate(parts))[start:])
