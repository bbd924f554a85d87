"""The random weights of a proof, in both of its models: all at once, or each while an operator reads it.

The second way needs memory for the largest tensor and its part alone, not for the whole model, but draws each tensor
every time that it is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.graph import Graph, Levels, Places, Reference, StandIns, Where, is_inexact, set_zero, take
from prunus.surgery.sampling import type_like
from prunus.surgery.slicing import zeroed

Draw = Callable[[str], torch.Tensor]  # the name of a tensor -> its numbers, the same at each call


class Cut(NamedTuple):
    """The parts of a model's tensors that stay.

    Args:
        graph: The graph of the model.
        places: The places that stay.
        stays: name -> the positions that stay in each dimension; None for a tensor of a block that is skipped.
    """

    graph: Graph
    places: Places
    stays: Mapping[str, Where | None]

    def has(self, name: str) -> bool:
        """Whether the small model has a tensor."""
        return self.stays[name] is not None

    def part(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The part of a tensor that stays; the tensor itself if all does, or if its block is skipped."""
        where = self.stays[name]
        return tensor if where is None else take(tensor, where)

    def shape(self, name: str, tensor: torch.Tensor) -> list[int]:
        """The shape of that part."""
        pairs = zip(tensor.shape, self.stays[name] or [None] * tensor.dim(), strict=True)
        return [size if stay is None else len(stay) for size, stay in pairs]

    def clear(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Set a parameter to zero, in place, wherever it does not stay; returns it. Other tensors stay as they are."""
        where = self.stays[name]
        if name in self.graph.parameters and where is None:
            return tensor.zero_()
        if name not in self.graph.parameters or all(stay is None for stay in where or ()):
            return tensor
        return set_zero(tensor, self.places.go(zeroed(self.graph, name), tensor.device))


class Filling(ABC):
    """The tensors of the two models of a proof.

    Attributes:
        whole: name -> tensor, for the original.
        small: name -> tensor, for the small model.
    """

    whole: dict[str, torch.Tensor]
    small: dict[str, torch.Tensor]

    @abstractmethod
    def levels(self, whole: Mapping[str, torch.Tensor], small: Mapping[str, torch.Tensor]) -> Levels:
        """Return the object that scales the parameters which the two models hold."""

    @abstractmethod
    def around_whole(self, reference: Reference) -> TorchDispatchMode | None:
        """The mode in which the original runs inside of a reference, if it needs one."""

    @abstractmethod
    def around_small(self) -> TorchDispatchMode | None:
        """The mode in which the small model runs."""


class AtOnce(Filling):
    """All tensors of both models, in memory at once; the models share those that stay whole.

    Args:
        cut: What stays of each tensor.
        draw: Makes a tensor.
    """

    def __init__(self, cut: Cut, draw: Draw):
        self._names = list(filter(cut.has, cut.graph.parameters))
        self.whole = {name: draw(name) for name in cut.stays}
        self.small = {name: cut.part(name, tensor) for name, tensor in self.whole.items() if cut.has(name)}
        for name, tensor in self.whole.items():
            cut.clear(name, tensor)

    def levels(self, whole: Mapping[str, torch.Tensor], small: Mapping[str, torch.Tensor]) -> Levels:
        levels = Levels()
        for name in self._names:
            is_shared = whole[name].data_ptr() == small[name].data_ptr()
            levels.hold(name, whole[name], *([] if is_shared else [small[name]]))
        return levels

    def around_whole(self, reference: Reference) -> TorchDispatchMode | None:
        return None

    def around_small(self) -> TorchDispatchMode | None:
        return None


class OneByOne(Filling):
    """Stand-ins for the parameters of both models. Buffers, and parameters of integers, are in memory from the start.

    Args:
        cut: What stays of each tensor.
        draw: Makes a tensor.
        tensors: name -> the model's own tensor, of which only the shape, the device and the kind of type are used.
        dtype: The precision of `draw`.
    """

    def __init__(self, cut: Cut, draw: Draw, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype):
        self._cut, self._draw, self._levels = cut, draw, Levels()
        self._in_whole, self._in_small = StandIns(self._make_whole), StandIns(self._make_small)
        self.whole, self.small = {}, {}
        for name, tensor in tensors.items():
            if name in cut.graph.parameters and is_inexact(tensor):
                kind = type_like(tensor, dtype), tensor.device
                self.whole[name] = self._in_whole.stand_in(name, tensor.shape, *kind)
                if cut.has(name):
                    self.small[name] = self._in_small.stand_in(name, cut.shape(name, tensor), *kind)
            else:
                self.whole[name] = draw(name)
                if cut.has(name):
                    self.small[name] = cut.part(name, self.whole[name])

    def _make_whole(self, name: str) -> torch.Tensor:
        return self._scaled(name, self._cut.clear(name, self._draw(name)))

    def _make_small(self, name: str) -> torch.Tensor:
        return self._scaled(name, self._cut.part(name, self._draw(name)))

    def _scaled(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.mul_(2.0 ** -self._levels.bits.get(name, 0))

    def levels(self, whole: Mapping[str, torch.Tensor], small: Mapping[str, torch.Tensor]) -> Levels:
        return self._levels

    def around_whole(self, reference: Reference) -> TorchDispatchMode | None:
        def hold(name: str, tensor: torch.Tensor) -> None:
            reference.hold(name, tensor)
            self._levels.hold(name, tensor)

        def release(name: str, tensor: torch.Tensor) -> None:
            reference.release(tensor)
            self._levels.release(name)

        self._in_whole.clear()  # tensors of an earlier run, which this reference does not know
        self._in_whole.made, self._in_whole.gone = hold, release
        return self._in_whole

    def around_small(self) -> TorchDispatchMode | None:
        self._in_whole.clear()
        self._in_small.clear()
        return self._in_small
