"""Options and their checks: what an option takes stands in its type, and is checked when the options are made.

    @dataclass(frozen=True, kw_only=True)
    class Config(Checked):
        batches: Count = 32                                 # a whole number from 1
        ramp: Annotated[float, Range(0.05, 1)] = 0.7
        order: Literal["once", "forward"] = "once"
        epochs: Epochs | None = None                        # or None

The settings of a run, the recipe of a training, the options of methods and of searches are such classes; so the same
sentence answers Python and the command line, before anything is read or written.
"""

import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Annotated, Any

from prunus.errors import UserError, unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Allowed(ABC):
    """The values that an option takes, as an annotation of its type."""

    @abstractmethod
    def check(self, name: str, value: object, kind: type) -> None:
        """Raise UserError if `value`, for the option `name` of type `kind`, is not among them."""


@dataclass(frozen=True)
class Range(Allowed):
    """The numbers from one to another, both included.

    Args:
        least: The smallest number.
        most: The largest number; infinity for any that is finite.
        above: Whether `least` itself is too small.
        below: Whether `most` itself is too large.
        hint: What to give instead; None: the nearest number in the range.
    """

    least: float
    most: float = math.inf
    above: bool = False
    below: bool = False
    hint: str | None = None

    def check(self, name: str, value: object, kind: type) -> None:
        """Raise UserError, with the nearest number in the range, unless `value` is a finite number in it."""
        whole = kind is int
        is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        if is_number and self._holds(typing.cast(float, value)):
            return
        raise UserError(
            f"{name} should be {self._words(whole)}, but is {value!r}{self._advice(value, whole)}."
        )

    def _holds(self, value: float) -> bool:
        after = value > self.least if self.above else value >= self.least
        before = value < self.most if self.below or self.most == math.inf else value <= self.most
        return after and before

    def _words(self, whole: bool) -> str:
        number = "a whole number" if whole else "a number" if self.most < math.inf else "a finite number"
        least = f" above {self.least:g}" if self.above else f" from {self.least:g}"
        to = " and below" if self.below else " and at most" if self.above else " to"
        most = f"{to} {self.most:.10g}"
        return number + least + (most if self.most < math.inf else "")

    def _advice(self, value: object, whole: bool) -> str:
        """Name the nearest number in the range, if there is one."""
        if self.hint is not None:
            return f"; {self.hint}"
        if not isinstance(value, Real) or value != value:  # as nan is
            return ""
        nearest = min(max(typing.cast(float, value), self.least), self.most)
        nearest = math.floor(nearest + 0.5) if whole and math.isfinite(nearest) else nearest
        return f"; the nearest is {nearest if whole else f'{nearest:.10g}'}" if self._holds(nearest) else ""


Count = Annotated[int, Range(1)]
Epochs = Annotated[float, Range(0)]  # fractions count
Seed = Annotated[int, Range(0, 2**32 - 1)]  # of numpy
Pixels = Annotated[int, Range(1, 2**14)]  # a side; larger images do not fit into memory
Share = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0, 100)]  # a learning rate; nothing trains with a larger one


class Checked:
    """A dataclass whose fields are checked when it is made; a subclass with a `__post_init__` calls this one first."""

    def __post_init__(self):
        check_values(typing.cast("DataclassInstance", self))


def check_values(config: "DataclassInstance") -> None:
    """Check that every field of a dataclass holds a value that its type allows.

    Args:
        config: The options.

    Raises:
        UserError: A number is out of its range, or a word is unknown; the message names the nearest.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        check_value(field.name, getattr(config, field.name), hints[field.name])


def check_value(name: str, value: object, hint: Any) -> None:
    """Check a value against a type: its ranges, its words, yes or no, a list instead of a text.

    Args:
        name: The name of the option.
        value: Its value.
        hint: Its type, with annotations.

    Raises:
        UserError: The type does not allow the value.
    """
    parts = list(alternatives(hint))
    if value is None and is_optional(hint):
        return
    words = list(choices(hint))
    if words and value not in words:
        raise unknown(name, str(value), map(str, words))
    for kind, allowed in parts:
        for each in allowed:
            each.check(name, value, kind)
        if kind is bool and not isinstance(value, bool):
            raise UserError(f"{name} should be True or False, but is {value!r}.")
        if typing.get_origin(kind) is tuple and isinstance(value, str):
            raise UserError(
                f"{name} should be a list of texts, but is the text {value!r}; write [{value!r}]."
            )


def is_optional(hint: Any) -> bool:
    """Return whether a type allows None.

    Args:
        hint: A type, or a union of types.

    Returns:
        Whether one of them is that of None.
    """
    return type(None) in typing.get_args(hint)


def alternatives(hint: Any) -> Iterator[tuple[Any, list[Allowed]]]:
    """List the members of a union of types, each with what its annotations allow.

    Args:
        hint: A type, or a union of types.

    Yields:
        The type without annotations, and those of its annotations that say which values are allowed.
    """
    origin = typing.get_origin(hint)
    if origin is Annotated:
        kind, *notes = typing.get_args(hint)
        yield kind, [note for note in notes if isinstance(note, Allowed)]
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from alternatives(part)
    else:
        yield hint, []


def choices(hint: object) -> Iterator[object]:
    """List the values that a type hint allows by name.

    Args:
        hint: A type, or a union of types.

    Returns:
        The values of its Literals; nothing for other types.
    """
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is typing.Literal:
            yield from typing.get_args(part)


def reject_unused(config: "DataclassInstance", rules: Sequence[tuple[str, bool, Sequence[str]]]) -> None:
    """Check that no option is set that has no effect given the others.

    Args:
        config: The options of a method, a dataclass.
        rules: For each rule its condition in words, whether it holds, and the options that then have no effect.

    Raises:
        UserError: Such an option differs from its default.
    """
    defaults = {field.name: field.default for field in fields(config)}
    for condition, holds, names in rules:
        unused = [name for name in names if holds and getattr(config, name) != defaults[name]]
        if unused:
            raise UserError(f"with {condition} there is no use for {', '.join(unused)}; leave that out.")


def no_preview(method: str, by: str, other: str) -> UserError:
    """Make the error for a dry run of a method that decides only while it trains or searches.

    Args:
        method: The method's name.
        by: The way in which it decides, for example "training".
        other: What to preview instead.

    Returns:
        The error, for the caller to raise.
    """
    return UserError(
        f"{method} decides by {by} what is removed, so there is nothing to show before. See what can be removed with "
        f"`prunus inspect`, or preview {other}."
    )
