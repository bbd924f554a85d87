"""One small rule per ATen operator: how the layouts of its inputs give the layout of its output.

A rule takes the operation `op` (see `Op`) and the operator's own arguments, unifies what must be the
same, and returns one layout per output dimension (a tuple of such lists for several outputs). On the
way it may say
    op.count(n, *layouts, over)  n times the product of these layouts is its multiply-accumulates, summed over `over`
    op.follow(layout, "size", k) its integer argument of this name (element k of it) must follow this layout
    op.mixes = True              its result at one unit depends on the others (norms, reductions)
    op.contracts = True          it sums products over its operands' units (`count` says so too)
    op.role(tensor, dim, role)   how a parameter dimension is used
An operator without a rule fixes every axis it touches, under its own name. Never guess.

What an operator is beside its layouts (a convolution, an activation, what moves a weight) its family says, see
operators.py: `@rule(MM)` is the rule of a whole family, `@rule("mylib::scaled_linear", like="linear")` puts an
operator of another library where `linear` is.

Letters: N batch, C channels, G groups, K contracted, T tokens, D head features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from prunus.graph.axes import Layout
from prunus.graph.op import SCALES, SHIFTS, Op, tensors_in
from prunus.graph.operators import ADDITION, POINTWISE, Family, adopt, look_up, name_of, normal_name

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*operators: str | Family, like: str | None = None) -> Callable[[Rule], Rule]:
    """Register a rule for operators: `@prunus.rule("aten.name")`, `@prunus.rule("mylib::it", like="linear")`.

    operators: names, separated by spaces, with "aten." or "aten::" before them or nothing, with theirs for other
    libraries; in-place forms are included. Or families. like: an operator that they do the same as, but for numbers
    (their arguments in the same order, those read by name under the same names): they are scored, gated and timed as
    that is. Without it, an operator that is in no family ends what would be followed through it.
    Raises UserError if `like` is in no family.
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
    """An operator's name and its rule, in-place forms included; `unknown` where there is none."""
    name = name_of(func)
    found = look_up(RULES, name)
    if found is None and torch.Tag.pointwise in func.tags:
        found = pointwise
    return name, found or unknown


def scalars(func: torch._ops.OpOverload, args: tuple, kwargs: dict) -> tuple[str, ...]:
    """The numbers an operator computes with, as text, so that one that is not a number equals itself.

    Integers count where the operator is elementwise: no sizes there. A real tensor of one number is a number.
    """
    kinds = (int, float) if find(func)[1] is pointwise else (float,)
    args = tuple(
        t.item() if isinstance(t, torch.Tensor) and t.dim() == 0 and not t.is_meta else t for t in args
    )
    return tuple(
        repr(v) for v in [*args, *kwargs.values()] if isinstance(v, kinds) and not isinstance(v, bool)
    )


def unknown(op: Op, *args: Any, **kwargs: Any) -> None:
    """What happens to an operator without a rule."""
    for tensor in tensors_in([*args, *kwargs.values()]):
        op.fix(*op.dims(tensor))


@rule(POINTWISE, "hardswish hardsigmoid clamp_min")  # which torch's tag does not tell in every version
def pointwise(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Aligned dimensions are the same; a broadcast dimension of size 1 carries nothing."""
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
