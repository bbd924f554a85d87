"""The tensors that a model returns: found in tuples, dicts and objects, and named by their paths."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from prunus.errors import TraceError, unknown
from prunus.graph.names import lies_in

Outputs = str | Sequence[str] | Callable[[Any], Any]  # which outputs count: paths to them, or a function

DEEPEST = 12  # steps from the output to a tensor; also ends a list that holds itself
_CONSTANTS = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    type,
    Enum,
    torch.dtype,
    torch.device,
    torch.layout,
)
_Found = list[tuple[str, torch.Tensor]]  # tensors by path


def output_tensors(output: Any) -> list[torch.Tensor]:
    """List the tensors of an output.

    Args:
        output: What a model returned: tensors in tuples, lists, dicts, registered pytree nodes and the attributes of
            objects (dataclasses, caches, distributions). The parameters of a module in it are no results.

    Returns:
        The tensors, in order.

    Raises:
        TraceError: An object may hide tensors: none was found in it, and some of it cannot be seen into.
    """
    return [tensor for _, tensor in _by_path(output)]


def select_outputs(output: Any, outputs: Outputs | None) -> list[torch.Tensor]:
    """List the tensors of an output that count.

    Args:
        output: What a model returned.
        outputs: A path of keys, numbers and attributes ("logits", "0.logits"), which names all tensors below it; a
            list of paths; a function from the output to tensors; None for all. Modes may return different things,
            so a path that is not there names nothing (see `check_paths`).

    Returns:
        The tensors, path by path, in order; all of the output's if nothing in it has such a path.

    Raises:
        TraceError: The function returned no tensors, or an object may hide some (see `output_tensors`).
    """
    if outputs is None:
        return output_tensors(output)
    if callable(outputs):
        chosen = output_tensors(outputs(output))
        if not chosen:
            there = ", ".join(path for path, _ in _by_path(output)) or "nothing"
            raise TraceError(
                f"outputs= should name tensors, but the function returned none; this model returns {there}."
            )
        return chosen
    found = _by_path(output)
    chosen = [tensor for path in _paths(outputs) for name, tensor in found if lies_in(name, path)]
    return chosen or [tensor for _, tensor in found]


def check_paths(outputs: Outputs | None, returned: Iterable[Any]) -> None:
    """Check that each path that a user named is there in one of the modes.

    Args:
        outputs: Which outputs count, see `select_outputs`.
        returned: What the model returned in each mode.

    Raises:
        UserError: No mode returns anything under a path; the paths that there are are listed.
    """
    if outputs is None or callable(outputs):
        return
    names = list(dict.fromkeys(name for output in returned for name, _ in _by_path(output)))
    for path in _paths(outputs):
        if not any(lies_in(name, path) for name in names):
            raise unknown("output", path, [name or "one tensor, without a name" for name in names])


def _paths(outputs: str | Sequence[str]) -> Sequence[str]:
    return [outputs] if isinstance(outputs, str) else outputs


def quiet_config(bare: nn.Module) -> None:
    """Let a skeleton return no cache of keys and values unless the example asks for one.

    A cache is state for a later call, not a result. Models that take `use_cache` read its default from their config.
    Such a model may also be a part of the model: of an adapter, or of a class of the user's own.

    Args:
        bare: The skeleton; the configs that its modules hold are its own copies, and are changed.
    """
    caching = [
        module for module in bare.modules() if getattr(vars(module).get("config"), "use_cache", None) is True
    ]
    if any("use_cache" in inspect.signature(module.forward).parameters for module in [bare, *caching]):
        for module in caching:
            object.__setattr__(module.config, "use_cache", False)  # a config may be frozen


def _by_path(output: Any) -> _Found:
    """The tensors of an output by their paths, in order."""
    found: _Found = []
    _walk(output, (), found, set())
    return found


def _walk(value: Any, path: tuple[str, ...], found: _Found, seen: set[int], inside: bool = False) -> bool:
    """Add the tensors in a value to `found`; returns whether all of the value was seen.

    seen: ids of the objects that were met. inside: whether the value belongs to an object.
    """
    if isinstance(value, torch.Tensor):
        found.append((".".join(path), value))
        return True
    if isinstance(value, (*_CONSTANTS, nn.Module)) or id(value) in seen:
        return True
    if len(path) == DEEPEST:
        return False
    members = _members(value)
    if members is not None:
        parts = [_walk(each, (*path, str(key)), found, seen, inside) for key, each in members]
        return all(parts)
    seen.add(id(value))
    before = len(found)
    parts = [_walk(each, (*path, name), found, seen, True) for name, each in _attributes(value).items()]
    whole = all(parts) and bool(parts)
    if not (whole or inside) and len(found) == before:
        raise TraceError(
            f"the model should return tensors, tuples or dicts, but returns a {type(value).__name__}, "
            "whose tensors cannot be seen; return those, or register the class with torch.utils._pytree."
        )
    return whole


def _members(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """The members of a collection or registered node, each with its key; None for other objects."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, (Sequence, Set)):
        names = getattr(value, "_fields", range(len(value)))  # those of a named tuple
        return zip(names, value, strict=True)
    parts = tree_flatten(value, is_leaf=lambda part: part is not value)[0]
    return None if parts and parts[0] is value else enumerate(parts)


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes that an object holds, in its dict or in slots."""
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name != "__dict__" and name != "__weakref__" and name not in found:
                found[name] = getattr(value, name, None)
    return found
