"""Stand-ins for parameters: of the same shape, but their numbers are made when an operator reads them.

A model of stand-ins takes no memory for its parameters. While it runs under their mode, one tensor is in memory at a
time, or a few small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

from prunus.graph.op import tensors_in
from prunus.graph.operators import Args, Kwargs

SMALL = 2**20  # bytes of parameters that may stay in memory while nothing reads them


class WrittenError(Exception):
    """An operator wrote to a stand-in, which has no numbers of its own to keep."""


class StandIns(TorchDispatchMode):
    """Puts the numbers of a parameter in the place of its stand-in, for each operator that reads it.

    Args:
        make: Returns the numbers of a parameter, by its name; the same at each call.
    """

    def __init__(self, make: Callable[[str], torch.Tensor]):
        super().__init__()
        self.make = make
        self.made: Callable[[str, torch.Tensor], object] = _nothing  # called with each tensor that was made
        self.gone: Callable[[str, torch.Tensor], object] = _nothing  # called before it is let go
        self._names: dict[int, str] = {}
        self._held: dict[str, torch.Tensor] = {}

    def stand_in(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Make the stand-in of a parameter, for use under this mode; it takes the memory of one number.

        Args:
            name: The parameter's name.
            shape: Its shape.
            dtype: Its type.
            device: Its device.

        Returns:
            The stand-in.
        """
        found = torch.zeros(1, dtype=dtype, device=device)
        self._names[found.untyped_storage().data_ptr()] = name
        return found.expand(shape) if shape else found[0]

    def clear(self) -> None:
        """Let all numbers go."""
        for name in list(self._held):
            self.gone(name, self._held.pop(name))

    def __torch_dispatch__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        names = [self._name(tensor) for tensor in tensors_in(args) + tensors_in((kwargs or {}).values())]
        read = [name for name in names if name is not None]
        if read:
            if func._schema.is_mutable and self._is_written(func, args):
                raise WrittenError
            self._let_go_besides(read)
            args, kwargs = tree_map_only(torch.Tensor, self._numbers, (args, kwargs))
        return func(*args, **(kwargs or {}))

    def _name(self, tensor: torch.Tensor) -> str | None:
        return self._names.get(tensor.untyped_storage().data_ptr())

    def _is_written(self, func: Any, args: Args) -> bool:
        return any(
            argument.alias_info is not None
            and argument.alias_info.is_write
            and any(self._name(tensor) for tensor in tensors_in([given]))
            for given, argument in zip(args, func._schema.arguments, strict=False)
        )

    def _numbers(self, tensor: torch.Tensor) -> torch.Tensor:
        name = self._name(tensor)
        if name is None:
            return tensor
        if name not in self._held:
            with _disable_current_modes():  # the modes around this one see only operators of the model
                self._held[name] = self.make(name)
            self.made(name, self._held[name])
        return self._held[name]

    def _let_go_besides(self, read: Collection[str]) -> None:
        """Let the oldest tensors go until all but those that are read now take at most SMALL bytes."""
        others = [name for name in self._held if name not in read]
        total = sum(self._held[name].nbytes for name in others)
        for name in others:
            if total <= SMALL:
                break
            total -= self._held[name].nbytes
            self.gone(name, self._held.pop(name))


def _nothing(*_: Any) -> None:
    pass
