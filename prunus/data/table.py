"""Files below a folder as a table of rows that takes little memory, however many they are."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np


class Texts(Sequence[str]):
    """Texts that are kept one behind the other in a single block of bytes; 200,000 names take a few MB.

    Args:
        texts: The texts, which may hold what is no UTF-8 in the names of files.
    """

    def __init__(self, texts: Iterable[str]):
        encoded = [os.fsencode(text) for text in texts]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return the text at a position, or a list of those in a part."""
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} texts, but number {index} was asked for")
        index %= len(self)
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])


class Files(Sequence[tuple[str, Path]]):
    """Files below a folder, each as its path in words and its path.

    Args:
        root: The folder.
        names: The files' places below it, with "/" between folders.
    """

    def __init__(self, root: Path, names: Texts):
        self.root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> tuple[str, Path]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, Path]]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, Path] | list[tuple[str, Path]]:
        """Return a file, or a list of those in a part."""
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        path = self.root / self.names[index]
        return str(path), path
