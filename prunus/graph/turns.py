"""Traces and proofs one at a time, because some of what they change for a while is shared by all threads.

That is the number by which tags are known, the attribute `training`, and functions of torch (see op.py, passes.py,
skeleton.py and origins.py), what a class does when its attributes are read, and logging and warnings (fields.py,
making.py). A second thread waits; forward passes outside of Prunus run on meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

_LOCK = RLock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other thread traces or proves, and let none begin.

    Returns:
        A context manager, which also decorates functions.
    """
    with _LOCK:
        yield
