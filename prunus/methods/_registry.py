"""The methods there are, and their options.

The folder prunus/methods is the registry: every file or folder in it is a method of that name. A method of the user's
own is named as "package.module:prune". The fields of its Config are its options, set by `name=value`; `a.b=value`
reaches into a field that is itself a dataclass, `a=1,2,3` fills a tuple.
"""

import contextlib
import dataclasses
import importlib
import io
import keyword
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import tyro

from prunus import methods
from prunus.errors import UserError, unknown
from prunus.methods._contract import Options, Pruned, Run
from prunus.selection import Budget, Sparsity
from prunus.specs import user_object
from prunus.tasks import Task

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: its name, its docstring with the paper, its options, and prune(task, limit, config, run)."""

    name: str
    doc: str
    config_class: type[Options]
    prune: Callable[[Task, Any, Any, Run], Pruned]

    @property
    def limit(self) -> type[Budget] | type[Sparsity]:
        """The kind of limit that the method takes."""
        return Budget if self.config_class.removes == "units" else Sparsity

    def check(self, asked: Budget | Sparsity) -> None:
        """Raise UserError, saying what to give instead, if the method does not go with what was asked."""
        if isinstance(asked, self.limit):
            return
        others = ", ".join(name for name in names() if isinstance(asked, find(name).limit))
        if self.limit is Budget:
            raise UserError(
                f"method {self.name} removes units and takes a budget, such as --budget macs=0.5, not a sparsity. "
                f"Methods that take a sparsity: {others}."
            )
        raise UserError(
            f"method {self.name} sets single weights to zero, which saves no multiply-adds by itself: it takes "
            f"--sparsity 0.8 (the share of zeros), not the budget {asked}. Methods that take a budget: {others}."
        )


def names() -> list[str]:
    """The names of all methods, sorted. One that is a Python keyword is a file with an underscore behind."""
    found = [module.name for module in pkgutil.iter_modules(methods.__path__)]
    return sorted(name.rstrip("_") for name in found if not name.startswith("_"))


def find(name: str) -> Method:
    """Return the method called `name`, or the user's own named as "package.module:prune".

    Raises UserError with the nearest names, or if the module lacks a Config that derives from `Options`.
    """
    if ":" in name:
        return _of_user(name)
    if name not in names():
        raise unknown("method", name, names())
    file = f"{name}_" if keyword.iskeyword(name) else name
    module = importlib.import_module(f"prunus.methods.{file}")
    doc = sys.modules[module.prune.__module__].__doc__
    return Method(name, doc, module.Config, module.prune)


def _of_user(name: str) -> Method:
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
    """A `config_class` with the options in `pairs` set, its defaults otherwise.

    pairs: such as "batches=8", "how=uniform"; kind: what an option is called in errors.
    Raises UserError for an unknown name (the nearest are named), or a value that does not fit.
    """
    known = dict(option_types(config_class))
    arguments = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise UserError(f"expected name=value for {kind}, got {pair!r}.")
        if name not in known:
            raise unknown(kind, name, known)
        many = typing.get_origin(known[name]) is tuple
        argument = [f"--{name}", *(value.split(",") if many else [value])]
        read(config_class, argument, f"{kind}: {name} should be {type_in_words(known[name])}, not {value!r}")
        arguments += argument
    return read(config_class, arguments, f"{kind}: {', '.join(pairs)} do not go together")


def option_types(config_class: type, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every option and its type; those of a field that is a dataclass are called field.option."""
    for name, hint in typing.get_type_hints(config_class).items():
        if dataclasses.is_dataclass(hint):
            yield from option_types(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def type_in_words(hint: object) -> str:
    """A field's type in words: `int`, `l1 | l2`, `float | None`, `ones | norms | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(
            "None" if part is type(None) else type_in_words(part) for part in typing.get_args(hint)
        )
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def read(config_class: type[T], arguments: list[str], complaint: str) -> T:
    """A `config_class` as tyro reads it, its own error boxes turned into a UserError."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(config_class, args=arguments, config=(tyro.conf.FlagConversionOff,))
    except SystemExit as error:
        lines = [line for line in said.getvalue().splitlines() if "Error parsing" in line]
        reasons = [f" ({line.partition(': ')[2].strip()})" for line in lines]
        raise UserError(f"{complaint}{''.join(reasons)}.") from error
