"""What a reference run computes: the numbers of the small model, at their places among those of the full size.

The reference of a proof is the original with zeros in the weights of its removed units. Where such zeros are not the
same as nothing (a norm over the units, a product with a sigmoid's 0.5), its operators are run again as the small
model runs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from prunus.graph import axes
from prunus.graph.axes import Axis, Layout
from prunus.graph.draws import Draw, Draws
from prunus.graph.op import Op, tensors_in
from prunus.graph.operators import Args, Kwargs, operands
from prunus.graph.places import Places


class Reference:
    """How a tracer computes on real tensors as the small model would.

    Args:
        places: The places that stay.
        masked: The parameters, which are zero wherever they do not stay.
        thorough: Whether every operand of every product is cleared where it does not stay. Otherwise that is left out
            where zeros in a weight make it needless, unless a number there is not finite.
    """

    def __init__(self, places: Places, masked: Iterable[torch.Tensor], thorough: bool = False):
        self.places, self.thorough = places, thorough
        self.masked = {tensor.untyped_storage().data_ptr() for tensor in masked}
        self.draws = Draws()

    def end(self, op: Op, draw: Draw | None, args: Args, kwargs: Kwargs, out: Any) -> Any:
        """The result of an operation, whose rule has spoken, as the small model has it."""
        if draw is not None:
            draw.outs = op.outs
        elif op.mixes:
            return self._on_kept(op, args, kwargs, out)
        elif op.contracts:
            return self._without_removed(op, args, kwargs, out)
        return out

    def _is_cut(self, dims: Iterable[Layout]) -> bool:
        return any(axis.name in self.places.keep for layout in dims for axis in axes.leaves(layout))

    def _on_kept(self, op: Op, args: Args, kwargs: Kwargs, out: Any) -> Any:
        """Compute an operator that mixes units on the kept units alone, with zeros elsewhere."""
        if not any(self._is_cut(op.dims(t)) for t in tensors_in(args) + tensors_in(kwargs.values())):
            return out
        widths = {name: len(kept) for name, kept in self.places.keep.items()}
        given: list[Any] = [list(a) if isinstance(a, (list, tuple)) else a for a in args]
        for layout, place, element in op.follows:
            if element is None:
                given[place] = axes.size(layout, widths)
            else:
                given[place][element] = axes.size(layout, widths)
        given, kwargs = tree_map_only(
            torch.Tensor, lambda tensor: self.places.cut(tensor, op.dims(tensor)), (given, kwargs)
        )
        small = op.func(*given, **kwargs)
        outputs = small if isinstance(small, tuple) else (small,)
        full = [self._among_zeros(t, dims) for t, dims in zip(outputs, op.outs, strict=True)]
        return tuple(full) if isinstance(small, tuple) else full[0]

    def _among_zeros(self, tensor: Any, dims: Sequence[Layout] | None) -> Any:
        """A result for the kept units at its places among zeros."""
        for d, layout in enumerate(dims or ()):
            where = self.places.stay(layout, tensor.device)
            if where is not None:
                shape = list(tensor.shape)
                shape[d] = axes.size(layout)
                tensor = tensor.new_zeros(shape).index_copy_(d, where, tensor)
        return tensor

    def _without_removed(self, op: Op, args: Args, kwargs: Kwargs, out: Any) -> Any:
        """Compute a product with zeros at the removed units of its operands.

        They may have other values there, because an operator before it (sigmoid, say) does not map zero to zero.
        """
        if self.thorough:
            chosen = tensors_in(args) + tensors_in(kwargs.values())
        else:
            chosen = self._to_clear(op, args)
        if not any(self._is_cut(op.dims(tensor)) for tensor in chosen):
            return out
        cleared = {id(tensor): self.places.clear(tensor, op.dims(tensor)) for tensor in chosen}
        args, kwargs = tree_map_only(torch.Tensor, lambda t: cleared.get(id(t), t), (args, kwargs))
        return op.func(*args, **kwargs)

    def _to_clear(self, op: Op, args: Args) -> list[torch.Tensor]:
        """The operand of a product to clear: the smallest, unless a masked weight is zero at all that it sums over."""
        multiplied = tensors_in(operands(op.func, args) or args)
        held = [
            {a for layout in op.dims(t) for a in axes.leaves(layout) if a.name in self.places.keep}
            for t in multiplied
        ]
        if len(op.macs) == 1:
            over: set[Axis] = {a for a in axes.leaves(op.over) if a.name in self.places.keep}
        else:  # it sums over several dimensions, or does not say over which
            over = {a for i, one in enumerate(held) for other in held[i + 1 :] for a in one & other}
        if not over or any(
            over <= one and t.untyped_storage().data_ptr() in self.masked
            for t, one in zip(multiplied, held, strict=True)
        ):
            return []
        whole = [t for t, one in zip(multiplied, held, strict=True) if over <= one]
        return [min(whole, key=torch.Tensor.numel)] if whole else multiplied
