"""A split around a torch DataLoader, or a list of batches, whose examples can be read in any order.

The loader's samplers and everything random in the reading of a batch are seeded from (seed, epoch, batch number), in
whatever process reads it. So every number of workers gives the same batches, and a training that continues in the
middle of an epoch skips the batches before without reading them. Only a sampler that draws from a random state of its
own, not from Python's, numpy's or torch's, cannot be repeated.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from prunus.data.examples import Examples
from prunus.data.randomness import own_randomness, reseed
from prunus.data.split import generator, hold_out
from prunus.data.unpacking import Unpack, check_unpacked
from prunus.errors import UserError
from prunus.inputs import count_examples, hash_tensors, take_share

END = object()  # in the place of a batch
ORDER = 0  # stands in the place of a batch number, which begins at 1, when the order of an epoch is drawn


@dataclass(frozen=True)
class Job:
    """A batch to read.

    Args:
        numbers: The numbers that determine everything random in it.
        indices: Its examples' indices in the data set; one index of a whole batch if the loader does not batch.
    """

    numbers: tuple[int, ...]
    indices: Any


class _Seeded(Dataset[Any]):
    """A data set whose batches are read under random states that depend on the job alone."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getitem__(self, job: Job) -> Any:
        """Read one item, which is a whole batch."""
        reseed(*job.numbers)
        return self.dataset[job.indices]

    def __getitems__(self, job: Job) -> list[Any]:
        """Read the examples of a batch."""
        reseed(*job.numbers)
        together = getattr(self.dataset, "__getitems__", None)
        return [self.dataset[index] for index in job.indices] if together is None else together(job.indices)


