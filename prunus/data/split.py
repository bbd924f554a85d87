"""A split of a data set: its order, its batches and what is held out of it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Source(Protocol):
    """Where pictures come from; `slow` if it is worth reading one batch ahead."""

    slow: bool

    def read(self, indices: np.ndarray, draw: np.random.Generator | None) -> Tensor: ...


@dataclass(frozen=True)
class Split:
    """Pictures with a label each. labels: int64 (N,); members: where its pictures stand in the source."""

    source: Source
    labels: np.ndarray
    members: np.ndarray

    def __len__(self) -> int:
        return len(self.members)

    def take(self, chosen: np.ndarray) -> "Split":
        """The split of the pictures at the positions `chosen`, in that order."""
        return replace(self, labels=self.labels[chosen], members=self.members[chosen])

    def hold_out(self, share: float, seed: int) -> tuple["Split", "Split"]:
        """Return what stays and what is held out, both in order: `share` of each class, at least one, never all.

        Targets that are not classes (int64, one for each image) have no classes: then it is `share` of all.
        """
        rest, held = hold_out(self.labels, share, seed)
        return self.take(rest), self.take(held)

    def steps(self, batch_size: int) -> int:
        """How many batches an epoch has."""
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
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches number `start` and on, as (x float32 (B, C, H, W), y int64 (B,)); in order without a seed.

        They have at most `batch_size` pictures and differ by one at most, so that no small one upsets a norm.
        Order and changes depend on (seed, epoch, batch number): a start in the middle goes on exactly.
        share: (rank, processes); a process gets its part of every batch.
        """
        order = np.arange(len(self)) if seed is None else generator(seed, epoch).permutation(len(self))
        rank, processes = share

        def read(number: int, positions: np.ndarray) -> tuple[Tensor, Tensor]:
            positions = positions[rank::processes]
            draw = generator(seed or 0, epoch, number + 1, rank) if augment else None
            x = self.source.read(self.members[positions], draw)
            return x, torch.from_numpy(self.labels[positions])

        parts = np.array_split(order, max(self.steps(batch_size), 1))
        jobs = list(enumerate(parts))[start:]
        return ahead(read, jobs) if self.source.slow else (read(*job) for job in jobs)


def hold_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions that stay and positions held out, in order: `share` of each class, at least one, never all."""
    if labels.ndim > 1 or not np.issubdtype(labels.dtype, np.integer):
        labels = np.zeros(len(labels), np.int64)  # one class: all of them
    held = []
    for label in np.unique(labels):
        members = generator(seed, int(label)).permutation(np.flatnonzero(labels == label))
        held.append(members[: min(max(1, round(share * len(members))), len(members) - 1)])
    held = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held), held


def ahead(read: Callable, jobs: list[tuple]) -> Iterator:
    """read(*job) for each job, the next one being read while the caller works on the last."""
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
    """Random numbers that depend on all of `numbers`, unrelated for unlike ones."""
    return np.random.default_rng(np.random.SeedSequence(numbers))
