"""Units that stay whatever the scores are: floors, caps and frozen axes, by number or by name pattern.

A pattern is a shell pattern (`layer1*`). It selects the axes whose own name it matches, and those that are the output
of a module or parameter it matches (`head`, `layer1.0`, `layer1.0.conv1.weight`); with the suffix `:in` (`head:in`)
those that are its input, with `:depth` the modules that can be skipped (`layer1.0:depth`). What holds for layers holds
for the blocks around them too in one case: those that hold a frozen layer, or are in one, are not skipped.
"""

import difflib
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated
from weakref import WeakKeyDictionary

from prunus.errors import UserError
from prunus.graph import Graph
from prunus.options import Allowed, check_value


class CountOrShare(Allowed):
    """The numbers of units: an int counts them, a float is a share of the axis; or a dict of these by pattern."""

    def check(self, name: str, value: object, kind: type) -> None:
        """Raise UserError, with the nearest number, for a negative count or a share that is none."""
        for number in value.values() if isinstance(value, dict) else [value]:
            is_share = isinstance(number, float)
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise UserError(f"{name} should be a number, or a dict of them, but is {number!r}.")
            if not 0 <= number <= (1 if is_share else math.inf):
                nearest = "" if math.isnan(number) else f"; the nearest is {1.0 if number > 0 else 0}"
                raise UserError(
                    f"{name} should be an int from 0 (units) or a float from 0 to 1 (a share), but is "
                    f"{number!r}{nearest}."
                )


Bound = Annotated[int | float | dict[str, int | float], CountOrShare()]
FLOOR = 0.1  # as in PruningBench (2024): a layer without units breaks the network, and a tenth costs little
CAP = 1.0


def min_units(
    graph: Graph, floor: Bound = FLOOR, cap: Bound = CAP, freeze: Sequence[str] = ()
) -> dict[str, tuple[int, str]]:
    """Compute the fewest units that each axis may keep.

    Args:
        graph: The graph of the model.
        floor: The fewest units to keep: an int counts units, a float is a share of the axis. A dict gives them by
            pattern; the last pattern that matches holds.
        cap: The most units to remove, in the same form.
        freeze: Patterns of axes that keep all units.

    Returns:
        axis -> (units, reason).

    Raises:
        UserError: A pattern matches nothing (the message names the nearest), or a number is out of range.
    """
    if isinstance(freeze, str):
        raise UserError(f"freeze: expected a list of patterns, got the text {freeze!r}; write [{freeze!r}].")
    names = _names(graph)
    ends = {
        name for name, axis in graph.axes.items() if axis.kind == "depth" and graph.blocks[name].protected
    }
    floors = dict.fromkeys(graph.axes, 0.0) | dict.fromkeys(ends, 1.0)
    floors |= _counts(graph, names, "floor", floor, FLOOR)
    caps = {name: float(axis.size) for name, axis in graph.axes.items()}
    caps |= _counts(graph, names, "cap", cap, CAP)
    frozen = {axis for pattern in freeze for axis in _matching(graph, names, "freeze", pattern)}
    frozen |= {axis for pattern in freeze for axis in _holding(graph, pattern)}
    found = {}
    for name, axis in graph.axes.items():
        bounds = [
            (0, "skipped") if axis.kind == "depth" else (1, "one unit"),
            (
                min(axis.size, math.ceil(floors[name] - 1e-9)),
                "first or last block" if name in ends else "floor",
            ),  # 0.07 * 100 is 7.000000000000001
            (axis.size - min(axis.size, math.floor(caps[name] + 1e-9)), "cap"),
            (axis.size if name in frozen else 0, "frozen"),
        ]
        found[name] = max(bounds, key=lambda bound: bound[0])
    return found


def _counts(
    graph: Graph, names: dict[str, set[str]], what: str, bound: Bound, default: float
) -> dict[str, float]:
    """The units of each axis, not yet rounded."""
    check_value(what, bound, Bound)
    counts: dict[str, float] = {}
    for pattern, number in ({"*": default} | (bound if isinstance(bound, dict) else {"*": bound})).items():
        for axis in _matching(graph, names, what, pattern):
            counts[axis] = number * graph.axes[axis].size if isinstance(number, float) else number
    return counts


def _names(graph: Graph) -> dict[str, set[str]]:
    """All names of each axis, those of inputs with the suffix ":in"."""
    if graph not in _known:  # because searches call this at every check
        _known[graph] = {
            axis: {axis}.union(
                f"{holder}:in" if member.role == "consumes" else holder
                for member in graph.members(axis)
                for holder in holders(member.tensor)
            )
            for axis in graph.axes
        }
    return _known[graph]


_known: WeakKeyDictionary[Graph, dict[str, set[str]]] = WeakKeyDictionary()


def suffix(name: str) -> str:
    """Return what follows a name or pattern of a layer: ":in", ":depth" or nothing."""
    return next((each for each in (":in", ":depth") if name.endswith(each)), "")


def _holding(graph: Graph, pattern: str) -> list[str]:
    """The axes of the blocks that hold a layer which a pattern names, or lie in one."""
    if suffix(pattern) or not any(axis.kind == "depth" for axis in graph.axes.values()):
        return []
    known = {holder for tensor in graph.layouts for holder in holders(tensor)}
    named = [name for name in known if fnmatchcase(name, pattern)]
    return [
        axis
        for axis, block in graph.blocks.items()
        if any(block.holds(name) or f"{block.module}.".startswith(f"{name}.") for name in named)
    ]


def holders(tensor: str) -> list[str]:
    """List the names of a tensor and of the modules around it.

    Args:
        tensor: The tensor's name, such as a.b.weight.

    Returns:
        The names from the longest on: a.b.weight, a.b, a.
    """
    parts = tensor.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _matching(graph: Graph, names: dict[str, set[str]], what: str, pattern: str) -> list[str]:
    """The axes that a pattern selects; none if it matches a layer whose dimensions are all fixed."""

    def matches(name: str) -> bool:
        return suffix(name) == suffix(pattern) and fnmatchcase(name, pattern)

    found = [axis for axis, known in names.items() if any(map(matches, known))]
    if not found:
        there = {
            holder + side for tensor in graph.layouts for holder in holders(tensor) for side in ("", ":in")
        }.union(graph.blocks if suffix(pattern) == ":depth" else ())
        if not any(map(matches, there)):
            near = difflib.get_close_matches(pattern, there.union(names), n=5, cutoff=0.3)
            hint = f" Nearest: {', '.join(near)}." if near else ""
            raise UserError(f"{what} pattern {pattern!r} matches no axis, module or parameter.{hint}")
    return found
