"""The integers in the arguments that a model keeps: those that its class reads, and those that it asks for in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn

from prunus.graph.making import Path
from prunus.graph.modules import list_modules
from prunus.graph.skeleton import named_tensors
from prunus.graph.turns import one_at_a_time

_DEEPEST = 6  # steps to an integer
_MOST = 64  # items of a container; longer ones are tables of labels, not sizes

Read = set[tuple[type, str]]  # attributes of classes


@contextmanager
def reading(kept: Mapping[str, Any]) -> Iterator[tuple[Read, Read]]:
    """Note which attributes this thread reads of the objects that a model keeps, and which it misses there.

    Args:
        kept: The objects.

    Returns:
        A context manager, which gives two sets and fills them: the attributes that were read, and those that were
        asked for and not there.
    """
    with one_at_a_time():  # all threads share the classes that are changed meanwhile
        yield from _noted(kept)


def _noted(kept: Mapping[str, Any]) -> Iterator[tuple[Read, Read]]:
    """The body of `reading`."""
    read: Read = set()
    missed: Read = set()
    own = get_ident()
    changed: dict[Any, Any] = {}  # class -> its own `__getattribute__` before, if it had one

    def noting(usual: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        def get(owner: Any, name: str) -> Any:
            try:
                value = usual(owner, name)
            except AttributeError:
                if get_ident() == own:
                    missed.add((type(owner), name))
                raise
            if get_ident() == own and (value is None or type(value) is int):
                held = usual(owner, "__dict__")  # the name may be an alias (attribute_map of transformers)
                names = [name] if name in held else [key for key in held if held[key] is value]
                read.update((type(owner), each) for each in names)
            return value

        return get

    for _, each in _objects(kept):
        kind: Any = type(each)
        if kind not in changed and not isinstance(each, (dict, list, tuple)):
            before = vars(kind).get("__getattribute__")
            try:
                kind.__getattribute__ = noting(kind.__getattribute__)
            except TypeError:  # a built-in class cannot be watched, so all that it holds counts as read
                read.update((kind, name) for name in members(each) or {})
            else:
                changed[kind] = before
    try:
        yield read, missed
    finally:
        for kind, before in changed.items():
            if before is None:
                del kind.__getattribute__
            else:
                kind.__getattribute__ = before


def _objects(kept: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """The objects, dicts, lists and tuples in what a model keeps, each once, with the steps to it."""
    seen: set[int] = set()
    left: list[tuple[Path, Any]] = [((name,), value) for name, value in kept.items()]
    while left:
        path, value = left.pop(0)
        held = members(value)
        if held is not None and id(value) not in seen and len(path) <= _DEEPEST:
            seen.add(id(value))
            yield path, value
            left += [((*path, key), item) for key, item in held.items()]


def members(value: Any) -> dict[Any, Any] | None:
    """List the items of a container, or the attributes of an object.

    Args:
        value: Anything.

    Returns:
        Items by key or attribute; None for tensors, modules, texts, functions and classes.
    """
    if isinstance(value, (str, nn.Module, torch.Tensor, type)) or callable(value):
        return None
    if isinstance(value, Mapping):
        held = {key: item for key, item in value.items() if isinstance(key, str) and "." not in key}
    elif isinstance(value, (list, tuple)):
        held = dict(enumerate(value))
    else:
        held = getattr(value, "__dict__", None)
        return held if isinstance(held, dict) else None
    return held if len(held) <= _MOST else None


def integers(kept: Mapping[str, Any]) -> Iterator[tuple[Path, Any, int]]:
    """List the integers in the arguments that a model keeps, outer ones first.

    Args:
        kept: The arguments by name.

    Yields:
        The steps to an integer, the object or container that holds it, and the integer.
    """
    for path, owner in [((), kept), *_objects(kept)]:
        for key, value in (members(owner) or {}).items():
            if type(value) is int:
                yield (*path, key), owner, value


def integers_read(kept: Mapping[str, Any], read: Read) -> Iterator[tuple[Path, int]]:
    """List the integers above 1 in kept arguments; of objects that are watched, only those that were read."""
    for path, owner, value in integers(kept):
        watched = not isinstance(owner, (dict, list, tuple))
        if value > 1 and (not watched or (type(owner), path[-1]) in read):
            yield path, value


def unsaid(
    model: nn.Module, kept: Mapping[str, Any], read: Read, missed: Read
) -> dict[Path, tuple[int, ...]]:
    """List integers that a config could state but does not, with the values that they may have.

    These are the attributes that the model's class asks for and does not find, with the integers that modules keep
    under the same name; and those that it reads as None, with all sizes of dimensions.
    """
    found: dict[Path, tuple[int, ...]] = {}
    for path, owner in _objects(kept):
        for name in sorted(name for kind, name in missed if kind is type(owner)):
            values = {vars(module).get(name) for _, module in list_modules(model) if name in vars(module)}
            found[*path, name] = tuple(v for v in values if type(v) is int and v > 1)
        for name, value in (members(owner) or {}).items():
            if value is None and (type(owner), name) in read:
                sizes = {size for tensor in named_tensors(model).values() for size in tensor.shape}
                found[*path, name] = tuple(sorted(size for size in sizes if size > 1))
    return found
