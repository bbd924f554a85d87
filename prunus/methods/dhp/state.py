"""The state of a DHP search in a checkpoint, and the check that it can be restored."""

from typing import Any, ClassVar

import msgspec

from prunus.errors import FileError, UserError
from prunus.files import Amount, Count, Real, Record, check_json

WHERE = "the state of the search"


class Check(msgspec.Struct, frozen=True):
    """What a search recorded at a check, for the charts.

    Args:
        step: The step.
        ratio: The cost of the units in use, as a share of the original's.
        plan: The share that was planned.
        strength: The strength of the threshold.
        widths: The units in use of every axis.
        latents: The sizes of the latents that are tracked.
    """

    step: Count
    ratio: Real
    plan: Real
    strength: Real
    widths: list[Count]
    latents: list[Amount]


class State(Record, frozen=True, kw_only=True):
    """The state of a search. The keys are those of older versions, so that their checkpoints load.

    Args:
        of: The search's identity.
        done: The number of steps.
        amount: How far the threshold moves at a step.
        strength: The same for a learning rate of one.
        moved: Whether a latent has been zero.
        finished: Whether the search has ended.
        keep: The choice, once it is made.
        left_over: How many units in use were cut to meet the budget.
        records: What was recorded.
        settled: The units that stay, as it looked at the last check.
        push: The gain of the strength.
        kept: The units to which the model is cut.
        factor: The factor of each latent's threshold.
        least_size: The size below which each latent does not shrink.
        stays: Whether each latent is not yet zero for good; a number, because it multiplies.
        felt: The sensitivity of each latent.
        zero_checks: For how many checks each latent has been zero.
    """

    remedy: ClassVar[str] = "Restore a copy of the checkpoint, or search from the start."
    of: str
    done: Count
    amount: Real
    strength: Real
    moved: bool
    finished: bool
    keep: dict[str, list[Count]] | None
    left_over: Count
    records: list[Check]
    settled: list[bool] | None
    push: Real
    kept: dict[str, list[Count]]
    factor: list[Real]
    least_size: list[Real]
    stays: list[Real]
    felt: list[Amount]
    zero_checks: list[Count]


def check_state(state: dict[str, Any], identity: str, units: int, axes: int, tracked: int) -> None:
    """Check a state.

    Args:
        state: Plain JSON.
        identity: The identity of the search that it is to be restored in.
        units: The number of its latents.
        axes: The number of its axes.
        tracked: The number of latents that it records.

    Raises:
        UserError: The state is of another search.
        FileError: It is damaged.
    """
    found = check_json(state, State, WHERE)
    if found.of != identity:
        raise UserError(
            f"a state of {found.of} does not fit a search of {identity}; make the search as before."
        )
    lists: list[tuple[str, list[Any], int]] = [
        ("factor", found.factor, units),
        ("least_size", found.least_size, units),
        ("stays", found.stays, units),
        ("felt", found.felt, units),
        ("zero_checks", found.zero_checks, units),
        *([("settled", found.settled, units)] if found.settled is not None else []),
        *((f"records[{number}].widths", each.widths, axes) for number, each in enumerate(found.records)),
        *((f"records[{number}].latents", each.latents, tracked) for number, each in enumerate(found.records)),
    ]
    for name, values, wanted in lists:
        if len(values) != wanted:
            raise FileError(
                f"{WHERE} is damaged at $.{name}: Expected {wanted} values, there are {len(values)}. {State.remedy}"
            )
