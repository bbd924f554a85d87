"""The types of the commands' parameters: what tyro shows of them in the help, and in place of their defaults."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import UseAppendAction, arg

from prunus.errors import UserError
from prunus.selection import Budget, Sparsity
from prunus.zoo import Interpolation

ADVISED = "(default: the task's recommendation)"
Minutes = Annotated[
    float | None, arg(metavar="FLOAT", help_behavior_hint="(default: as many as the epochs take)")
]
Whole = Annotated[int | None, arg(metavar="INT", help_behavior_hint=ADVISED)]
Total = Annotated[
    float | None,
    arg(metavar="FLOAT", help_behavior_hint="(default: only --epochs counts; 10 in a comparison)"),
]
Real = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint=ADVISED)]
Precision = Annotated[Literal["bf16", "no"] | None, arg(metavar="bf16|no", help_behavior_hint=ADVISED)]
Runtime = Annotated[
    Literal["torch", "onnxruntime"] | None,
    arg(metavar="torch|onnxruntime", help_behavior_hint="(default: torch, with latency_ms)"),
]
Repairs = Annotated[
    Literal["order", "once", "off"] | None,
    arg(metavar="order|once|off", help_behavior_hint="(default: order, where units are removed)"),
]
AS_EXPECTED = "(default: as the model expects)"
Size = Annotated[int | None, arg(metavar="INT", help_behavior_hint=AS_EXPECTED)]
Channels = Annotated[tuple[float, ...] | None, arg(metavar="FLOAT ...", help_behavior_hint=AS_EXPECTED)]
Part = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint=AS_EXPECTED)]
Resizing = Annotated[
    Interpolation | None, arg(metavar="|".join(get_args(Interpolation)), help_behavior_hint=AS_EXPECTED)
]
Transform = Annotated[str | None, arg(metavar="SPEC", help_behavior_hint="(default: none)")]
Readers = Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: one for each core)")]
Threads = Annotated[
    int | None, arg(metavar="INT", help_behavior_hint="(default: one for each core, or OMP_NUM_THREADS)")
]
Multiple = Annotated[
    int | None, arg(metavar="INT", help_behavior_hint="(default: multiples that are fast on the hardware)")
]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: train from scratch)")]
Initial = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: the model's first)")]
Patterns = Annotated[tuple[str, ...], arg(metavar="PATTERN ...", help_behavior_hint="(default: none)")]
Names = Annotated[tuple[str, ...], arg(metavar="NAME ...")]
Seeds = Annotated[tuple[int, ...], arg(metavar="INT ...")]
Limit = Annotated[
    str | None,
    arg(metavar="COST=LIMIT[,...]", help_behavior_hint="(default: macs=0.5, for methods that remove units)"),
]
Share = Annotated[
    float | None,
    arg(metavar="FLOAT", help_behavior_hint="(default: 0.8, for methods that remove single weights)"),
]
Pairs = Annotated[tuple[str, ...], UseAppendAction, arg(name="set", metavar="NAME=VALUE")]
TaskPairs = Annotated[tuple[str, ...], UseAppendAction, arg(name="task-set", metavar="NAME=VALUE")]
RecipePairs = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="[PART.]NAME=VALUE")]
Spec = Annotated[str | None, arg(metavar="SPEC", help_behavior_hint="(the task's own, if it has one)")]


def parse_limit(budget: str | None, sparsity: float | None) -> Budget | Sparsity | None:
    """Parse --budget or --sparsity; None if neither was given."""
    if budget is not None and sparsity is not None:
        raise UserError("give --budget (methods that remove units) or --sparsity (single weights), not both.")
    if sparsity is not None:
        return Sparsity(sparsity)
    return None if budget is None else Budget.parse(budget)
