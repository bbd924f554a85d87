"""What a reference run computes: the numbers of the small model, at their places among those of the full size.

The reference of a proof is the original with zeros in the weights of its removed units. Where such zeros are not the
same as nothing (a norm over the units, a product with a sigmoid's 0.5), its operators are run again as the small
model runs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prunus.graph import axes
from prunus.graph.axes import Axis, Layout
from prunus.graph.draws import Draw, Draws
from prunus.graph.levels import Levels
from prunus.graph.op import Op, Tag, is_inexact, new_generation, put_tag, tag_of, tensors_in
from prunus.graph.operators import NEW, Args, Kwargs, is_a, operands
from prunus.graph.places import Places
from prunus.graph.rules import registry
from prunus.graph.skeleton import quiet_forward
from prunus.inputs import call


class Reference(TorchDispatchMode):
    """Runs a masked model on real tensors, its operators as in the small model.

    Each operator passes through its rule as in a trace, so that every tensor has its layouts.

    Args:
        places: The places that stay.
        thorough: Whether every operand of every product is cleared where it does not stay. Otherwise that is left out
            where zeros in a weight make it needless, which they do unless they meet a number that is not finite.
        levels: What scales the weights on the way.
    """

    def __init__(self, places: Places, thorough: bool = False, levels: Levels | None = None):
        super().__init__()
        self.places, self.thorough, self.levels = places, thorough, levels
        self.draws = Draws()
        self.written: set[str] = set()  # the parameters that the forward pass wrote to
        self._masked: dict[int, str] = {}  # where the memory of the parameters begins
        self._layouts: dict[str, list[Layout]] = {}

    def run(
        self,
        bare: nn.Module,
        tensors: Mapping[str, torch.Tensor],
        example: Any,
        layouts: Mapping[str, Sequence[Layout]],
        inner: TorchDispatchMode | None = None,
    ) -> Any:
        """Run a model whose parameters are zero wherever they do not stay.

        Args:
            bare: The model, which the forward pass may write to.
            tensors: name -> each of its parameters and buffers.
            example: Its arguments; the forward pass gets a copy.
            layouts: name -> the layouts of each of these.
            inner: A mode that gives operators other arguments before this one sees them, such as `StandIns`.

        Returns:
            The model's output.
        """
        new_generation()
        parameters = {name: t for name, t in tensors.items() if isinstance(t, nn.Parameter)}
        self._masked, self._layouts = {}, _copy_layouts(layouts)
        for name, tensor in tensors.items():
            if name in parameters:
                self.hold(name, tensor)
            elif name in self._layouts:
                put_tag(tensor, Tag(self._layouts[name]))

        def tagged(tensor: torch.Tensor) -> torch.Tensor:
            tensor = tensor.detach().clone()
            if is_inexact(tensor):
                put_tag(tensor, Tag(tensor.shape))
            return tensor

        example = tree_map_only(torch.Tensor, tagged, example)
        before = {name: t.data_ptr() for name, t in parameters.items()}
        with quiet_forward(), self, inner or nullcontext():
            output = call(bare, example)
        self.written |= {name for name, t in parameters.items() if t.data_ptr() != before[name]}
        return output

    def hold(self, name: str, tensor: torch.Tensor) -> None:
        """Take note of a parameter during a run.

        Args:
            name: Its name.
            tensor: Its numbers, zero wherever they do not stay.
        """
        self._masked[tensor.untyped_storage().data_ptr()] = name
        if name in self._layouts:
            put_tag(tensor, Tag(self._layouts[name]))

    def release(self, tensor: torch.Tensor) -> None:
        """Forget a parameter whose memory may soon be used for something else."""
        del self._masked[tensor.untyped_storage().data_ptr()]

    def __torch_dispatch__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        draw, kwargs = self.draws.begin(func, args, kwargs or {})
        out = func(*args, **kwargs)
        if func._schema.is_mutable:
            self._note_written(func, args)
        if is_a(func, NEW) or any(map(tag_of, tensors_in(args) + tensors_in(kwargs.values()))):
            op = Op(func, "", out)
            op.inputs = list(args), kwargs  # rules look arguments up by name
            outs = registry.find(func)[1](op, *args, **kwargs)
            op.outs = list(outs) if isinstance(outs, tuple) else [outs]
            op.carry_places(tensors_in(args) + tensors_in(kwargs.values()))
            if self.levels is not None:
                self.levels.after(op, args, kwargs)
            out = self._as_small(op, draw, args, kwargs)
            outputs = out if isinstance(out, (tuple, list)) else [out]
            for number, (tensor, dims) in enumerate(zip(outputs, op.outs, strict=False)):
                if dims is not None and isinstance(tensor, torch.Tensor):
                    put_tag(tensor, Tag(dims, places=op.places_in(number)))
        return out

    def _note_written(self, func: Any, args: Args) -> None:
        for given, argument in zip(args, func._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                places = (t.untyped_storage().data_ptr() for t in tensors_in([given]))
                self.written.update(self._masked[place] for place in places if place in self._masked)

    def _as_small(self, op: Op, draw: Draw | None, args: Args, kwargs: Kwargs) -> Any:
        """The result of an operation, whose rule has spoken, as the small model has it."""
        if draw is not None:
            draw.outs = op.outs
        elif op.mixes:
            return self._on_kept(op, args, kwargs)
        elif op.contracts:
            return self._without_removed(op, args, kwargs)
        return op.out

    def _is_cut(self, dims: Iterable[Layout]) -> bool:
        return any(axis.name in self.places.keep for layout in dims for axis in axes.leaves(layout))

    def _on_kept(self, op: Op, args: Args, kwargs: Kwargs) -> Any:
        """Compute an operator that mixes units on the kept units alone, with zeros elsewhere."""
        if not any(self._is_cut(op.dims(t)) for t in tensors_in(args) + tensors_in(kwargs.values())):
            return op.out
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
        outputs = [self._at_full_size(op.places_in(number), each) for number, each in enumerate(outputs)]
        full = [self._among_zeros(t, dims) for t, dims in zip(outputs, op.outs, strict=True)]
        return tuple(full) if isinstance(small, tuple) else full[0]

    def _at_full_size(self, layout: Layout | None, tensor: Any) -> Any:
        """A result whose numbers are places of the units of a layout, as places at full size."""
        (stay,) = (None,) if layout is None else self.places.stay([layout], tensor.device)
        return tensor if stay is None else stay[tensor]

    def _among_zeros(self, tensor: Any, dims: Sequence[Layout] | None) -> Any:
        """A result for the kept units at its places among zeros."""
        if dims is None:
            return tensor
        for d, stay in enumerate(self.places.stay(dims, tensor.device)):
            if stay is not None:
                shape = list(tensor.shape)
                shape[d] = axes.size(dims[d])
                tensor = tensor.new_zeros(shape).index_copy_(d, stay, tensor)
        return tensor

    def _without_removed(self, op: Op, args: Args, kwargs: Kwargs) -> Any:
        """Compute a product with zeros at the removed units of its operands.

        They may have other values there, because an operator before it (sigmoid, say) does not map zero to zero.
        """
        if self.thorough:
            chosen = tensors_in(args) + tensors_in(kwargs.values())
        else:
            chosen = self._to_clear(op, args)
        if not any(self._is_cut(op.dims(tensor)) for tensor in chosen):
            return op.out
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
            over <= one and t.untyped_storage().data_ptr() in self._masked
            for t, one in zip(multiplied, held, strict=True)
        ):
            return []
        whole = [t for t, one in zip(multiplied, held, strict=True) if over <= one]
        return [min(whole, key=torch.Tensor.numel)] if whole else multiplied


def _copy_layouts(layouts: Mapping[str, Sequence[Layout]]) -> dict[str, list[Layout]]:
    """Copy layouts, with axes of their own, so that running the rules again cannot change a graph."""
    fresh: dict[int, Axis] = {}

    def renew(layout: Layout) -> Layout:
        if isinstance(layout, Axis):
            if id(layout) not in fresh:
                fresh[id(layout)] = Axis(layout.size, layout.name)
                fresh[id(layout)].settled = layout.settled
            return fresh[id(layout)]
        if isinstance(layout, axes.Sum):
            return axes.Sum(tuple(map(renew, layout.parts)))
        if isinstance(layout, axes.Product):
            return axes.Product(tuple(map(renew, layout.factors)))
        return layout

    return {name: [renew(axes.normal(layout)) for layout in dims] for name, dims in layouts.items()}
