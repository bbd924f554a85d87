"""The split of whatever a user gives as examples: a loader, a list of batches, another iterable, or a split."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from prunus.data.examples import Examples
from prunus.data.loader import LoaderSplit
from prunus.data.pairs import Pairs
from prunus.data.split import Split
from prunus.data.stream import PROMISE, StreamSplit
from prunus.data.unpacking import Unpack
from prunus.errors import UserError


def split_given(source: Any, name: str, unpack: Unpack) -> Examples:
    """Make a split of a user's examples.

    Args:
        source: A torch DataLoader, a list of batches, any other iterable of batches that can be read again and again,
            or a split.
        name: The split's name, for messages.
        unpack: unpack(batch) -> (inputs, targets).

    Returns:
        The split.

    Raises:
        UserError: It is none of these, or gives no batch.
    """
    if isinstance(source, (Split, Pairs, LoaderSplit, StreamSplit)):
        return source
    if isinstance(source, Iterator):
        raise UserError(
            f"{name} is a {type(source).__name__}, which can be read once only, but training reads it in every epoch. "
            "Give a DataLoader, a list of batches, or an object whose __iter__ begins anew."
        )
    if isinstance(source, (Tensor, dict, str)) or not isinstance(source, Iterable):
        raise UserError(
            f"{name} should be a DataLoader or another iterable of batches, but is a {type(source).__name__}. For "
            "tensors, give DataLoader(TensorDataset(inputs, targets), batch_size=64, shuffle=True)."
        )
    if isinstance(source, DataLoader) and not isinstance(source.dataset, IterableDataset):
        split = LoaderSplit(source, name, unpack)
    elif isinstance(source, Sequence):
        split = LoaderSplit(DataLoader(source, batch_size=None), name, unpack)  # pyright: ignore[reportArgumentType]
    else:
        split = StreamSplit(source, name, unpack)
        if name == "train":
            warnings.warn(f"{name} {PROMISE}", UserWarning, stacklevel=1)
    if not split.steps(1):
        raise UserError(
            f"{name} gives no batch: it is empty, or was read to its end before. Give one with examples."
        )
    return split
