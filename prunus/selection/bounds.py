"""Units that stay whatever the scores are: floors, caps, and axes that stay whole."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated

from prunus.errors import UserError
from prunus.graph import KINDS, Graph, lies_in
from prunus.options import Allowed, check_value
from prunus.selection.patterns import holders, named_axes


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
    graph: Graph,
    floor: Bound = FLOOR,
    cap: Bound = CAP,
    freeze: Sequence[str] = (),
    only: Sequence[str] = (),
) -> dict[str, tuple[int, str]]:
    """Compute the fewest units that each axis may keep.

    Of blocks (`Graph.deep`) the first and the last stay, and all that are in them, and those that hold a frozen layer;
    floors and caps hold for the blocks that a pattern names.

    Args:
        graph: The graph of the model.
        floor: The fewest units to keep: an int counts units, a float is a share of the axis. A dict gives them by
            pattern (patterns.py); the last pattern that matches holds, and "*" where no other does.
        cap: The most units to remove, in the same form.
        freeze: Patterns of axes that keep all units.
        only: Patterns of the axes that may shrink. Without any, all may but those that rotary position embeddings
            couple, because the model computes its angles from their number.

    Returns:
        axis -> (units, reason).

    Raises:
        UserError: A pattern matches nothing (the message names the nearest), a number is out of range, or nothing is
            left that may shrink.
    """
    blocks = {name: axis for name, axis in graph.axes.items() if axis.kind == "depth"}
    ends = {name: 1 for name in blocks if graph.blocks[name].protected}
    floors = _counts(graph, "floor", floor, FLOOR, dict.fromkeys(blocks, 0) | ends)
    caps = _counts(graph, "cap", cap, CAP, dict.fromkeys(blocks, 1))
    whole = _whole(graph, freeze, only)
    found = {}
    for name, axis in graph.axes.items():
        bounds = [
            (0, "skipped") if name in blocks else graph.leasts.get(name, (1, "one unit")),
            (
                min(axis.size, math.ceil(floors[name] - 1e-9)),  # 0.07 * 100 is 7.000000000000001
                "first or last block" if name in ends else "floor",
            ),
            (axis.size - min(axis.size, math.floor(caps[name] + 1e-9)), "cap"),
            (axis.size if name in whole else 0, whole.get(name, "")),
        ]
        found[name] = max(bounds, key=lambda bound: bound[0])
    return found


def _whole(graph: Graph, freeze: Sequence[str], only: Sequence[str]) -> dict[str, str]:
    """The axes that keep all units, with the reasons."""
    frozen = named_axes(graph, "freeze", freeze)
    frozen = {axis: pattern for pattern in freeze for axis in _holding(graph, pattern)} | frozen
    chosen = named_axes(graph, "only", only)
    if only and not chosen.keys() - frozen.keys():
        raise UserError(f"only={list(only)} with freeze={list(freeze)} leaves no axis that may shrink.")
    unasked = dict.fromkeys(graph.axes.keys() - chosen, f"only {', '.join(only)} may shrink")
    return (unasked if only else dict.fromkeys(graph.rotary, ROTARY)) | {
        axis: f"frozen by {pattern!r}" for axis, pattern in frozen.items()
    }


ROTARY = (
    "coupled by rotary position embeddings, whose angles follow its width; only=['head_dim'] lets it shrink"
)


def _holding(graph: Graph, pattern: str) -> list[str]:
    """The axes of the blocks that hold a layer which a pattern names, or lie in one: what is frozen is not skipped."""
    if pattern in KINDS or not any(axis.kind == "depth" for axis in graph.axes.values()):
        return []
    known = {holder for tensor in graph.layouts for holder in holders(tensor)}
    named = [name for name in known if fnmatchcase(name, pattern)]
    return [
        axis
        for axis, block in graph.blocks.items()
        if any(block.holds(name) or lies_in(block.module, name) for name in named)
    ]


def _counts(
    graph: Graph, what: str, bound: Bound, default: float, of_blocks: Mapping[str, int]
) -> dict[str, float]:
    """The units of each axis, not yet rounded; of_blocks: those of blocks, unless a pattern names them."""
    check_value(what, bound, Bound)
    by_pattern = dict(bound) if isinstance(bound, Mapping) else {}
    general = by_pattern.pop("*", default) if isinstance(bound, Mapping) else bound
    numbers = dict.fromkeys(graph.axes, general) | dict(of_blocks)
    for pattern, number in by_pattern.items():
        numbers |= dict.fromkeys(named_axes(graph, what, [pattern]), number)
    return {
        name: number * graph.axes[name].size if isinstance(number, float) else number
        for name, number in numbers.items()
    }
