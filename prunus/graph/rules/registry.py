"""One small rule per ATen operator: how the layouts of its inputs give the layout of its output.

A rule takes the operation `op` (see `Op`) and the operator's own arguments, unifies what must be the
same, and returns one layout per output dimension (a tuple of such lists for several outputs). On the
way it may say
    op.count(n, *layouts, over)  it takes n times the product of these sizes multiply-adds, summed over `over`
    op.follow(layout, "size", k) its integer argument of this name (element k of it) must follow this layout
    op.multiple(layout, 4)       it takes only multiples of 4 as the size of this layout
    op.mixes = True              its result at one unit depends on the others (norms, reductions)
    op.contracts = True          it sums products over its operands' units (`count` says so too)
    op.role(tensor, dim, role)   how a parameter dimension is used
`along` and `broadcast` are the rules of most operators: those that work along some dimensions, and those that join
tensors number by number. An operator without a rule fixes every axis it touches, under its own name, and what comes
after it is followed. Never guess.

All else about an operator (whether it is a convolution, an activation, a move) is stated by its family, see
operators.py: `@rule(MM)` is the rule of a whole family, `@rule("mylib::scaled_linear", like="linear")` puts an
operator of another library into the family of `linear`.

Letters: N batch, C channels, G groups, K contracted, T tokens, D head features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch

from prunus.graph.axes import Layout
from prunus.graph.op import SCALES, SHIFTS, Op, tag_of, tensors_in
from prunus.graph.operators import (
    ADDITION,
    POINTWISE,
    Args,
    Family,
    Kwargs,
    adopt,
    look_up,
    name_of,
    normal_name,
)

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*operators: str | Family, like: str | None = None) -> Callable[[Rule], Rule]:
    """Register a rule for operators: `@prunus.rule("aten.name")`, `@prunus.rule("mylib::it", like="linear")`.

    Args:
        operators: Families, or names separated by spaces: "relu", "aten.relu" or "aten::relu" for torch's,
            "mylib::it" for those of other libraries. In-place forms are included.
        like: An operator that does the same but for the numbers, its arguments in the same order and of the
            same names: the new ones are scored, gated and timed as that is. Without it, an operator in no
            family ends the search for neighbouring layers.

    Returns:
        A decorator that registers the function and returns it.

    Raises:
        UserError: `like` is in no family.
    """
    each = [family.names if isinstance(family, Family) else family.split() for family in operators]
    names = [normal_name(name) for part in each for name in part]

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
            if like is not None:
                adopt(name, like)
        find.cache_clear()
        return function

    return register


@cache
def find(func: torch._ops.OpOverload) -> tuple[str, Rule]:
    """The name and the rule of an operator, in-place forms included; `unknown` if it has no rule."""
    name = name_of(func)
    found = look_up(RULES, name)
    if found is None and torch.Tag.pointwise in func.tags:
        found = pointwise
    return name, found or unknown


def scalars(func: torch._ops.OpOverload, args: Args, kwargs: Kwargs) -> tuple[str, ...]:
    """The numbers with which an operator computes, as text, so that NaN equals itself.

    Integers count if the operator is elementwise, because there they are no sizes. A real tensor without
    dimensions is a number, unless it is followed as a tensor.
    """
    kinds = (int, float) if find(func)[1] is pointwise else (float,)
    args = tuple(
        t.item()
        if isinstance(t, torch.Tensor) and t.dim() == 0 and tag_of(t) is None and not t.is_meta
        else t
        for t in args
    )
    return tuple(
        repr(v) for v in [*args, *kwargs.values()] if isinstance(v, kinds) and not isinstance(v, bool)
    )


def unknown(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Fix every axis that an operator without a rule touches; the sizes of its results stay."""
    for tensor in tensors_in([*args, *kwargs.values()]):
        op.fix(*op.dims(tensor))
    return op.sizes()


def along(op: Op, x: torch.Tensor, over: int | Sequence[int] | None) -> Any:
    """Fix the dimensions along which an operator works (None: all), and carry the others to each result.

    It is for operators that do the same to each unit of the other dimensions, and whose result along `over`
    depends on the places of units: an index, an order, a frequency. A result may lack these dimensions.
    """
    over = range(x.dim()) if over is None or not x.dim() else [over] if isinstance(over, int) else over
    gone = {d % x.dim() for d in over}
    op.fix(*(op.dims(x)[d] for d in gone))
    carried = [
        [n if d in gone else layout for d, (n, layout) in enumerate(zip(sizes, op.dims(x), strict=True))]
        if len(sizes) == x.dim()
        else [layout for d, layout in enumerate(op.dims(x)) if d not in gone]
        for sizes in op.sizes()
    ]
    return tuple(carried)


def broadcast(op: Op, tensors: Iterable[torch.Tensor], role: str | None = None) -> list[Layout]:
    """Unify dimensions that are aligned from the right, except those of size 1; `role`: that of parameters."""
    tensors = list(tensors)
    result: list[Layout] = [1] * max((tensor.dim() for tensor in tensors), default=0)
    for tensor in tensors:
        offset = len(result) - tensor.dim()
        for i, layout in enumerate(op.dims(tensor)):
            if tensor.shape[i] == 1:
                continue
            if result[offset + i] == 1:
                result[offset + i] = layout
            else:
                op.unify(result[offset + i], layout)
            if role is not None:
                op.role(tensor, i, role)
    return result


@rule(POINTWISE, "hardswish hardsigmoid clamp_min")  # some versions of torch do not tag these
def pointwise(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Unify aligned dimensions, except broadcast ones of size 1."""
    tensors = tensors_in([*args, *kwargs.values()])
    met = any(
        tag is not None and tag.data for tag in map(tag_of, tensors)
    )  # otherwise a step towards a weight
    result = broadcast(op, tensors, (SHIFTS if op.is_a(ADDITION) else SCALES) if met else None)
    return (result, result) if isinstance(op.out, tuple) else result
