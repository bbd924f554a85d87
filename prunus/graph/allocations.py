"""The sizes with which a constructor makes its parameters, and the terms of these sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunus.graph.operators import Args, Kwargs, flat
from prunus.graph.sizes import Sized, Term

_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)


class Allocations(TorchFunctionMode):
    """Notes tensors that are made from sizes with terms: `torch.empty(self.experts, self.width)`."""

    def __init__(self):
        super().__init__()
        self._made: dict[int, tuple[torch.Tensor, list[Any]]] = {}  # by memory; the tensor keeps that its own

    def __torch_function__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        out = func(*args, **kwargs or {})
        if func in _MAKERS:
            sizes = list(flat([*args, (kwargs or {}).get("size", ())]))
            if len(sizes) == out.dim():
                self._made[_memory(out)] = out, sizes
        return out

    def terms(self, parameter: nn.Parameter) -> Iterator[tuple[int, Term]]:
        """List the terms of the sizes of a parameter.

        Args:
            parameter: A parameter of the model that was made.

        Yields:
            The number of each dimension whose size has a term, with that.
        """
        tensor, sizes = self._made.get(_memory(parameter), (None, []))
        if tensor is not None and tensor.shape == parameter.shape:
            yield from ((dim, size.term) for dim, size in enumerate(sizes) if isinstance(size, Sized))


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
