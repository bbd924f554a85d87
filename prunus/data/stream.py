"""A split around any iterable of batches, which can only be read from its beginning."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from prunus.data.examples import Examples
from prunus.data.randomness import own_randomness, reseed
from prunus.data.unpacking import Unpack, check_unpacked
from prunus.errors import UserError
from prunus.inputs import count_examples, hash_tensors, take_share

PROMISE = (
    "is read in the order in which it comes, and a run that goes on in the middle of an epoch reads the batches before "
    "again: it ends in the same numbers only if every pass over it gives the same batches, apart from what it draws "
    "from the global random states of Python, numpy and torch. A DataLoader over a data set with indices has no such "
    "condition."
)
END = object()  # in the place of a batch


@dataclass(frozen=True)
class StreamSplit:
    """The examples of an iterable of batches; batches have its own size.

    It is read through once, to count batches and examples.

    Args:
        source: The iterable; every `iter` begins anew.
        name: The split's name, for messages.
        unpack: unpack(batch) -> (inputs, targets).
    """

    source: Iterable[Any]
    name: str
    unpack: Unpack

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def batch_size(self) -> int:
        """The number of examples in the first batch."""
        return self._counts[0]

    @cached_property
    def _counts(self) -> list[int]:
        """The sizes of the batches."""
        return [count_examples(inputs) for inputs, _ in self._read(0, 0)]

    def steps(self, batch_size: int) -> int:
        """Return the number of batches of an epoch; `batch_size` has no effect, because the source has its own."""
        return len(self._counts)

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
        """Iterate over the source's batches; see `Examples.batches`, and `PROMISE` for what cannot be promised."""
        expected = len(self._counts)
        number = 0
        for number, batch in enumerate(self._read(seed or 0, epoch, start), start + 1):
            if number > expected:
                break
            yield take_share(batch, share) if share[1] > 1 else batch
        if max(number, start) != expected:
            raise UserError(
                f"{self.name} gave {'more than ' if number > expected else ''}{min(number, expected)} batches in epoch "
                f"{epoch + 1}, but {expected} when it was first read: every pass over it should give as many. A "
                "generator ends after one pass; give a list of batches or a DataLoader."
            )

    def _read(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """Read the batches from number `start` on, each under random states of its own."""
        raw = None
        for number in itertools.count():
            with own_randomness():
                reseed(seed, epoch, number + 1)
                raw = iter(self.source) if raw is None else raw
                batch = next(raw, END)
            if batch is END:
                return
            if number >= start:
                yield check_unpacked(self.unpack(batch), self.name)

    def hold_out(self, share: float, seed: int) -> tuple[Examples, Examples]:
        """Raise UserError: nothing can be held out."""
        raise self._refusal()

    def take(self, chosen: np.ndarray) -> Examples:
        """Raise UserError: single examples cannot be had."""
        raise self._refusal()

    def read(self, positions: np.ndarray, draw: tuple[int, ...] | None = None) -> tuple[Any, Any]:
        """Raise UserError: single examples cannot be had."""
        raise self._refusal()

    def _refusal(self) -> UserError:
        return UserError(
            f"{self.name} can only be read from its beginning, so no examples can be held out of it or chosen. Give a "
            "DataLoader over a data set with indices, or take a method that holds none out, such as taylor."
        )

    def digest(self) -> str:
        """Hash the sizes of all batches, and the first batch."""
        return hash_tensors(next(self._read(0, 0)), self._counts)
