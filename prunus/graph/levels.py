"""Signals that neither fade nor grow, in a network that is run on random weights.

Whatever weights are drawn, some networks add up more and more from block to block (residual networks with norms in
evaluation mode), until nothing but the largest number is left, and a detector finds nothing. So the first time that a
weight enters a product, it is scaled until the product's numbers are about one: by a power of two, which rounds no
number. Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite, log2

import torch

from prunus.graph.op import Op, tensors_in
from prunus.graph.operators import WEIGHTED, Args, Kwargs, operands

SAMPLE = 4093  # numbers of a product that are looked at, about
BITS = 2  # how far from one its numbers may be, in powers of two


class Levels:
    """Scales weights in place, each once, in two models at the same time.

    Args:
        groups: Tensors that are scaled alike: a parameter of the model that is run, and its part in another.
    """

    def __init__(self, groups: Iterable[tuple[torch.Tensor, ...]]):
        self._groups = {group[0].untyped_storage().data_ptr(): group for group in groups}
        self._met: set[int] = set()

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
        held = [place for place in dict.fromkeys(read) if place in self._groups]
        if held and op.is_a(WEIGHTED) and self._met.isdisjoint(held):
            multiplied = [t.untyped_storage().data_ptr() for t in tensors_in(operands(op.func, args))]
            added = [place for place in read if place not in multiplied]
            if sum(place in held for place in multiplied) == 1 and all(place in held for place in added):
                self._scale(op.out, held)
        self._met.update(held)

    def _scale(self, out: torch.Tensor, held: list[int]) -> None:
        bits = _bits(out)
        if abs(bits) > BITS:
            for tensor in (out, *(tensor for place in held for tensor in self._groups[place])):
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
