"""Signals that neither fade nor grow, in a network that is run on random weights.

Whatever weights are drawn, some networks add up more and more from block to block (residual networks with norms in
evaluation mode), until nothing but the largest number is left, and a detector finds nothing. So the first time that a
weight enters a product, it is scaled until the product's numbers are about one: by a power of two, which rounds no
number. Source: ours.
"""

from __future__ import annotations

from math import isfinite, log2

import torch

from prunus.graph.op import Op, tensors_in
from prunus.graph.operators import WEIGHTED, Args, Kwargs, operands

SAMPLE = 4093  # numbers of a product that are looked at, about
BITS = 2  # how far from one its numbers may be, in powers of two


class Levels:
    """Scales weights in place, each once, in two models at the same time."""

    def __init__(self):
        self.bits: dict[str, int] = {}  # name -> by which power of two the parameter was divided
        self._met: set[str] = set()
        self._tensors: dict[str, tuple[torch.Tensor, ...]] = {}
        self._names: dict[int, str] = {}  # by the place in memory

    def hold(self, name: str, *tensors: torch.Tensor) -> None:
        """Take note of a parameter.

        Args:
            name: Its name.
            tensors: Those that are scaled alike: that of the model that is run, and perhaps its part in another.
        """
        self._tensors[name] = tensors
        self._names[tensors[0].untyped_storage().data_ptr()] = name

    def release(self, name: str) -> None:
        """Forget the tensors of a parameter, whose memory may soon be used for something else."""
        tensors = self._tensors.pop(name)
        del self._names[tensors[0].untyped_storage().data_ptr()]

    def after(self, op: Op, args: Args, kwargs: Kwargs) -> None:
        """Scale the weights of a product that has run, and its result, if that is too large or too small.

        Args:
            op: The operation with its result, whose rule has spoken.
            args: Its arguments by position.
            kwargs: Its arguments by keyword.
        """
        if op.alias is not None:
            return
        read = [t.untyped_storage().data_ptr() for t in tensors_in(args) + tensors_in(kwargs.values())]
        held = [self._names[place] for place in dict.fromkeys(read) if place in self._names]
        if held and op.is_a(WEIGHTED) and self._met.isdisjoint(held):
            multiplied = [t.untyped_storage().data_ptr() for t in tensors_in(operands(op.func, args))]
            added = [place for place in read if place not in multiplied]
            if sum(map(self._names.__contains__, multiplied)) == 1 and all(
                map(self._names.__contains__, added)
            ):
                self._scale(op.out, held)
        self._met.update(held)

    def _scale(self, out: torch.Tensor, held: list[str]) -> None:
        bits = _bits(out)
        if abs(bits) > BITS:
            self.bits |= dict.fromkeys(held, bits)
            for tensor in (out, *(tensor for name in held for tensor in self._tensors[name])):
                tensor.mul_(2.0**-bits)


def _bits(tensor: torch.Tensor) -> int:
    """The logarithm of the size of a tensor's numbers, to the base of two; 0 where there are none."""
    numbers = tensor.untyped_storage().nbytes() // tensor.element_size()
    if not tensor.is_floating_point() or not tensor.numel() or numbers != tensor.numel():
        return 0
    step = max(1, numbers // SAMPLE) | 1  # odd, so that it meets all channels whose number is a power of two
    sample = tensor.as_strided((-(-numbers // step),), (step,), 0)
    size = sample.double().square().mean().sqrt().item()
    return round(log2(size)) if isfinite(size) and size > 0 else 0
