"""Patterns of names: which axes they stand for.

A pattern is a kind of axes (`heads`, see `prunus.graph.KINDS`), the name of an axis, or a shell pattern of modules or
parameters (`layer1*`, `head`, `layer1.0.conv1.weight`). Patterns of layers stand for the units that no other layers
write; so those of the last layer in a residual branch do not stand for the stream, which has its own name and kind.
With the suffix `:in` (`head:in`) a pattern of layers stands for what they read, with `:depth` (`layers.*:depth`) for
the modules that can be skipped, which only scores of blocks name.
"""

import difflib
import glob
from collections import Counter
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from weakref import WeakKeyDictionary

from prunus.errors import UserError
from prunus.graph import CONSUMES, KINDS, PRODUCES, SUFFIX, Graph

READ = ":in"
HINTS = {  # kind -> why a network may have no axes of it
    "experts": " The number of experts stays where a router computes with their numbers; graph.explain says where."
}


def holders(tensor: str) -> list[str]:
    """List the names of a tensor and of the modules around it.

    Args:
        tensor: The tensor's name, such as a.b.weight.

    Returns:
        The names from the longest on: a.b.weight, a.b, a.
    """
    parts = tensor.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def named_axes(graph: Graph, what: str, patterns: Sequence[str]) -> dict[str, str]:
    """Find the axes that patterns stand for, together.

    Args:
        graph: The graph of the model.
        what: The name of the option, for errors.
        patterns: The patterns.

    Returns:
        axis -> the pattern that stands for it, or for the first of the layers that write it. Layers whose dimensions
        are all fixed have none.

    Raises:
        UserError: A pattern matches nothing (the message names the nearest), its layers write nothing of their own, or
            there are no axes of the kind.
    """
    if isinstance(patterns, str):
        raise UserError(
            f"{what}: expected a list of patterns, got the text {patterns!r}; write [{patterns!r}]."
        )
    if graph not in _known:  # because searches call this at every check
        _known[graph] = _Names(graph)
    return _known[graph].axes_of(what, patterns)


class _Names:
    """The names by which the axes of a graph are known; holds no graph, so that one can be forgotten."""

    def __init__(self, graph: Graph):
        self.kinds, self.tensors = graph.kinds, list(graph.layouts)
        self.sizes = {name: axis.size for name, axis in graph.axes.items()}
        self.escaped = {text: axis for axis in graph.axes for text in (axis, glob.escape(axis))}
        self.others: dict[str, list[str]] = {}  # for each axis the tensors that do not read it
        self.writers: dict[str, list[str]] = {}  # those of them that write it; all if none does
        self.readers: dict[str, list[str]] = {}
        for axis in graph.axes:
            roles = {m.tensor: m.role for m in graph.members(axis)}
            self.readers[axis] = [tensor for tensor, role in roles.items() if role == CONSUMES]
            self.others[axis] = [tensor for tensor, role in roles.items() if role != CONSUMES]
            self.writers[axis] = [t for t in self.others[axis] if roles[t] == PRODUCES] or self.others[axis]

    def axes_of(self, what: str, patterns: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        layers = []
        for pattern in patterns:
            if pattern in KINDS:
                found |= dict.fromkeys(self._of_kind(what, pattern), pattern)
            elif pattern in self.escaped:
                found[self.escaped[pattern]] = pattern
            elif pattern.endswith((READ, SUFFIX)) or "#" in pattern:
                found |= dict.fromkeys(self._matching(what, pattern), pattern)
            else:
                layers.append(pattern)
        for axis, writers in self.writers.items() if layers else ():
            by = [next((p for p in layers if _matches(p, tensor)), None) for tensor in writers]
            if by and all(by):
                found.setdefault(axis, str(by[0]))
        for pattern in layers:
            self._check(what, pattern, found)
        return found

    def _of_kind(self, what: str, kind: str) -> list[str]:
        found = [axis for axis, own in self.kinds.items() if own == kind]
        if not found and kind == "depth":
            raise UserError(
                f"{what}={kind!r}: no block has a score, without which none is skipped. Give some, such as "
                "prunus.scores.influence(model, graph, batches), or taylor(..., depth=True) for blocks and units."
            )
        if not found:
            there = Counter(self.kinds.values()).items()
            raise UserError(
                f"{what}={kind!r}: this network has no axes of that kind that may shrink; it has "
                f"{', '.join(f'{number} of {own}' for own, number in there)}.{HINTS.get(kind, '')}"
            )
        return found

    def _matching(self, what: str, pattern: str) -> list[str]:
        """The axes that layers read, if a pattern says so; otherwise those whose own names it matches."""
        if not pattern.endswith(READ):
            found = [axis for axis in self.sizes if fnmatchcase(axis, pattern)]
            if pattern.endswith(SUFFIX) and "depth" not in self.kinds.values():
                return []
        else:
            layers = pattern.removesuffix(READ)
            found = [
                axis for axis, tensors in self.readers.items() if any(_matches(layers, t) for t in tensors)
            ]
            if not found and self._is_layer(layers):
                return []
        if not found:
            raise self._unknown(what, pattern)
        return found

    def _check(self, what: str, pattern: str, found: Collection[str]) -> None:
        """Raise UserError unless a pattern matches a writer of an axis that is found, or layers that are all fixed."""
        met = [axis for axis, tensors in self.others.items() if any(_matches(pattern, t) for t in tensors)]
        if any(axis in found for axis in met) or (not met and self._is_layer(pattern)):
            return
        if not met:
            raise self._unknown(what, pattern)
        axis, kind = met[0], self.kinds[met[0]]
        others = [tensor for tensor in self.writers[axis] if not _matches(pattern, tensor)]
        more = f" and {len(others) - 2} more" if len(others) > 2 else ""
        raise UserError(
            f"{what} pattern {pattern!r} names no units of its own: the {self.sizes[axis]} units of axis {axis} "
            f"({kind}) are written by {', '.join(others[:2])}{more}, too. Write {axis!r} for that axis, {kind!r} for "
            f"all of its kind, or {pattern + READ!r} for what these layers read."
        )

    def _is_layer(self, pattern: str) -> bool:
        return any(_matches(pattern, tensor) for tensor in self.tensors)

    def _unknown(self, what: str, pattern: str) -> UserError:
        there = {name + side for tensor in self.tensors for name in holders(tensor) for side in ("", READ)}
        near = difflib.get_close_matches(pattern, there.union(self.sizes, KINDS), n=5, cutoff=0.3)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        return UserError(f"{what} pattern {pattern!r} matches no axis, kind, module or parameter.{hint}")


_known: WeakKeyDictionary[Graph, _Names] = WeakKeyDictionary()


def _matches(pattern: str, tensor: str) -> bool:
    """Whether a pattern matches a tensor, or a module around it."""
    return any(fnmatchcase(name, pattern) for name in holders(tensor))
