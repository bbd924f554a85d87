"""Integers that a model keeps: where they are, how they are given terms for one pass, and how they are set.

They are attributes of modules, of the objects that modules hold (a config), items of lists, tuples and dicts, and
attributes of classes that an object has not set itself.
"""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from types import MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from prunus.graph import axes
from prunus.graph.axes import Layout
from prunus.graph.modules import list_modules
from prunus.graph.sizes import Journal, Place, Sized
from prunus.graph.skeleton import named_tensors


class Attribute(NamedTuple):
    """An integer of a model that follows a layout."""

    place: Place
    layout: Layout

    @property
    def module(self) -> str:
        """The name of the module that it is in."""
        return self.place.module

    @property
    def key(self) -> str:
        """The steps to it from the module, joined by dots."""
        return ".".join(map(str, self.place.path))


def set_attributes(
    model: nn.Module, attributes: Sequence[Attribute], widths: Mapping[str, Any]
) -> dict[tuple[str, str], Any]:
    """Set a model's integers to the sizes that follow from new widths.

    Args:
        model: The model whose integers are changed in place.
        attributes: The integers that follow, such as `graph.attributes`.
        widths: The number of units of each axis, by its name; axes that are not named keep their size.

    Returns:
        The new value of each attribute of a module (the whole tuple, for an item), by (module, attribute).
    """
    changed: dict[tuple[str, str], Any] = {}
    for attribute in attributes:
        module, path = model.get_submodule(attribute.module), attribute.place.path
        set_integer(module, path, int(axes.size(attribute.layout, widths)))
        changed[attribute.module, str(path[0])] = getattr(module, str(path[0]))
    return changed


def get_integer(owner: Any, path: Sequence[str | int]) -> Any:
    """The value at the end of a path; raises LookupError or AttributeError if there is none."""
    for step in path:
        if isinstance(owner, (list, tuple)):
            owner = owner[int(step)]
        else:
            owner = owner[step] if isinstance(owner, dict) else getattr(owner, str(step))
    return owner


def set_integer(owner: Any, path: Sequence[str | int], value: Any) -> None:
    """Put a value at the end of a path; a tuple on the way is replaced by a new one."""
    *way, last = path
    holder = get_integer(owner, way)
    if isinstance(holder, tuple):
        items = list(holder)
        items[int(last)] = value
        set_integer(owner, way, _rebuilt(holder, items))
    elif isinstance(holder, list):
        holder[int(last)] = value
    elif isinstance(holder, dict):
        holder[last] = value
    elif isinstance(holder, nn.Module):
        setattr(holder, str(last), value)
    else:
        object.__setattr__(holder, str(last), value)  # a frozen dataclass refuses setattr


