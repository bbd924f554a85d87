"""Finding methods by name, and setting their options.

The folder prunus/methods is the registry: every file or folder in it is a method of that name. A user's own method is
named "package.module:prune". The fields of its Config are its options, set by `name=value`; `a.b=value` sets a field of
a field that is itself a dataclass, `a=1,2,3` sets a tuple.
"""

import contextlib
import dataclasses
import importlib
import io
import keyword
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import tyro

from prunus import methods
from prunus.errors import UserError, unknown
from prunus.methods._contract import Options, Pruned, Run
from prunus.options import choices, is_optional
from prunus.selection import Budget, Sparsity
from prunus.specs import user_object
from prunus.tasks import Task

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Method:
    """A method.

    Args:
        name: Its name.
        doc: Its docstring, which names the paper.
        config_class: The class of its options.
        prune: prune(task, limit, config, run) returns its choice.
    """

    name: str
    doc: str
    config_class: type[Options]
    prune: Callable[[Task, Any, Any, Run], Pruned]

    @property
    def limit(self) -> type[Budget] | type[Sparsity]:
        """The class of limit that the method takes: Budget or Sparsity."""
        return Budget if self.config_class.removes == "units" else Sparsity

    def check(self, limit: Budget | Sparsity) -> None:
        """Raise UserError, saying what to give instead, if the method takes limits of the other class."""
        if isinstance(limit, self.limit):
            return
        others = ", ".join(name for name in names() if isinstance(limit, find(name).limit))
        if self.limit is Budget:
            raise UserError(
                f"method {self.name} removes units and takes a budget, such as --budget macs=0.5, not a sparsity. "
                f"Methods that take a sparsity: {others}."
            )
        raise UserError(
            f"method {self.name} sets single weights to zero, which saves no multiply-adds by itself: it takes "
            f"--sparsity 0.8 (the share of zeros), not the budget {limit}. Methods that take a budget: {others}."
        )


def names() -> list[str]:
    """List the names of all methods.

    Returns:
        The names, sorted. A method whose name is a Python keyword stands in a file with an underscore after it.
    """
    found = [module.name for module in pkgutil.iter_modules(methods.__path__)]
    return sorted(name.rstrip("_") for name in found if not name.startswith("_"))


def find(name: str) -> Method:
    """Find a method.

    Args:
        name: The name of a method, or "package.module:prune" for a user's own.

    Returns:
        The method.

    Raises:
        UserError: There is no such method (the message names the nearest), or its module lacks a Config that derives
            from `Options`.
    """
    if ":" in name:
        return _find_own(name)
    if name not in names():
        raise unknown("method", name, names())
    file = f"{name}_" if keyword.iskeyword(name) else name
    module = importlib.import_module(f"prunus.methods.{file}")
    doc = sys.modules[module.prune.__module__].__doc__ or ""
    return Method(name, doc, module.Config, module.prune)


def _find_own(name: str) -> Method:
    prune = user_object(name, "method", names())
    module = sys.modules[prune.__module__]
    config_class = vars(module).get("Config")
    if not (isinstance(config_class, type) and issubclass(config_class, Options)):
        raise UserError(
            f"{name}: its module should define a class Config, a frozen dataclass that derives from "
            "prunus.methods.Units or prunus.methods.Weights."
        )
    return Method(name, module.__doc__ or "", config_class, prune)


def configure(config_class: type[T], pairs: Iterable[str], kind: str) -> T:
    """Make options from texts; options that are not named have their defaults.

    Args:
        config_class: The class of the options.
        pairs: Texts such as "batches=8", "how=uniform".
        kind: The word for an option in error messages.

    Returns:
        An instance of `config_class`.

    Raises:
        UserError: A name is unknown (the message names the nearest), or a value does not fit.
    """
    known = dict(option_types(config_class))
    arguments: list[str] = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise UserError(f"expected name=value for {kind}, got {pair!r}.")
        if name not in known:
            raise unknown(kind, name, known)
        words = [str(word) for word in choices(known[name])]
        if words and value not in words and not (value == "None" and is_optional(known[name])):
            raise unknown(name, value, words)
        if known[name] is bool and value.capitalize() in ("True", "False"):
            value = value.capitalize()
        many = typing.get_origin(known[name]) is tuple
        argument = [f"--{name}", *(value.split(",") if many else [value])]
        read(config_class, argument, f"{kind}: {name} should be {type_in_words(known[name])}, not {value!r}")
        arguments += argument
    return read(config_class, arguments, f"{kind}: {', '.join(pairs)} do not go together")


def option_types(config_class: type, prefix: str = "") -> Iterator[tuple[str, object]]:
    """List the options of a class and their types.

    Args:
        config_class: The class.
        prefix: A prefix of all names.

    Yields:
        Name and type; options of a field that is a dataclass are named field.option.
    """
    hints = typing.get_type_hints(config_class)
    for name in (field.name for field in dataclasses.fields(config_class)):
        hint = hints[name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from option_types(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def type_in_words(hint: object) -> str:
    """Write a field's type in words.

    Args:
        hint: The type.

    Returns:
        For example `int`, `l1 | l2`, `float | None`, `ones | norms | None`.
    """
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(
            "None" if part is type(None) else type_in_words(part) for part in typing.get_args(hint)
        )
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def read(config_class: type[T], arguments: list[str], complaint: str) -> T:
    """Make a `config_class` from command-line arguments with tyro, and raise its errors as UserError."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(config_class, args=arguments, config=(tyro.conf.FlagConversionOff,))
    except SystemExit as error:
        # the options' own check, raised while they are made, says more than the type
        own = re.search(
            rf"Error parsing {config_class.__name__}: (.+?)\n\s*(?:\n|[-─]{{9}})", said.getvalue(), re.S
        )
        raise UserError(
            " ".join(own.group(1).replace("│", " ").split()) if own else f"{complaint}."
        ) from error
