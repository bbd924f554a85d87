"""A split that reports how much of it has been read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunus.data import Examples
from prunus.inputs import count_examples
from prunus.progress import Step


@dataclass(frozen=True)
class WatchedSplit:
    """A split that reports how much of it has been read.

    Args:
        split: The split that is read.
        step: step(number) is called with the number of examples of each batch, after its use.
    """

    split: Examples
    step: Step

    def __len__(self) -> int:
        return len(self.split)

    def steps(self, batch_size: int) -> int:
        """Return the number of batches of `split`."""
        return self.split.steps(batch_size)

    def batches(self, batch_size: int, **options: Any) -> Iterator[tuple[Any, Any]]:
        """Iterate over the batches of `split`; see `Examples.batches`."""
        for x, y in self.split.batches(batch_size, **options):
            yield x, y
            self.step(count_examples(x))

    def hold_out(self, share: float, seed: int) -> tuple[Examples, Examples]:
        """Hold examples out of `split`."""
        return self.split.hold_out(share, seed)

    def take(self, chosen: np.ndarray) -> Examples:
        """Take examples of `split`."""
        return self.split.take(chosen)

    def read(self, positions: np.ndarray, draw: tuple[int, ...] | None = None) -> tuple[Any, Any]:
        """Read examples of `split`."""
        return self.split.read(positions, draw)

    def digest(self) -> str:
        """Return the digest of `split`."""
        return self.split.digest()