def _rebuilt(old: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    """A tuple of the same class with other items, a named one too."""
    return type(old)(*items) if hasattr(old, "_fields") else type(old)(items)


Way = tuple[str, tuple[str | int, ...]]  # a module, and the steps from it

INTERNAL = frozenset(vars(nn.Module()))  # what every module has: its parameters, hooks, mode
_INTERNAL_DICTS = [name for name, value in vars(nn.Module()).items() if isinstance(value, dict)]
_NOTHING: dict[str, Any] = {}
_CLOSED = (nn.Module, torch.Tensor, type, ModuleType, MethodType, Enum, torch.dtype, torch.device)
_MOST = 256  # items of a container; longer ones are vocabularies and tables, not sizes


class Integers:
    """The integers of a skeleton, and its whole state, to which it can be put back.

    Args:
        skeleton: The copy of a model; its modules and objects are its own.
        tensors: The parameters and buffers whose numbers are put back, too; by default all that have some.
    """

    def __init__(self, skeleton: nn.Module, tensors: Iterable[torch.Tensor] | None = None):
        self.skeleton = skeleton
        self._saved: list[tuple[Any, Any]] = []  # objects and containers, each with a copy of its contents
        tensors = named_tensors(skeleton).values() if tensors is None else tensors
        self._tensors = [(t, t.clone()) for t in tensors if not t.is_meta]

    def mark(self, journal: Journal | None) -> None:
        """Give all integers terms, which say where they are; without a journal only note the state to restore."""
        forget_results(self.skeleton)
        self._saved = []
        seen: set[int] = set()
        for name, module in list_modules(self.skeleton):
            held = vars(module)
            self._saved.append((held, dict(held)))
            for inner in _INTERNAL_DICTS:  # hooks too, which a library may add in a pass
                if (contents := held.get(inner)) is not None:
                    self._saved.append((contents, dict(contents) if contents else _NOTHING))
            for key, value in [*_class_integers(type(module)).items(), *held.items()]:
                if (
                    key not in INTERNAL
                    and (new := self._marked(value, (name, (key,)), seen, journal)) is not value
                ):
                    held[key] = new

    def _marked(self, value: Any, way: Way, seen: set[int], journal: Journal | None) -> Any:
        """The value with terms on its integers: the same object, changed, but for an int or tuple."""
        if isinstance(value, int):
            if type(value) is not int or value < 2 or journal is None:
                return value
            return Sized(value, Place(*way, value), journal)
        if value is None or isinstance(value, (str, float, *_CLOSED)) or callable(value) or id(value) in seen:
            return value
        if not isinstance(value, tuple):
            seen.add(id(value))
        if isinstance(value, (list, tuple, dict)) and (len(value) > _MOST or len(way[1]) > 6):
            return value
        if isinstance(value, tuple):
            items = [self._marked(v, _inside(way, i), seen, journal) for i, v in enumerate(value)]
            return value if all(a is b for a, b in zip(items, value, strict=True)) else _rebuilt(value, items)
        if isinstance(value, list):
            self._saved.append((value, list(value)))
            value[:] = [self._marked(v, _inside(way, i), seen, journal) for i, v in enumerate(value)]
        elif isinstance(value, dict):
            self._saved.append((value, dict(value)))
            for key, item in list(value.items()):
                if isinstance(key, str) and "." not in key:
                    value[key] = self._marked(item, _inside(way, key), seen, journal)
        else:
            self._mark_object(value, way, seen, journal)
        return value

    def _mark_object(self, value: Any, way: Way, seen: set[int], journal: Journal | None) -> None:
        held = {**_class_integers(type(value)), **_held(value)}
        if isinstance(getattr(value, "__dict__", None), dict):
            self._saved.append((vars(value), dict(vars(value))))
        for key, item in held.items():
            new = self._marked(item, _inside(way, key), seen, journal)
            if new is not item:
                try:
                    object.__setattr__(value, key, new)
                except (AttributeError, TypeError):  # a property, a descriptor, an object of C code
                    continue
                self._saved.append((value, (key, item)))

    def restore(self) -> None:
        """Put everything back as it was at the start: integers without terms, nothing that a pass has stored."""
        for owner, contents in reversed(self._saved):
            if isinstance(contents, tuple):
                object.__setattr__(owner, *contents)
            elif isinstance(owner, list):
                owner[:] = contents
            elif owner or contents:
                owner.clear()
                owner.update(contents)
        for tensor, value in self._tensors:
            tensor.detach().copy_(value)
        forget_results(self.skeleton)


def integers_of(values: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Values that a model keeps under some names, with terms on their integers; changed in place but for tuples."""
    owner = Integers(nn.Module())
    return {name: owner._marked(value, ("", (name,)), set(), journal) for name, value in values.items()}


def _inside(way: Way, step: str | int) -> Way:
    return way[0], (*way[1], step)


def _held(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots too."""
    names = [n for kind in type(value).__mro__ for n in _slots(kind)]
    inside = {name: getattr(value, name, None) for name in names}
    return inside | dict(getattr(value, "__dict__", {}))


@functools.cache
def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return tuple(name for name in ([slots] if isinstance(slots, str) else slots) if not name.startswith("__"))


@functools.cache
def _class_integers(kind: type) -> dict[str, int]:
    """The integers among the attributes of a class, but for torch's own and builtin ones."""
    own = [k for k in reversed(kind.__mro__) if k.__module__.split(".")[0] not in ("torch", "builtins")]
    return {
        key: value for each in own for key, value in vars(each).items() if type(value) is int and value > 1
    }


def slots(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """The modules and attribute names that hold each parameter and buffer: several if it is tied."""
    names = {id(tensor): name for name, tensor in named_tensors(model).items()}
    found: dict[str, list[tuple[nn.Module, str]]] = defaultdict(list)
    for _, module in list_modules(model):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                found[names[id(tensor)]].append((module, name))
    return found


_Memo = type(functools.lru_cache(len))


def forget_results(model: nn.Module) -> None:
    """Empty the `functools` caches in the files of a model's classes: a result of one pass is no result of another."""
    files = {kind.__module__ for _, module in list_modules(model) for kind in type(module).__mro__}
    for name in files:
        if name.split(".")[0] not in ("torch", "builtins", "typing") and name in sys.modules:
            for value in list(vars(sys.modules[name]).values()):
                if isinstance(value, _Memo):
                    value.cache_clear()
