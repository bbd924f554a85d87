"""Tensors that a model keeps between calls in plain attributes: the state of a memory, tables that it has stored.

They are no buffers, so no file holds them. Where they lie along an axis they are cut with it, because the next call
reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from prunus.graph.attributes import INTERNAL, set_integer
from prunus.graph.modules import list_modules
from prunus.graph.op import is_inexact

Path = tuple[str, tuple[str | int, ...]]  # a module, and the steps from it


def kept_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Find the floating-point and complex tensors that modules keep in plain attributes, and in containers there.

    Args:
        model: Any model.

    Returns:
        The tensors by their places, such as "memory.state" or "attention.tables.0"; each once.
    """
    return {_name(where): tensor for where, tensor in _walk(model)}


def set_kept(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Put other tensors in their places, in the model itself.

    Args:
        model: The model.
        tensors: The tensors by their places; those that are not given stay.
    """
    for where, _ in list(_walk(model)):
        if _name(where) in tensors:
            set_integer(model.get_submodule(where[0]), where[1], tensors[_name(where)])


def _name(where: Path) -> str:
    return ".".join(str(step) for step in (where[0], *where[1]) if step != "")


def _walk(model: nn.Module) -> Iterator[tuple[Path, torch.Tensor]]:
    modules = list_modules(model)
    seen = {id(t) for _, m in modules for held in (m._parameters, m._buffers) for t in held.values()}
    for name, module in modules:
        for key, value in vars(module).items():
            if key not in INTERNAL and isinstance(value, (torch.Tensor, list, tuple, dict)):
                yield from _inside((name, (key,)), value, seen)


def _inside(where: Path, value: Any, seen: set[int]) -> Iterator[tuple[Path, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        if is_inexact(value) and id(value) not in seen:
            seen.add(id(value))
            yield where, value
    elif isinstance(value, (list, tuple, dict)) and len(where[1]) < 3:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if isinstance(key, int) or (isinstance(key, str) and "." not in key):
                yield from _inside((where[0], (*where[1], key)), item, seen)
