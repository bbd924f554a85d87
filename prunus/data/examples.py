"""The contract of a split: what training, methods and runs ask of the examples of a task."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from prunus.errors import UserError


class Examples(Protocol):
    """A part of a data set, as batches (inputs, targets).

    Inputs are what a model is called with: a tensor, a tuple of arguments, or a dict of arguments by keyword. Targets
    are what the task compares outputs with. `Split` holds images of a source, `LoaderSplit` a user's loader,
    `StreamSplit` any other iterable.
    """

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def steps(self, batch_size: int) -> int:
        """Return the number of batches of an epoch; the same in every epoch."""
        ...

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
        """Iterate over the batches of an epoch, which depend on (seed, epoch, batch number) alone.

        Args:
            batch_size: The most examples in a batch, of all processes together. A user's loader keeps its own.
            seed: The seed of the order; None: in order.
            epoch: The number of the epoch.
            start: The number of the first batch.
            augment: Whether to augment the inputs at random. A user's loader does as it always does.
            share: (rank, processes); each process gets its part of every batch.

        Yields:
            Inputs and targets.
        """
        ...

    def hold_out(self, share: float, seed: int) -> "tuple[Examples, Examples]":
        """Split in two at random: the examples that stay, and those held out; UserError where that is impossible."""
        ...

    def take(self, chosen: np.ndarray) -> "Examples":
        """Take the examples at positions, in that order; UserError where single ones cannot be had."""
        ...

    def read(self, positions: np.ndarray, draw: tuple[int, ...] | None = None) -> tuple[Any, Any]:
        """Read one batch of the examples at positions; UserError where single ones cannot be had.

        Args:
            positions: The positions, 0 to the number of examples - 1.
            draw: Numbers that determine the random changes of the inputs; None: inputs as they are.

        Returns:
            Inputs and targets.
        """
        ...

    def digest(self) -> str:
        """Return a hash by which a change of the examples is noticed."""
        ...


class NoExamples:
    """The split of a finished run that is opened without its data."""

    def __len__(self) -> int:
        """Return 0."""
        return 0

    def steps(self, batch_size: int) -> int:
        """Return 0."""
        return 0

    def batches(self, batch_size: int, **options: Any) -> Iterator[tuple[Any, Any]]:
        """Iterate over nothing."""
        return iter(())

    def hold_out(self, share: float, seed: int) -> "tuple[Examples, Examples]":
        """Raise UserError: there is nothing to hold out."""
        raise self._refusal()

    def take(self, chosen: np.ndarray) -> "Examples":
        """Raise UserError: there is nothing to take."""
        raise self._refusal()

    def read(self, positions: np.ndarray, draw: tuple[int, ...] | None = None) -> tuple[Any, Any]:
        """Raise UserError: there is nothing to read."""
        raise self._refusal()

    def digest(self) -> str:
        """Return the hash of nothing."""
        return ""

    def _refusal(self) -> UserError:
        return UserError("a finished run is opened without its examples; load the data set for them.")


NO_EXAMPLES = NoExamples()
