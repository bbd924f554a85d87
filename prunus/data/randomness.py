"""The global random states of Python, numpy and torch: set from numbers, and restored afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_randomness() -> Iterator[None]:
    """Restore the random states of torch, numpy and Python afterwards, so that they may be set freely."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 (the global one is meant)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def reseed(*numbers: int) -> None:
    """Set every global random state from `numbers`; other numbers give unrelated states."""
    words = np.random.SeedSequence(numbers).generate_state(3).tolist()
    torch.manual_seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002
    random.seed(words[2])
