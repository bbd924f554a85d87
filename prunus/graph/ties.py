"""Axes that shrink together with `uniform=True`: those at one place in all blocks, or those that a config can state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from prunus.graph.attributes import Attribute
from prunus.graph.axes import Axis
from prunus.graph.making import Path
from prunus.graph.sizes import Place


@dataclass(frozen=True)
class Tie:
    """Axes that all keep the same share of their units.

    Args:
        axes: Their names.
        parts: The number of equal steps in which they shrink: the share is a multiple of 1 / parts.
        fields: The integers of a config that shrink with them, with their values in the original.
    """

    axes: tuple[str, ...]
    parts: int
    fields: Mapping[Path, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ties:
    """All axes of a graph, tied or held whole.

    Args:
        tied: The ties; no axis is in two.
        held: axis -> the reason why it stays whole.
        added: Integers that the config does not state, but has to state for the ties to hold.
    """

    tied: tuple[Tie, ...]
    held: Mapping[str, str] = field(default_factory=dict)
    added: Mapping[Path, int] = field(default_factory=dict)

    def fields(self, sizes: Mapping[str, int], widths: Mapping[str, int]) -> dict[Path, int]:
        """Compute the integers of the config at some widths.

        Args:
            sizes: axis -> its units in the original.
            widths: axis -> the units that stay.

        Returns:
            The integers of those ties whose axes all keep the same share; empty if none of them is smaller.
        """
        shares: dict[Path, Fraction] = {}
        values: dict[Path, int] = {}
        for tie in self.tied:
            found = {Fraction(widths[name], sizes[name]) for name in tie.axes}
            if len(found) == 1:
                share = found.pop()
                for path, value in tie.fields.items():
                    values[path], shares[path] = value, shares.get(path, Fraction(1)) * share
        if all(share == 1 for share in shares.values()):
            return {}
        whole = {path: int(values[path] * share) for path, share in shares.items()}
        return whole | {path: value for path, value in self.added.items() if path not in whole}

    def attributes(self, sizes: Mapping[str, int], widths: Mapping[str, int]) -> list[Attribute]:
        """Return the integers that `fields` computes as attributes of the model."""
        fields = self.fields(sizes, widths)
        return [Attribute(Place("", path, value), value) for path, value in fields.items()]


def block_ties(axes: Mapping[str, Axis], kinds: Mapping[str, Any]) -> Ties:
    """Tie the axes at the same place in repeated blocks: their names differ by numbers alone, size and kind are equal.

    Args:
        axes: The axes by name.
        kinds: axis -> a value that axes of one tie have in common; an empty one for an axis that is tied to no other.

    Returns:
        The ties; an axis that is alone at its place is a tie of its own.
    """
    groups: dict[Any, list[str]] = {}
    for name, axis in axes.items():
        place = (place_of(name), axis.size, kinds[name]) if kinds[name] else name
        groups.setdefault(place, []).append(name)
    return Ties(tuple(Tie(tuple(names), axes[names[0]].size) for names in groups.values()))


def place_of(name: str) -> str:
    """Return the name of an axis with a star for each number of a block.

    Args:
        name: The name, such as layers.3.mlp.up.

    Returns:
        The place, such as layers.*.mlp.up.
    """
    return ".".join("*" if step.isdecimal() else step for step in name.split("."))
