"""One small rule per ATen operator: how the layouts of its inputs give the layout of its output.

A rule takes the operation `op` (see `Op`) and the operator's own arguments, unifies what must be the
same, and returns one layout per output dimension (a tuple of such lists for several outputs). On the
way it may say
    op.count(n, *layouts, over)  it takes n times the product of these sizes multiply-adds, summed over `over`
    op.follow(layout, "size", k) its integer argument of this name (element k of it) must follow this layout
    op.mixes = True              its result at one unit depends on the others (norms, reductions)
    op.contracts = True          it sums products over its operands' units (`count` says so too)
    op.role(tensor, dim, role)   how a parameter dimension is used
An operator without a rule fixes every axis it touches, under its own name. Never guess.

All else about an operator (whether it is a convolution, an activation, a move) is stated by its family, see
operators.py: `@rule(MM)` is the rule of a whole family, `@rule("mylib::scaled_linear", like="linear")` puts an
operator of another library into the family of `linear`.

Letters: N batch, C channels, G groups, K contracted, T tokens, D head features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from prunus.graph.axes import Layout
from prunus.graph.op import SCALES, SHIFTS, Op, tensors_in
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
    dimensions is a number.
    """
    kinds = (int, float) if find(func)[1] is pointwise else (float,)
    args = tuple(
        t.item() if isinstance(t, torch.Tensor) and t.dim() == 0 and not t.is_meta else t for t in args
    )
    return tuple(
        repr(v) for v in [*args, *kwargs.values()] if isinstance(v, kinds) and not isinstance(v, bool)
    )


def unknown(op: Op, *args: Any, **kwargs: Any) -> None:
    """Fix every axis that an operator without a rule touches."""
    for tensor in tensors_in([*args, *kwargs.values()]):
        op.fix(*op.dims(tensor))


@rule(POINTWISE, "hardswish hardsigmoid clamp_min")  # some versions of torch do not tag these
def pointwise(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Unify aligned dimensions, except broadcast ones of size 1."""
    out = op.out[0] if isinstance(op.out, tuple) else op.out
    result: list[Layout] = [1] * out.dim()
    role = SHIFTS if op.is_a(ADDITION) else SCALES
    for tensor in tensors_in([*args, *kwargs.values()]):
        offset = out.dim() - tensor.dim()
        for i, layout in enumerate(op.dims(tensor)):
            if tensor.shape[i] == 1:
                continue
            if result[offset + i] == 1:
                result[offset + i] = layout
            else:
                op.unify(result[offset + i], layout)
            op.role(tensor, i, role)
    return (result, result) if isinstance(op.out, tuple) else result
