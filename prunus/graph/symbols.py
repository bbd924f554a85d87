"""Sized integers on their way through torch: as symbolic integers, which reach operators with their terms.

Torch hands each operator plain integers, whatever a function was called with. Its symbolic integers, made for shapes
that are not known yet, pass through all of its C++ code instead, with the arithmetic done there. Here each has a value,
so nothing stays open: every question is answered by it, and code takes the same way as with plain integers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from prunus.graph.sizes import Made, Sized, Term, plain

Symbol = torch.SymInt


class Node:
    """The inside of a symbolic integer or truth value, as torch asks it (the protocol of torch's SymNode).

    Args:
        value: Its value.
        term: What it is made of; None if torch took an integer of its own for it, such as the size of a tensor.
    """

    def __init__(self, value: Any, term: Term | None):
        self.value, self.term = value, term

    def is_int(self) -> bool:
        return not isinstance(self.value, bool)

    def is_bool(self) -> bool:
        return isinstance(self.value, bool)

    def _no(self) -> bool:
        return False

    is_float = is_nested_int = is_constant = _no

    def _yes(self) -> bool:
        return True

    has_hint = is_symbolic = _yes

    def _unknown(self) -> None:
        return None

    maybe_as_int = maybe_as_bool = maybe_as_float = constant_int = constant_bool = _unknown

    def clone(self) -> Node:
        return self

    def wrap_int(self, value: int) -> Node:
        return Node(value, None)

    def wrap_bool(self, value: bool) -> Node:
        return Node(value, None)

    def _answer(self, *_: Any) -> Any:
        return self.value

    guard_int = guard_bool = int_ = bool_ = _answer
    expect_true = expect_size = guard_size_oblivious = _answer
    guard_or_false = guard_or_true = statically_known_true = _answer

    def str(self) -> str:
        return str(self.value)

    _graph_repr = str

    def neg(self) -> Node:
        return Node(-self.value, None if self.term is None else Made("-", 0, self.term))


def _arithmetic(sign: str, operation: Callable[[int, int], int]) -> Callable[[Node, Node], Node]:
    def computed(left: Node, right: Node) -> Node:
        value = operation(left.value, right.value)
        if left.term is None or right.term is None:
            return Node(value, None)
        return Node(value, Made(sign, left.term, right.term))

    return computed


def _question(operation: Callable[[Any, Any], Any]) -> Callable[[Node, Node], Node]:
    return lambda left, right: Node(bool(operation(left.value, right.value)), None)


def _choice(operation: Callable[[int, int], int]) -> Callable[[Node, Node], Node]:
    return lambda left, right: left if operation(left.value, right.value) == left.value else right


for _name, _sign, _operation in (
    ("add", "+", operator.add),
    ("sub", "-", operator.sub),
    ("mul", "*", operator.mul),
    ("floordiv", "//", operator.floordiv),
    ("int_floordiv", "//", operator.floordiv),
    ("mod", "%", operator.mod),
):
    setattr(Node, _name, _arithmetic(_sign, _operation))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Node, _name, _question(getattr(operator, _name)))
for _name in ("and_", "or_"):
    setattr(Node, _name, _question(getattr(operator, _name)))
    setattr(Node, f"sym_{_name.rstrip('_')}", getattr(Node, _name))
Node.sym_min, Node.sym_max = _choice(min), _choice(max)  # pyright: ignore[reportAttributeAccessIssue]
Node.sym_not = lambda self: Node(not self.value, None)  # pyright: ignore[reportAttributeAccessIssue]


def symbolic(value: Any) -> Any:
    """Arguments of a function with symbols in the place of integers, those in lists, tuples and slices too.

    Integers below 2 stay plain: no axis has such a size.
    """
    if isinstance(value, int):
        if isinstance(value, bool) or -2 < plain(value) < 2:
            return value
        term = value.term if isinstance(value, Sized) else value
        return Symbol(Node(plain(value), term))  # pyright: ignore[reportArgumentType]
    if isinstance(value, (list, tuple)):
        return (
            type(value)(map(symbolic, value)) if type(value) in (list, tuple) else tuple(map(symbolic, value))
        )
    if isinstance(value, slice):
        return slice(symbolic(value.start), symbolic(value.stop), symbolic(value.step))
    return value


def concrete(value: Any) -> Any:
    """Arguments of an operator with plain integers in the place of symbols."""
    if isinstance(value, Symbol):
        return value.node.value
    if isinstance(value, (list, tuple)) and any(isinstance(item, Symbol) for item in value):
        return type(value)(map(concrete, value))
    return value


def terms_of(args: tuple[Any, ...]) -> dict[tuple[int, int | None], Term]:
    """The terms of the symbols among an operator's arguments, by the argument's place and the element in it."""
    found: dict[tuple[int, int | None], Term | None] = {}
    for place, value in enumerate(args):
        if isinstance(value, Symbol):
            found[place, None] = value.node.term
        elif isinstance(value, (list, tuple)):
            found |= {(place, i): item.node.term for i, item in enumerate(value) if isinstance(item, Symbol)}
    return {where: term for where, term in found.items() if term is not None}
