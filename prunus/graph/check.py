"""The check of a trace: another pass at other widths must meet the shapes that the layouts predict.

All axes are wider in it, no two alike, and the integers that follow are set. Where an operator is given another integer
than its layout says, the axes are fixed, the right integer is put in its place, and the pass goes on, so that one pass
finds all such faults. If the code takes another way, the axes around that place are fixed. Passes are repeated until
one finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prunus.errors import TraceError
from prunus.graph import axes
from prunus.graph.attributes import Attribute, Integers, set_attributes, slots
from prunus.graph.axes import Axis, Layout
from prunus.graph.names import holder, lies_in
from prunus.graph.op import Op, Tag, is_inexact, new_generation, put_tag, tag_of, tensors_in
from prunus.graph.operators import COPY, ELEMENTWISE, FRESH, Args, Kwargs
from prunus.graph.rules import registry
from prunus.graph.skeleton import (
    SameDevice,
    compute,
    mixes_devices,
    named_tensors,
    quiet_forward,
    same_device,
    seeded,
)
from prunus.graph.state import kept_tensors, set_kept
from prunus.graph.tracer import Tracer
from prunus.inputs import call

MOST_PASSES = 8


class _OtherWayError(Exception):
    """An operator that was not expected, or one that met shapes that were not predicted."""


class _Pass(TorchDispatchMode):
    """Compares a pass at other widths with the traced one, operator by operator."""

    def __init__(self, ops: list[Op], widths: Mapping[str, int], read: Mapping[Op, Any]):
        super().__init__()
        self.ops, self.widths, self.read, self.at = ops, widths, read, 0
        self.integers: list[tuple[Op, Layout]] = []  # where an integer did not follow
        self.numbers: list[int] = []  # the operations whose numbers changed
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        kwargs = kwargs or {}
        if not any(map(tag_of, tensors_in([*args, *kwargs.values()]))):
            args, kwargs = same_device(args, kwargs)  # of constants, which code may keep from an earlier pass
            return compute(func, args, kwargs)
        if self.at >= len(self.ops) or self.ops[self.at].func is not func:
            raise _OtherWayError
        op = self.ops[self.at]
        numbers = registry.scalars(func, args, kwargs)
        args, kwargs = same_device(args, kwargs)
        for layout, place, element in op.follows:
            args = self._put_right(op, args, layout, place, element)
        out = self._read_again(op) if op in self.read else compute(func, args, kwargs)
        for tensor, dims, tag in zip(
            out if isinstance(out, (tuple, list)) else [out], op.outs, op.results, strict=False
        ):
            if dims is not None and list(tensor.shape) != [self._size(d) for d in dims]:
                raise _OtherWayError
            if tag is not None:
                put_tag(tensor, Tag(()))
        from_data = bool(self.read) and any(tensor.dim() == 0 for tensor in tensors_in(args))
        if numbers != op.scalars and not from_data:
            self.numbers.append(self.at)
        self.at += 1
        return out

    def _size(self, layout: Layout) -> int:
        """The size of a layout in this pass; the trace holds each, so that its id stays its own."""
        if isinstance(layout, int):
            return layout
        if id(layout) not in self._sizes:
            self._sizes[id(layout)] = axes.size(layout, self.widths)
        return self._sizes[id(layout)]

    def _read_again(self, op: Op) -> Any:
        """Return what an operation read off the data in the trace, so that the code takes the same way."""

        def at_these_widths(tensor: Any, dims: Sequence[Layout] | None) -> Any:
            if not axes.can_shrink(*(dims or ())):
                return tensor
            return tensor.new_empty([axes.size(layout, self.widths) for layout in dims or ()], device="meta")

        out = self.read[op]
        if isinstance(out, (tuple, list)):
            return type(out)(map(at_these_widths, out, op.outs))
        return at_these_widths(out, op.outs[0])

    def _put_right(self, op: Op, args: Args, layout: Layout, place: int, element: int | None) -> Args:
        """The arguments with the integer that the layout says; negative ones count from the end, and agree."""
        if place >= len(args) or args[place] is None:
            return args
        given, expected = args[place], self._size(layout)
        value = given if element is None else given[element]
        if value < 0 or value == expected:
            return args
        self.integers.append((op, layout))
        new = expected if element is None else [*given[:element], expected, *given[element + 1 :]]
        return *args[:place], new, *args[place + 1 :]


def same_way(first: Tracer, second: Tracer) -> bool:
    """Whether two passes ran the same operators, but for elementwise ones (dropout), which no integer decides."""
    return _way(first) == _way(second)


def _way(traced: Tracer) -> list[Any]:
    """The operators of a pass that depend on a parameter or an input, with their numbers of integers that follow."""
    return [
        (op.func, len(op.follows))
        for op in _dependent(traced.ops)
        if not op.is_a(ELEMENTWISE | FRESH | COPY) and torch.Tag.nondeterministic_seeded not in op.func.tags
    ]


class Check:
    """Runs a skeleton at other widths until a pass agrees with the trace.

    Args:
        bare: The skeleton.
        example: The example.
        traced: The pass that is checked.
        layouts: The layouts of the parameters and buffers.
        integers: The integers and the state of the skeleton.
    """

    def __init__(
        self,
        bare: nn.Module,
        example: Any,
        traced: Tracer,
        layouts: dict[str, list[Layout]],
        integers: Integers,
    ):
        self.bare, self.example, self.traced, self.layouts = bare, example, traced, layouts
        self.ops, self.integers = _dependent(traced.ops), integers
        self.slots = slots(bare)
        self.dtypes = {n: t.dtype for n, t in named_tensors(bare).items() if is_inexact(t)}
        self.read = traced.read if traced.reads_data else {}  # what a check without data is told
        self.meta = bool(self.read) or any(t.is_meta for t in named_tensors(bare).values())
        self.error: Exception | None = None  # the one that ended the last pass
        self._of_data: set[int] | None = None  # the operations whose numbers are made from data

    def agree(
        self, name_axes: Callable[[], dict[str, Axis]], following: Callable[[], list[Attribute]]
    ) -> None:
        """Repeat passes until one agrees, and fix axes in between.

        Args:
            name_axes: Names the axes that may still shrink, and returns them.
            following: Returns the integers that follow.

        Raises:
            TraceError: No pass agrees.
        """
        for _ in range(MOST_PASSES):
            if self._passes(name_axes(), following()):
                return
        raise TraceError(
            f"the sizes used in this model's forward could not be followed (last: {self.error!r}); trace a sub-module "
            "instead: part, example = prunus.part(model, 'NAME', inputs)."
        ) from self.error

    def _passes(self, named: dict[str, Axis], attributes: Sequence[Attribute]) -> bool:
        """Run one pass and fix what it finds; whether it found nothing."""
        if not named or not any(op.follows or op.scalars for op in self.ops):
            return True
        probe = _Pass(self.ops, _wider(named), self.read)
        ended = self._run(probe, attributes)
        for op, layout in probe.integers:
            axes.fix(
                layout, f"{op} uses the integer {axes.size(layout)}, which follows nothing that may shrink"
            )
        numbers = [at for at in probe.numbers if at not in self._numbers_of_data()]
        if numbers:
            self._fix_numbers(numbers)
        if probe.integers or numbers:
            return False
        if ended or self._ends_at(probe.at):
            return True
        self._fix_around(min(probe.at, len(self.ops) - 1))
        return False

    def _numbers_of_data(self) -> set[int]:
        """The operations whose numbers differ at the traced widths, too, because the data differ."""
        if self._of_data is None:
            probe = _Pass(self.ops, {}, self.read)
            if not self.meta:
                self._run(probe, ())
            self._of_data = set(probe.numbers)
        return self._of_data

    def _ends_at(self, at: int) -> bool:
        """Whether a check without data ends there at the traced widths, too, because the meta device cannot go on."""
        probe = _Pass(self.ops, {}, self.read)
        return bool(self.read) and not self._run(probe, ()) and probe.at == at

    def _run(self, probe: _Pass, attributes: Sequence[Attribute]) -> bool:
        """Run the skeleton at other widths; whether it took the same way to the end."""
        originals = {(m, a): getattr(m, a) for places in self.slots.values() for m, a in places}
        with ExitStack() as stack:
            stack.callback(self.integers.restore)
            self.integers.mark(None)
            stack.callback(self._put_back, originals)
            try:
                new_generation()
                self._resize(probe.widths)
                set_attributes(self.bare, attributes, probe.widths)
                example = tree_map_only(torch.Tensor, self._as_traced, self.example)
                stack.enter_context(quiet_forward())
                stack.enter_context(seeded())
                stack.enter_context(probe)
                if self.read or (self.meta and mixes_devices(self.bare, example)):
                    stack.enter_context(SameDevice())
                call(self.bare, example)
            except Exception as error:  # any error that the user's code raises when sizes disagree
                self.error = error
                return False
        return probe.at == len(self.ops)

    def _as_traced(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of an input, abstract if it was so in the trace."""
        if not is_inexact(tensor):
            return tensor.detach().clone()
        tensor = tensor.detach().to("meta") if self.meta else tensor.detach().clone()
        put_tag(tensor, Tag(()))
        return tensor

    def _put_back(self, originals: dict[tuple[nn.Module, str], Any]) -> None:
        for (module, name), tensor in originals.items():
            setattr(module, name, tensor)

    def _resize(self, widths: Mapping[str, int]) -> None:
        """Replace the skeleton's floating-point and complex tensors by those of other widths."""
        for module, attribute in (
            place for name in self.slots if name not in self.dtypes for place in self.slots[name]
        ):
            put_tag(getattr(module, attribute), Tag(()))
        for name, dtype in self.dtypes.items():
            shape = [axes.size(layout, widths) for layout in self.layouts[name]]
            tensor = torch.empty(shape, dtype=dtype, device="meta" if self.meta else None)
            if not self.meta:  # positive, because some are variances
                tensor.fill_(1 / max(1, tensor[:1].numel()))
            for module, attribute in self.slots[name]:
                is_parameter = attribute in module._parameters
                value = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
                put_tag(value, Tag(()))
                setattr(module, attribute, value)

        kept = {
            name: tensor.new_zeros([axes.size(layout, widths) for layout in self.layouts[name]])
            for name, tensor in kept_tensors(self.bare).items()
            if name in self.layouts
        }
        for tensor in kept.values():
            put_tag(tensor, Tag(()))
        set_kept(self.bare, kept)

    def _fix_numbers(self, places: Sequence[int]) -> None:
        """Fix the sizes from which some numbers were made, if it is not known which; at least one.

        Most likely that is the last dimension, otherwise the one over which the last product in this module
        summed (the features of attention), otherwise any dimension of this operation. A less likely guess is
        made for the first number only, because it may explain the others.
        """
        ops = [self.ops[at] for at in places]
        last = [[dims[-1] for dims in op.outs if dims] for op in ops]
        fixed = [_fix(layouts, op) for op, layouts in zip(ops, last, strict=True)]
        if any(fixed):
            return
        op = ops[0]
        products = [o for o in self.ops[: places[0]] if o.macs and o.module == op.module][-1:]
        if not _fix([product.over for product in products], op):
            if not _fix([layout for dims in op.outs for layout in dims or ()], op):
                self._fix_around(places[0])

    def _fix_around(self, at: int) -> None:
        """Fix all that a module touches, because its code takes another way at other sizes."""
        module = self.ops[at].module
        while True:
            why = f"the code of {module or 'the model'} depends on this size"
            inside = [op for op in self.ops if not module or lies_in(op.module, module)]
            found = [dim for op in inside for dims in op.outs for dim in dims or ()]
            if axes.can_shrink(*found) or not module:
                break
            module = holder(module)
        for layout in found:
            axes.fix(layout, why)


def _dependent(ops: Sequence[Op]) -> list[Op]:
    """The operations that depend on a parameter or a floating-point input."""
    constant: set[Tag] = set()
    found: list[Op] = []
    for op in ops:
        if constant.issuperset(op.reads()):
            constant.update(op.writes())
        else:
            found.append(op)
    return found


def _fix(layouts: Sequence[Layout], op: Op) -> bool:
    """Fix some layouts because an operation computes with a number made from their size; whether one was free."""
    free = axes.can_shrink(*layouts)
    for layout in layouts:
        axes.fix(layout, f"{op} computes with a number made from this size")
    return free


def _wider(named: Mapping[str, Axis]) -> dict[str, int]:
    """Different widths for all axes, so that one integer is not mistaken for another.

    They are larger than the axes, because a width of 1 would change which operators run (view for reshape).
    """
    widths: dict[str, int] = {}
    taken: set[int] = set()
    for name, axis in named.items():
        width = axis.size + 1
        while width in taken:
            width += 1
        taken.add(width)
        widths[name] = width
    return widths
