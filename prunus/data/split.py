"""A split of a data set: its order, its batches, and what is held out of it."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from prunus.data.workers import Workers


class Source(Protocol):
    """A source of inputs, such as images. slow: whether reading one batch ahead is worth it."""

    slow: bool

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> Any:
        """Read a batch of inputs by index, such as images (B, C, H, W), augmented at random if `rng` is given."""
        ...


@dataclass(frozen=True)
class Split:
    """Inputs of one source, such as images, each with its target.

    Args:
        source: The source that the inputs are read from.
        labels: The targets (N, ...): classes, int64 (N,), or what else a task compares outputs with.
        members: The inputs' indices in the source, int64 (N,).
        workers: The processes that read its batches; None: this one does.
    """

    source: Source
    labels: np.ndarray
    members: np.ndarray
    workers: Workers[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.members)

    def read(self, positions: np.ndarray, draw: tuple[int, ...] | None = None) -> tuple[Any, Tensor]:
        """Read the inputs at positions, augmented at random if `draw` is given, and their targets."""
        return Reader(self.source)(self.members[positions], draw), torch.from_numpy(self.labels[positions])

    def digest(self) -> str:
        """Hash the targets and the inputs' indices, in their order."""
        whole = hashlib.blake2b(digest_size=8)
        for values in (self.labels, self.members):
            whole.update(f"{values.dtype} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
        return whole.hexdigest()

    def take(self, chosen: np.ndarray) -> "Split":
        """Take the inputs at the positions `chosen`, in that order, as a split."""
        return replace(self, labels=self.labels[chosen], members=self.members[chosen])

    def hold_out(self, share: float, seed: int) -> tuple["Split", "Split"]:
        """Split in two at random: the examples that stay, and those held out; see `hold_out`."""
        rest, held = hold_out(self.labels, share, seed)
        return self.take(rest), self.take(held)

    def steps(self, batch_size: int) -> int:
        """The number of batches of an epoch."""
        return -(-len(self) // batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        start: int = 0,
        augment: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Any, Tensor]]:
        """Iterate over the batches of an epoch.

        Batch sizes differ by at most one, because a small last batch would disturb batch norms. Order and augmentation
        depend on (seed, epoch, batch number) alone, so a start in the middle continues exactly.

        Args:
            batch_size: The most examples in a batch, of all processes together.
            seed: The seed of the order; None: in order.
            epoch: The number of the epoch.
            start: The number of the first batch.
            augment: Whether to augment the inputs at random.
            share: (rank, processes); each process reads its part of every batch.

        Yields:
            Inputs, such as images float32 (B, C, H, W), and targets, such as classes int64 (B,).
        """
        order = np.arange(len(self)) if seed is None else generator(seed, epoch).permutation(len(self))
        rank, processes = share

        parts = [part[rank::processes] for part in np.array_split(order, max(self.steps(batch_size), 1))]
        numbers = (seed or 0, epoch)
        jobs = [
            (self.members[part], (*numbers, number + 1, rank) if augment else None)
            for number, part in enumerate(parts)
        ]
        read = Reader(self.source)
        if self.workers is not None:
            images = self.workers.batches(jobs[start:])
        else:
            images = (
                read_ahead(read, jobs[start:]) if self.source.slow else (read(*job) for job in jobs[start:])
            )
        for x, part in zip(images, parts[start:], strict=True):
            yield x, torch.from_numpy(self.labels[part])


@dataclass(frozen=True)
class Reader:
    """Reads batches of a source, in whatever process.

    Args:
        source: The source.
    """

    source: Source

    def __call__(self, indices: np.ndarray, draw: tuple[int, ...] | None) -> Any:
        """Read inputs by index, augmented at random if `draw`, the numbers that determine it, is given."""
        return self.source.read(indices, None if draw is None else generator(*draw))


def hold_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose at random which positions to hold out: an equal share of each class, at least one, never all.

    Args:
        labels: The targets (N, ...); int64 (N,) are classes, others count as one class.
        share: The share of each class to hold out, 0 to 1.
        seed: The seed of the choice.

    Returns:
        The positions that stay and the positions held out, each sorted.
    """
    if labels.ndim > 1 or not np.issubdtype(labels.dtype, np.integer):
        labels = np.zeros(len(labels), np.int64)
    held = []
    for label in np.unique(labels):
        members = generator(seed, int(label)).permutation(np.flatnonzero(labels == label))
        held.append(members[: min(max(1, round(share * len(members))), len(members) - 1)])
    held = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held), held


def hold_out_by_content(
    keys: np.ndarray, labels: np.ndarray, share: float, by: tuple[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Choose which positions to hold out by content alone, so that an example that is added moves no other.

    An example is held out if its place in 0..1, a hash of its content, is below the share. Given up for that: the
    share is met only on average (of 100 images 20, with a standard deviation of 4). A class without any below the
    share gives its lowest, and one without any above keeps its highest; only there can an example that is added
    move another.

    Args:
        keys: A hash of each example's content, uint64 (N,); copies have the same and stay together.
        labels: The classes, int64 (N,).
        share: The share to hold out, 0 to 1.
        by: A purpose and a seed; others choose others, independently.

    Returns:
        The positions that stay and the positions held out, each sorted.
    """
    at = places(keys, by)
    held = at < share
    for label in np.unique(labels):
        own = labels == label
        low, high = at[own].min(), at[own].max()
        if low < high:
            held |= own & (at == low)
            held &= ~(own & (at == high))
        else:  # a single image, or copies of one
            held &= ~own
    return np.flatnonzero(~held), np.flatnonzero(held)


def places(keys: np.ndarray, by: tuple[str, int]) -> np.ndarray:
    """Hash keys, uint64 (N,), to numbers in 0..1 that depend on the keys, a purpose and a seed alone."""
    salt = f"{by[0]} {by[1]}".encode()
    numbers = (hashlib.blake2b(key + salt, digest_size=8).digest() for key in map(_bytes, keys.tolist()))
    return np.array([int.from_bytes(number, "little") for number in numbers]) / 2.0**64


def _bytes(key: int) -> bytes:
    return key.to_bytes(8, "little")


def read_ahead(read: Callable, jobs: list[tuple]) -> Iterator:
    """Yield read(*job) for each job, reading the next one in a thread while the caller works."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(read, *job) for job in jobs[:1]]
        for job in [*jobs[1:], None]:
            if not waiting:
                return
            now = waiting.pop()
            if job is not None:
                waiting.append(pool.submit(read, *job))
            yield now.result()


def generator(*numbers: int) -> np.random.Generator:
    """Make a random generator that depends on all of `numbers`, independent of those of other numbers.

    Args:
        numbers: Whole numbers not below 0, such as a seed and an epoch.

    Returns:
        The generator.
    """
    return np.random.default_rng(np.random.SeedSequence(numbers))
