"""The modules of a small model beside those of the original: which are skipped, and how the others are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from torch import nn

from prunus.graph import Graph, Keep, full_name, holder
from prunus.surgery.skipped import Skip, Skipped

T = TypeVar("T")


@dataclass(frozen=True)
class Structure:
    """The blocks that a small model lacks.

    Args:
        skips: The blocks, with what they return.
        shortened: The names, in the original, of the lists that are shorter; elsewhere a `Skipped` stands in the
            block's place.
    """

    skips: Sequence[Skip] = ()
    shortened: Sequence[str] = ()

    @classmethod
    def of(cls, graph: Graph, keep: Keep, small: nn.Module) -> Structure:
        """Read off a small model how it lacks the blocks that a keep leaves out.

        Args:
            graph: The graph of the original.
            keep: axis -> indices that stay.
            small: The small model.

        Returns:
            Its structure.
        """
        skips = tuple(map(Skip.of, graph.blocks.skipped(keep)))
        found = cls(skips)
        modules = dict(small.named_modules()) if skips else {}
        for parent in sorted({holder(skip.module) for skip in skips}):  # those around others come first
            first = next(skip.module for skip in skips if holder(skip.module) == parent)
            if not isinstance(modules.get(found.name(first) or ""), Skipped):
                found = cls(skips, (*found.shortened, parent))
        return found

    @cached_property
    def _numbers(self) -> dict[str, list[int]]:
        """The numbers of the children that a shortened list lacks."""
        gone: dict[str, list[int]] = {parent: [] for parent in self.shortened}
        for skip in self.skips:
            parent, number = holder(skip.module), skip.module.rpartition(".")[2]
            if parent in gone and number.isdigit():
                gone[parent].append(int(number))
        return gone

    @cached_property
    def _modules(self) -> frozenset[str]:
        return frozenset(skip.module for skip in self.skips)

    def name(self, original: str) -> str | None:
        """Return how a module or tensor is called in the small model.

        Args:
            original: Its name in the original.

        Returns:
            Its name in the small model; None if it is not there.
        """
        if not self.skips:
            return original
        parts, path, now = original.split("."), "", []
        for place, part in enumerate(parts):
            gone = self._numbers.get(path)
            path = full_name(path, part)
            if path in self._modules and (gone is not None or place < len(parts) - 1):
                return None
            if gone and part.isdigit():
                part = str(int(part) - sum(number < int(part) for number in gone))
            now.append(part)
        return ".".join(now)

    def renamed(self, originals: Mapping[str, T]) -> dict[str, T]:
        """Return a dict whose keys are names, with those of the small model.

        Args:
            originals: Anything by the names of the original's modules or tensors.

        Returns:
            The same by the names of the small model, without what is not there.
        """
        named = ((self.name(name), value) for name, value in originals.items())
        return {name: value for name, value in named if name is not None}

    def originals(self, names: Iterable[str]) -> dict[str, str]:
        """Return the names that tensors of the small model have in the original.

        Args:
            names: The names of the original's tensors.

        Returns:
            The original's name by that in the small model.
        """
        return self.renamed({name: name for name in names})
