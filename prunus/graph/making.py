"""Making a model again from the arguments of its construction that it keeps.

Many models keep all of these arguments: `Model(config)` keeps `config`. Such a model can be made again, without
weights, from a copy of the arguments in which some integers are changed. A config with `to_dict` and `from_dict` goes
through both first, as through its file, so that one which its own class refuses is noticed. Source: ours.
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from prunus.graph.attributes import set_integer
from prunus.graph.operators import Args, Kwargs
from prunus.graph.skeleton import seeded
from prunus.graph.turns import one_at_a_time

Path = tuple[str | int, ...]  # the steps to an integer: a kept argument, then keys and attributes


class Maker:
    """Makes models of one class from the arguments that a model keeps.

    Args:
        kind: The class.
        kept: The arguments of its construction, by name; copied.
    """

    def __init__(self, kind: type[nn.Module], kept: Mapping[str, Any]):
        self.kind, self.kept = kind, copy.deepcopy(dict(kept))

    @classmethod
    def of(cls, model: nn.Module) -> Maker | None:
        """Return the maker of models like this one; None if it does not keep all arguments that are needed."""
        wanted = list(inspect.signature(type(model).__init__).parameters.values())[1:]
        held = vars(model)
        kept = {
            p.name: held[p.name] for p in wanted if p.name in held and not isinstance(held[p.name], nn.Module)
        }
        needed = [
            p for p in wanted if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if (
            not kept
            or any(p.name not in kept for p in needed)
            or all(isinstance(v, int) for v in kept.values())
        ):
            return None
        if any(isinstance(leaf, nn.Module) for leaf in tree_leaves(kept)):
            return None
        try:
            return cls(type(model), kept)
        except Exception:  # whatever is raised by something that cannot be copied
            return None

    def make_marked(self, mark: Callable[[dict[str, Any]], dict[str, Any]]) -> nn.Module:
        """Make a model on the meta device, from what `mark` returns for a copy of the arguments."""
        with _quietly(), torch.device("meta"):
            return self.kind(**mark(copy.deepcopy(self.kept)))

    def make(self, integers: Mapping[Path, int]) -> nn.Module:
        """Make a model from other integers, without data in its parameters, but with data in its buffers.

        Args:
            integers: The integers to change, each by the steps to it; those that are not there yet are added.

        Returns:
            The model.

        Raises:
            Exception: Whatever the constructor raises.
        """
        values = SimpleNamespace(**copy.deepcopy(self.kept))
        for path, value in integers.items():
            set_integer(values, path, value)
        with _quietly(), _without_data():
            return self.kind(**{name: _from_file(value) for name, value in vars(values).items()})


def _from_file(value: Any) -> Any:
    """A config as it would be read from its file; other values as they are."""
    read, write = getattr(type(value), "from_dict", None), getattr(value, "to_dict", None)
    return read(write()) if callable(read) and callable(write) else value


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep a constructor from logging, from warning, and from changing the state of random numbers."""
    with one_at_a_time():  # all threads share what is changed here
        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with warnings.catch_warnings(), seeded():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(level)


@contextmanager
def _without_data() -> Iterator[None]:
    """Put the parameters of modules that this thread makes on the meta device."""
    own = get_ident()

    def bare(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta or get_ident() != own:
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(bare)
    try:
        with _Unwritten():
            yield
    finally:
        handle.remove()


class _Unwritten(TorchFunctionMode):
    """Skips functions that only write to tensors without data: initialisation, which would take most of the time."""

    def __torch_function__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        first = next(iter([*args, *kwargs.values()]), None)
        if name.endswith("_") and not name.endswith("__") and getattr(first, "is_meta", False):
            return first
        return func(*args, **kwargs)
