"""What must stay whatever the scores say: floors, caps and frozen axes, by number or by name pattern.

A pattern is a shell pattern (`layer1*`). It names the axes it matches by their own name, and those that are the
output of a module or parameter it matches (`head`, `layer1.0`, `layer1.0.conv1.weight`); with `:in` behind it
(`head:in`) those that are its input.
"""

import difflib
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from weakref import WeakKeyDictionary

from prunus.errors import UserError
from prunus.graph import Graph

Rule = int | float | dict[str, int | float]
FLOOR = 0.1  # as in PruningBench (2024): a layer cut to nothing breaks the network, and a tenth costs little
CAP = 1.0


def least(
    graph: Graph, floor: Rule = FLOOR, cap: Rule = CAP, freeze: Sequence[str] = ()
) -> dict[str, tuple[int, str]]:
    """The fewest units each axis may keep, and why: axis -> (units, reason).

    floor: the least kept, cap: the most removed; an int counts units, a float is a share of the axis. A dict gives
    them by pattern, the last that matches holds. freeze: patterns of axes that keep everything.
    Raises UserError for a pattern that matches nothing, naming the nearest, and for numbers out of range.
    """
    if isinstance(freeze, str):
        raise UserError(f"freeze: expected a list of patterns, got the text {freeze!r}.")
    names = _names(graph)
    floors = _counts(graph, names, "floor", floor, FLOOR)
    caps = _counts(graph, names, "cap", cap, CAP)
    frozen = {axis for pattern in freeze for axis in _matching(graph, names, "freeze", pattern)}
    found = {}
    for name, axis in graph.axes.items():
        bounds = [
            (1, "one unit"),
            (min(axis.size, math.ceil(floors[name] - 1e-9)), "floor"),  # 0.07 * 100 is 7.000000000000001
            (axis.size - min(axis.size, math.floor(caps[name] + 1e-9)), "cap"),
            (axis.size if name in frozen else 0, "frozen"),
        ]
        found[name] = max(bounds, key=lambda bound: bound[0])
    return found


def _counts(
    graph: Graph, names: dict[str, set[str]], what: str, rule: Rule, usual: float
) -> dict[str, float]:
    """Axis -> units, not yet rounded."""
    counts = {}
    for pattern, number in ({"*": usual} | (rule if isinstance(rule, dict) else {"*": rule})).items():
        is_share = isinstance(number, float)
        if not 0 <= number <= (1 if is_share else math.inf):
            raise UserError(
                f"{what} {number!r}: expected an int from 0 (units) or a float from 0 to 1 (a share)."
            )
        for axis in _matching(graph, names, what, pattern):
            counts[axis] = number * graph.axes[axis].size if is_share else number
    return counts


def _names(graph: Graph) -> dict[str, set[str]]:
    """Axis -> every name it goes by; inputs with ":in" behind."""
    if graph not in _known:  # searches ask at every check
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


def holders(tensor: str) -> list[str]:
    """The tensor's name and those of the modules around it: a.b.weight, a.b, a."""
    parts = tensor.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _matching(graph: Graph, names: dict[str, set[str]], what: str, pattern: str) -> list[str]:
    """The axes a pattern names; none where it names a layer all of whose dimensions are fixed."""

    def matches(name: str) -> bool:
        return name.endswith(":in") == pattern.endswith(":in") and fnmatchcase(name, pattern)

    found = [axis for axis, known in names.items() if any(map(matches, known))]
    if not found:
        there = {
            holder + side for tensor in graph.layouts for holder in holders(tensor) for side in ("", ":in")
        }
        if not any(map(matches, there)):
            near = difflib.get_close_matches(pattern, there.union(names), n=5, cutoff=0.3)
            hint = f" Nearest: {', '.join(near)}." if near else ""
            raise UserError(f"{what} pattern {pattern!r} matches no axis, module or parameter.{hint}")
    return found
