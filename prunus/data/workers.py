"""Processes that read batches ahead, by torch's DataLoader, while the caller computes.

A batch depends on its job alone, and batches come in the order of their jobs; so every number of processes gives the
same. The processes of a reader are kept from one epoch to the next.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from prunus.errors import PrunusError, UserError, one_line
from prunus.options import Range

Read = TypeVar("Read")
WorkerCount = Annotated[int, Range(0, 512)]
ADVICE = (
    "Give --workers 0 (workers=0), with which this process reads; or fewer workers or a smaller batch size, if memory "
    "is short"
)


def in_worker() -> bool:
    """Return whether this process is one that reads for another."""
    return get_worker_info() is not None


class _Readable(Dataset[Any]):
    """A data set whose items are the jobs' batches, or the error of reading one."""

    def __init__(self, read: Callable[..., Any]):
        self.read = read

    def __getitem__(self, job: tuple[Any, ...]) -> Any:
        """Read a batch. An error is returned, because torch would put a traceback into its message."""
        try:
            return self.read(*job)
        except PrunusError as error:
            return error


class _Jobs:
    """The jobs of the epoch that is read, as a sampler."""

    def __init__(self) -> None:
        self.left: Sequence[tuple[Any, ...]] = ()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.left)

    def __len__(self) -> int:
        return len(self.left)


class Workers(Generic[Read]):
    """Processes that read batches.

    Args:
        read: read(*job) returns a batch: tensors, or trees of them. It is sent to the processes, so it should be small.
        number: The number of processes.
    """

    def __init__(self, read: Callable[..., Read], number: int):
        self.read, self.number = read, number
        self._jobs = _Jobs()
        self._kept: DataLoader[Any] | None = None
        self._busy = False

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied: not the processes."""
        return {"read": self.read, "number": self.number}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin without processes."""
        self.__init__(**state)

    def batches(self, jobs: Sequence[tuple[Any, ...]]) -> Iterator[Read]:
        """Read the batches of jobs.

        Args:
            jobs: The arguments of each batch.

        Yields:
            The batches, in the order of their jobs.

        Raises:
            UserError: A batch cannot be read, or a process ended.
        """
        if self._busy:  # a second reading beside the first has processes of its own
            yield from Workers(self.read, self.number).batches(jobs)
            return
        self._busy = True
        try:
            self._jobs.left = jobs
            for batch in _explained(self._loader):
                if isinstance(batch, PrunusError):
                    raise batch
                yield batch
        finally:
            self._busy = False

    def _loader(self) -> DataLoader[Any]:
        if self._kept is None:
            self._kept = DataLoader(
                _Readable(self.read),
                batch_size=None,
                sampler=self._jobs,
                collate_fn=_as_it_is,
                num_workers=self.number,
                persistent_workers=True,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # otherwise it would draw from the global one
            )
        return self._kept


def _as_it_is(batch: Any) -> Any:
    return batch


def _explained(make: Callable[[], DataLoader[Any]]) -> Iterator[Any]:
    """The items of the loader that is made; UserError if one of its processes ended or could not be started."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # more processes than cores may be wanted; torch's own can be forked
            batches = iter(make())
        yield from batches
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "worker" not in str(error):
            raise
        raise UserError(f"a process that reads images ended ({one_line(error)}). {ADVICE}.") from error