@dataclass(frozen=True)
class LoaderSplit:
    """The examples of a DataLoader over a data set with indices; batches have the loader's own size.

    Args:
        loader: The loader; its data set, samplers, collate_fn and workers are used.
        name: The split's name, for messages.
        unpack: unpack(batch) -> (inputs, targets).
        chosen: The indices in the data set that were taken; None: all that the loader's sampler gives.
    """

    loader: DataLoader[Any]
    name: str
    unpack: Unpack
    chosen: np.ndarray | None = None

    def __len__(self) -> int:
        return self._size

    @property
    def batch_size(self) -> int:
        """The number of examples in the first batch."""
        return self._counts[0]

    @property
    def holds_batches(self) -> bool:
        """Whether an item of the data set is a whole batch."""
        return self.loader.batch_sampler is None

    @cached_property
    def _size(self) -> int:
        return sum(self._counts)

    @cached_property
    def _counts(self) -> list[int]:
        """The sizes of the batches, in the order of evaluation."""
        order = self._order(None, 0)
        if not self.holds_batches:
            return [len(indices) for indices in order]
        read = self._read([Job((0, 0, number + 1), index) for number, index in enumerate(order)])
        return [count_examples(inputs) for inputs, _ in read]

    @cached_property
    def _steps(self) -> int:
        return len(self._order(None, 0))

    def steps(self, batch_size: int) -> int:
        """Return the number of batches of an epoch; `batch_size` has no effect, because the loader has its own."""
        return self._steps

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        start: int = 0,
        augment: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Any, Any]]:
        """Iterate over the loader's batches of an epoch; see `Examples.batches`."""
        order = self._order(seed, epoch)
        if len(order) != self._steps:
            raise UserError(
                f"{self.name}: the sampler gave {len(order)} batches in epoch {epoch + 1}, but {self._steps} at first. "
                "Give a sampler that gives as many in every epoch."
            )
        rank, processes = share
        if not self.holds_batches:
            # a process without an example of its own takes the last one, because all of them have to compute
            order = [indices[rank::processes] or indices[-1:] for indices in order]
        numbers = (seed or 0, epoch)
        jobs = [Job((*numbers, at + 1, rank), indices) for at, indices in enumerate(order)][start:]
        divided = self.holds_batches and processes > 1
        for batch in self._read(jobs):
            yield take_share(batch, share) if divided else batch

    def hold_out(self, share: float, seed: int) -> tuple[Examples, Examples]:
        """Hold out a share of the examples at random, or of the batches if the data set holds batches."""
        indices = self._indices()
        if len(indices) < 2:
            things = "batches" if self.holds_batches else "examples"
            raise UserError(
                f"{self.name}: nothing can be held out of {len(indices)} {things}; give more of them."
            )
        rest, held = hold_out(np.zeros(len(indices), np.int64), share, seed)
        return replace(self, chosen=indices[rest]), replace(self, chosen=indices[held])

    def take(self, chosen: np.ndarray) -> "LoaderSplit":
        """Take the examples at the positions `chosen`, in that order."""
        self._refuse_batches()
        return replace(self, chosen=self._indices()[chosen])

    def read(self, positions: np.ndarray, draw: tuple[int, ...] | None = None) -> tuple[Any, Any]:
        """Read one batch of the examples at positions."""
        self._refuse_batches()
        indices = self._indices()[positions].tolist()
        return next(self._read([Job((0,) if draw is None else draw, indices)], workers=0))

    def digest(self) -> str:
        """Hash the number of examples and the first batch; reading all of them would take too long."""
        return hash_tensors(next(self.batches(1)), len(self), self._steps)

    def _refuse_batches(self) -> None:
        if self.holds_batches:
            raise UserError(
                f"{self.name} is a list of whole batches, of which single examples cannot be had. Give a DataLoader "
                "over single examples, or take a method that does not choose among them, such as taylor."
            )

    def _indices(self) -> np.ndarray:
        """The indices in the data set of all examples, in its order."""
        if self.chosen is not None:
            return self.chosen
        sampler = self.loader.sampler
        plain = self.holds_batches or type(self.loader.batch_sampler) is BatchSampler
        if plain and isinstance(sampler, SubsetRandomSampler):
            return np.sort(np.asarray(list(sampler.indices), np.int64))
        if plain and (
            isinstance(sampler, SequentialSampler)
            or (isinstance(sampler, RandomSampler) and not sampler.replacement)
        ):
            return np.arange(len(sampler))
        kind = type(sampler if plain else self.loader.batch_sampler).__name__
        raise UserError(
            f"{self.name}: examples can be held out only of a loader that reads each once, in order or shuffled, but "
            f"it has a {kind}. Take a method that holds none out, such as taylor or magnitude."
        )

    def _order(self, seed: int | None, epoch: int) -> list[Any]:
        """The batches of an epoch, as lists of indices in the data set, or as indices of batches."""
        if self.chosen is not None:
            chosen = self.chosen
            if seed is not None:
                chosen = generator(seed, epoch).permutation(chosen)
            if self.holds_batches:
                return chosen.tolist()
            size = self.loader.batch_size or 1
            return [part.tolist() for part in np.array_split(chosen, max(1, -(-len(chosen) // size)))]
        sampler: Iterable[Any] = (
            self.loader.sampler if self.holds_batches else self.loader.batch_sampler or ()
        )
        with own_randomness(), _seeded_samplers(self.loader, seed or 0, epoch):
            return list(sampler)

    def _read(self, jobs: Sequence[Job], workers: int | None = None) -> Iterator[tuple[Any, Any]]:
        """Read batches with the loader's workers."""
        own, workers = self.loader, self.loader.num_workers if workers is None else workers
        how: dict[str, Any] = (
            {"batch_size": None, "sampler": jobs} if self.holds_batches else {"batch_sampler": jobs}
        )
        if workers:
            how |= {"prefetch_factor": own.prefetch_factor, "timeout": own.timeout}
            how |= {
                "multiprocessing_context": own.multiprocessing_context,
                "worker_init_fn": own.worker_init_fn,
            }
        reader = DataLoader(
            _Seeded(own.dataset),
            collate_fn=own.collate_fn,
            num_workers=workers,
            pin_memory=own.pin_memory and torch.accelerator.is_available(),
            generator=torch.Generator(),  # otherwise it would draw from the global one
            **how,
        )
        raw = iter(reader)
        while True:
            with own_randomness():
                batch = next(raw, END)
            if batch is END:
                return
            yield check_unpacked(self.unpack(batch), self.name)


@contextmanager
def _seeded_samplers(loader: DataLoader[Any], seed: int, epoch: int) -> Iterator[None]:
    """Set what a loader's samplers draw from; their own generators continue afterwards as if nothing had happened."""
    parts = loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)
    generators = [getattr(part, "generator", None) for part in parts]
    states = [(each, each.get_state()) for each in generators if isinstance(each, torch.Generator)]
    for part in parts:
        set_epoch = getattr(
            part, "set_epoch", None
        )  # of samplers that count epochs, such as DistributedSampler
        if set_epoch is not None:
            set_epoch(epoch)
    reseed(seed, epoch, ORDER)
    word = torch.initial_seed()
    try:
        for each, _ in states:
            each.manual_seed(word)
        yield
    finally:
        for each, state in states:
            each.set_state(state)
