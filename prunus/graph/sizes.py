"""Integers that remember what they are made of: `x.shape[1]`, `self.heads`, and what is computed from them.

A *term* says what an integer is made of: a layout (the size of a dimension), a place (an attribute of the model), a
plain number, or an operation on terms. A `Sized` is an int with a term, and its arithmetic keeps the term. So it is
known at each operator which of its sizes come from where, and no equal value has to be searched for. Source: ours.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex

from prunus.graph.axes import Axis, Product, Sum


@dataclass(frozen=True, slots=True)
class Place:
    """An integer that a model keeps.

    Args:
        module: The name of the module in which it was found first.
        path: The steps to it from the module: names of attributes, keys of dicts, numbers of items.
        value: The integer.
    """

    module: str
    path: tuple[str | int, ...]
    value: int

    def __str__(self) -> str:
        return ".".join(str(step) for step in (self.module, *self.path) if step != "")


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """An integer that was computed from others; `sign` is a key of `OPERATIONS`."""

    sign: str
    left: Term
    right: Term

    def __str__(self) -> str:
        return f"({self.left} {self.sign} {self.right})"


Term = int | Axis | Sum | Product | Place | Made  # a layout stands for its size

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}


def ends(term: Term) -> Iterator[Term]:
    """The layouts, places and numbers that a term is made of, in order."""
    if isinstance(term, Made):
        yield from ends(term.left)
        yield from ends(term.right)
    else:
        yield term


def evaluate(term: Term, value: Callable[[Any], int]) -> int:
    """The value of a term, given the values of layouts and places; raises ZeroDivisionError as Python does."""
    if isinstance(term, int):
        return term
    if isinstance(term, Made):
        return OPERATIONS[term.sign](evaluate(term.left, value), evaluate(term.right, value))
    return value(term)


class Event(NamedTuple):
    """A comparison of a sized integer: its term, what it was compared with, and where.

    Args:
        term: The term of the integer.
        other: The term or the plain number on the other side.
        module: The name of the module that was running.
    """

    term: Term
    other: Any
    module: str


class Journal:
    """The comparisons of sized integers in a forward pass.

    Args:
        module: Returns the name of the module that is running.
    """

    def __init__(self, module: Callable[[], str]):
        self.module = module
        self.equal: list[Event] = []  # comparisons that held
        self.ordered: dict[Event, Callable[[int, int], bool]] = {}  # comparisons by order with plain numbers


class Sized(int):
    """An int with a term. It is taken for an int everywhere, but for `type(n) is int`.

    Code that makes a plain number of it (int(n), math.sqrt(n)) loses the term; the check of the trace finds out.
    """

    term: Term
    journal: Journal

    def __new__(cls, value: int, term: Term, journal: Journal) -> Sized:
        made = int.__new__(cls, value)
        made.term, made.journal = term, journal
        return made

    def __neg__(self) -> Sized:
        return Sized(-plain(self), Made("-", 0, self.term), self.journal)

    def __pos__(self) -> Sized:
        return self

    __trunc__ = __floor__ = __ceil__ = __pos__

    def __round__(self, digits: SupportsIndex = 0, /) -> Sized:
        return self

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        if type(other) is int and other == 2 and modulus is None:
            return self * self
        return self._number(pow(plain(self), other, modulus))

    def __truediv__(self, other: Any) -> Any:
        return self._number(_unwrap(int.__truediv__(plain(self), _unwrap(other))), other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._number(other / plain(self), other)

    def _number(self, value: Any, other: Any = 0) -> Any:
        """A float made from this integer."""
        if not isinstance(value, float):
            return value
        return SizedFloat(value, (self.term, *_terms(other)))

    def __eq__(self, other: object) -> Any:
        same = int.__eq__(self, other) if isinstance(other, int) else NotImplemented
        if same is True:
            term = other.term if isinstance(other, Sized) else other
            self.journal.equal.append(Event(self.term, term, self.journal.module()))
        return same

    def __ne__(self, other: object) -> Any:
        same = self == other
        return same if same is NotImplemented else not same

    __hash__ = int.__hash__

    def __copy__(self) -> Sized:
        return self

    def __deepcopy__(self, memo: Any) -> Sized:
        return self

    def __reduce__(self) -> Any:
        return int, (plain(self),)


class SizedFloat(float):
    """A float computed from sized integers; `origins` are their terms."""

    origins: tuple[Term, ...]

    def __new__(cls, value: float, origins: tuple[Term, ...]) -> SizedFloat:
        made = float.__new__(cls, value)
        made.origins = origins
        return made

    def __reduce__(self) -> Any:
        return float, (float(self),)


def plain(number: int) -> int:
    """The same integer without a term."""
    return int.__int__(number)


def number_text(number: float) -> str:
    """A number as text, the same with and without a term."""
    return int.__repr__(number) if isinstance(number, int) else float.__repr__(number)


def _unwrap(number: Any) -> Any:
    return plain(number) if isinstance(number, Sized) else number


def _terms(number: Any) -> tuple[Term, ...]:
    """The terms that a number depends on."""
    if isinstance(number, Sized):
        return (number.term,)
    return number.origins if isinstance(number, SizedFloat) else ()


def origins(values: Any) -> tuple[Term, ...]:
    """The terms that some numbers depend on, those in lists too."""
    found: list[Term] = []
    for value in values:
        found += origins(value) if isinstance(value, (list, tuple)) else _terms(value)
    return tuple(found)


def _integer_method(sign: str, reflected: bool) -> Any:
    operation = OPERATIONS[sign]

    def method(self: Sized, other: Any) -> Any:
        if isinstance(other, float):
            left, right = (other, plain(self)) if reflected else (plain(self), other)
            return self._number(operation(left, right), other)  # pyright: ignore[reportArgumentType]
        if not isinstance(other, int):
            return NotImplemented
        left, right = (other, self) if reflected else (self, other)
        terms = [n.term if isinstance(n, Sized) else int(n) for n in (left, right)]
        return Sized(operation(plain(left), plain(right)), Made(sign, *terms), self.journal)

    return method


def _order_method(name: str) -> Any:
    usual = getattr(int, name)

    def method(self: Sized, other: Any) -> Any:
        if type(other) is int:
            self.journal.ordered[Event(self.term, other, self.journal.module())] = usual
        return usual(self, other)

    return method


def _float_method(name: str) -> Any:
    usual = getattr(float, name)

    def method(self: SizedFloat, other: Any) -> Any:
        value = usual(self, _unwrap(other))
        return SizedFloat(value, (*self.origins, *_terms(other))) if isinstance(value, float) else value

    return method


for _name, _sign in {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%"}.items():
    setattr(Sized, f"__{_name}__", _integer_method(_sign, reflected=False))
    setattr(Sized, f"__r{_name}__", _integer_method(_sign, reflected=True))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Sized, f"__{_name}__", _order_method(f"__{_name}__"))
for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(SizedFloat, f"__{_name}__", _float_method(f"__{_name}__"))
    setattr(SizedFloat, f"__r{_name}__", _float_method(f"__r{_name}__"))
