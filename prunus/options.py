"""What the options of methods have in common: choices are checked, and what would have no effect is refused."""

import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from prunus.errors import UserError, unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def choices(hint: object) -> Iterator[object]:
    """The values a type hint allows by name: those of its Literals; none for other types."""
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is typing.Literal:
            yield from typing.get_args(part)


def check_choices(config: object) -> None:
    """Raise UserError, naming the nearest, if a field of a dataclass is none of the words its type lists."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value, words = getattr(config, name), list(choices(hint))
        optional = type(None) in typing.get_args(hint)
        if words and value not in words and not (optional and value is None):
            raise unknown(name, str(value), map(str, words))


def refuse_idle(config: "DataclassInstance", idle: Sequence[tuple[str, bool, Sequence[str]]]) -> None:
    """Raise UserError if an option is set that nothing is left to act on.

    idle: in words when that is, whether it is so, and which options then have no effect.
    """
    usual = {field.name: field.default for field in fields(config)}
    for when, is_so, names in idle:
        unused = [name for name in names if is_so and getattr(config, name) != usual[name]]
        if unused:
            raise UserError(f"with {when} there is no use for {', '.join(unused)}; leave that out.")


def nothing_before(method: str, by: str, other: str) -> UserError:
    """What `at_once` of a Config raises where nothing is known before."""
    return UserError(
        f"{method} finds what goes by {by}, so there is nothing to show before. See what can go at all with `prunus "
        f"inspect`, or preview {other}."
    )
