"""Checks that the options of all methods share: choices are checked, and options without effect are refused."""

import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from prunus.errors import UserError, unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


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


def check_choices(config: object) -> None:
    """Check that every field of a dataclass holds one of the words that its type lists.

    Args:
        config: The options of a method.

    Raises:
        UserError: A field holds another word; the message suggests the nearest.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        value, words = getattr(config, name), list(choices(hint))
        optional = type(None) in typing.get_args(hint)
        if words and value not in words and not (optional and value is None):
            raise unknown(name, str(value), map(str, words))


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
