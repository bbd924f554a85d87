"""The state of a PASS search in a checkpoint, and the check that it can be restored."""

from typing import Any, ClassVar

import msgspec

from prunus.errors import FileError
from prunus.files import Count, Real, Record, check_json

WHERE = "the state of the search"


class Step(msgspec.Struct, frozen=True):
    """What a search recorded at a step, for the charts: the widths that are kept, and their share of the cost."""

    step: Count
    widths: list[Count]
    ratio: Real


class State(Record, frozen=True, kw_only=True):
    """The state of a search.

    Args:
        done: The number of steps.
        records: What was recorded.
        flips: How many units' masks changed, by step.
        tried: The snapshots: step and score.
        best: The units' scores at the best snapshot.
    """

    remedy: ClassVar[str] = "Restore a copy of the checkpoint, or search from the start."
    done: Count
    records: list[Step]
    flips: list[Count]
    tried: list[tuple[Count, Real]]
    best: list[Real] | None


def check_state(state: dict[str, Any], units: int, axes: int) -> None:
    """Check a state.

    Args:
        state: Plain JSON.
        units: The number of units of the search that it is to be restored in.
        axes: The number of its axes.

    Raises:
        FileError: The state is damaged, or of another search.
    """
    found = check_json(state, State, WHERE)
    lists: list[tuple[str, list[Any], int]] = [
        *([("best", found.best, units)] if found.best is not None else []),
        *((f"records[{number}].widths", each.widths, axes) for number, each in enumerate(found.records)),
    ]
    for name, values, wanted in lists:
        if len(values) != wanted:
            raise FileError(
                f"{WHERE} is damaged at $.{name}: Expected {wanted} values, there are {len(values)}. {State.remedy}"
            )
