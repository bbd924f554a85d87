"""Integers that must follow when axes shrink: `num_heads` in a module, `C` read off another shape.

After tracing, a second pass over the skeleton at other widths (every axis larger, by a width of its own) checks
that each operator meets the shapes its layouts foretell. Where it does not, the forward code uses an
integer of the old size. In this order, the next pass deciding each time:
  1. an attribute of the running module (or of one around it) holds that integer: it will follow;
  2. the integer was read off an input of the module: the two dimensions are the same, unify them;
  3. otherwise the axes cannot shrink: fix them, and say where.
A number computed from a size (1 / sqrt(head_dim)) would change the function, so its axes are fixed too.
What is found in one module is applied to all modules of its class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prunus.errors import TraceError
from prunus.graph import axes
from prunus.graph.attributes import Attribute, set_attributes, slots
from prunus.graph.axes import Layout
from prunus.graph.op import Op
from prunus.graph.operators import CONVOLUTION
from prunus.graph.rules import registry
from prunus.graph.skeleton import (
    SameDevice,
    call,
    compute,
    mixes_devices,
    named_tensors,
    quiet_forward,
    same_device,
)
from prunus.graph.tracer import Tracer


class _Mismatch(Exception):
    """An operator met other shapes or numbers than foretold."""


class _Probe(TorchDispatchMode):
    """Compares a pass at other widths with the traced one, operator by operator."""

    def __init__(self, ops: list[Op], widths: Mapping[str, int]):
        super().__init__()
        self.ops, self.widths, self.at = ops, widths, 0
        self.number = False  # whether what differed was a number, not a shape

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if self.at >= len(self.ops) or self.ops[self.at].func is not func:
            raise _Mismatch
        op = self.ops[self.at]
        numbers = registry.scalars(func, args, kwargs or {})
        args, kwargs = same_device(args, kwargs or {})
        if not all(
            _agrees(args, argument, element, axes.size(f, self.widths)) for f, argument, element in op.follows
        ):
            raise _Mismatch
        out = compute(func, args, kwargs)
        for tensor, dims in zip(out if isinstance(out, (tuple, list)) else [out], op.outs, strict=False):
            if dims is not None and list(tensor.shape) != [axes.size(d, self.widths) for d in dims]:
                raise _Mismatch
        if op.outs and numbers != op.scalars:
            self.number = True
            raise _Mismatch
        self.at += 1
        return out


def _agrees(args: tuple, argument: int, element: int | None, expected: int) -> bool:
    """Whether an integer argument is what its layout foretells; -1 and counts from the end say nothing."""
    if argument >= len(args) or args[argument] is None:
        return True
    value = args[argument] if element is None else args[argument][element]
    return value < 0 or value == expected


class Follower:
    """Finds the attributes of `bare` that follow, given the traced operations and layouts."""

    def __init__(self, bare: nn.Module, example: Any, traced: Tracer, layouts: dict[str, list[Layout]]):
        self.bare, self.example, self.ops, self.layouts = bare, example, traced.ops, layouts
        self.inputs = traced.modules.inputs
        self.modules = dict(bare.named_modules())
        self.slots = slots(bare)
        self.dtypes = {name: t.dtype for name, t in named_tensors(bare).items() if t.is_meta}
        self.chosen: dict[type, list[Attribute]] = {}  # per class of module, the attributes that follow
        self.tried: set[tuple] = set()  # what was chosen so far, see _resolve
        self.kinds = self._kinds()
        self.error: Exception | None = None  # what the last probe ran into

    def _kinds(self) -> list[tuple]:
        """Per operation: the class of its module, its place among that module's operations, its name."""
        seen: dict[str, int] = defaultdict(int)
        kinds = []
        for op in self.ops:
            kinds.append((type(self.modules.get(op.module)), seen[op.module], op.name))
            seen[op.module] += 1
        return kinds

    @property
    def attributes(self) -> list[Attribute]:
        found = {(a.module, a.name, a.item): a for group in self.chosen.values() for a in group}
        return list(found.values())

    def settle(self, name_axes: Any) -> list[Attribute]:
        """Probe until a whole pass agrees, then drop the attributes that need not follow.

        `name_axes()` names the axes that are left and returns them.
        """
        for kind in dict.fromkeys(map(type, self.modules.values())):
            if _is_torch(kind):
                self._choose_attributes(kind)
        for _ in range(4 * len(set(self.kinds)) + 8):
            failed = self._probe(name_axes())
            if failed is None:
                self._minimise(name_axes())
                return self.attributes
            self._resolve(*failed)
        raise TraceError(
            f"the sizes used in this model's forward could not be followed (last: {self.error!r}); trace a sub-module "
            "instead: part, example = prunus.part(model, 'NAME', inputs)."
        ) from self.error

    def _probe(self, named: dict[str, axes.Axis]) -> tuple[int, bool] | None:
        """One pass at other widths. None if all agrees, else (operation, whether a number differed)."""
        if not named or not any(op.follows or op.scalars for op in self.ops):
            return None
        widths = _probe_widths(named)
        originals = {(m, a): getattr(m, a) for places in self.slots.values() for m, a in places}
        attributes = self.attributes
        old = {(a.module, a.name): getattr(self.modules[a.module], a.name) for a in attributes}
        probe = _Probe(self.ops, widths)
        try:
            self._resize(widths)
            set_attributes(self.bare, attributes, widths)
            example = tree_map_only(torch.Tensor, _as_traced, self.example)
            with quiet_forward(), probe, SameDevice() if mixes_devices(example) else nullcontext():
                call(self.bare, example)
            return None if probe.at == len(self.ops) else (probe.at, False)
        except Exception as error:  # whatever the user's code raises when sizes disagree
            self.error = error
            return min(probe.at, len(self.ops) - 1), probe.number
        finally:
            for (module, name), tensor in originals.items():
                setattr(module, name, tensor)
            for (module, name), value in old.items():
                setattr(self.modules[module], name, value)

    def _resize(self, widths: dict[str, int]) -> None:
        for name, dtype in self.dtypes.items():
            shape = [axes.size(layout, widths) for layout in self.layouts[name]]
            tensor = torch.empty(shape, dtype=dtype, device="meta")
            for module, attribute in self.slots[name]:
                is_parameter = attribute in module._parameters
                value = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
                setattr(module, attribute, value)

    def _resolve(self, at: int, number: bool) -> None:
        """Make the next choice for the operation that failed, or the next one whose integers matter."""
        if number:
            self._fix_number(at)
            return
        running = type(self.modules[self.ops[at].module])
        if ("attributes", running) not in self.tried:
            self.tried.add(("attributes", running))
            if self._choose_attributes(running):
                return
        near = [i for i in range(at, min(at + 4, len(self.ops))) if self._free(self.ops[i])]
        near = near or [i for i in range(at, -1, -1) if self._free(self.ops[i])][:1]
        if not near:
            self._fix_around(at)
            return
        kind = self.kinds[near[0]]
        here = [op for op, other in zip(self.ops, self.kinds, strict=True) if other == kind]
        everywhere = [op for op, other in zip(self.ops, self.kinds, strict=True) if other[0] is kind[0]]
        choices = [
            (("attributes", kind[0]), lambda: self._choose_attributes(kind[0])),
            (("backwards", kind[0]), lambda: self._choose_attributes(kind[0], backwards=True)),
            (("shared", kind[0]), lambda: self._choose_attributes(kind[0], share=True)),
            (("tuples", kind[0]), lambda: self._choose_attributes(kind[0], share=True, tuples=True)),
            (("inputs", kind), lambda: self._unify_inputs(here)),
            (("inputs", kind[0]), lambda: self._unify_inputs(everywhere)),
            (("fix", kind), lambda: self._fix_integers(here)),
            (("fix", kind[0]), lambda: self._fix_integers(everywhere)),
        ]
        untried = [(key, choose) for key, choose in choices if key not in self.tried]
        for key, choose in untried:
            self.tried.add(key)
            if choose():
                return
        self._fix_around(at)

    def _free(self, op: Op) -> bool:
        return any(True for layout, _, _ in op.follows for _ in axes.leaves(layout))

    def _choose_attributes(
        self, kind: type, backwards: bool = False, share: bool = False, tuples: bool = False
    ) -> bool:
        """Let the attributes that hold the integers follow; whether that is anything new.

        Where one integer stands for several layouts (8 heads of 8 features) they are taken in the order of
        the forward pass, or backwards. `share`: what stands at the same place of a shape is one and the same
        (the features of queries and of values, where one attribute holds both). `tuples`: integers in tuples
        follow even where one of its own has the same value.
        """
        wanted: dict[str, dict[int, list]] = defaultdict(
            lambda: defaultdict(list)
        )  # module, integer -> layouts
        for op in self.ops:
            if type(self.modules.get(op.module)) is kind:
                for layout, _, element in op.follows:
                    if any(axes.leaves(layout)):
                        wanted[op.module][axes.size(layout)].append((element, layout))
        for name, dims in self.layouts.items():
            module = name.rpartition(".")[0]
            if type(self.modules.get(module)) is kind:
                for layout in dims:  # the sizes of its own weights, which its checks may read
                    if any(axes.leaves(layout)):
                        wanted[module][axes.size(layout)].append((None, layout))
        # the groups of a convolution are known from its operator, and never guessed from the size of a weight
        convolutions = {type(self.modules[op.module]) for op in self.ops if op.is_a(CONVOLUTION)}
        groups = {axes.normal(f) for op in self.ops if op.is_a(CONVOLUTION) for f, _, _ in op.follows}
        found: dict[tuple, Attribute] = {}
        joined = False
        for module, integers in wanted.items():
            for value, uses in integers.items():
                places = _holders(self.modules, module, value, tuples)
                layouts = _distinct(uses)
                if share and places and len(layouts) > 1:
                    _unify_places(uses, f"the integer {value} in {module}")
                    layouts = _distinct(uses)
                    joined = True
                order = layouts[::-1] if backwards else layouts
                for i, place in enumerate(places):
                    layout = order[min(i, len(order) - 1)]
                    if place[1] != "groups" or kind not in convolutions or axes.normal(layout) in groups:
                        found.setdefault(place, Attribute(*place, layout))
        old = self.chosen.get(kind)
        self.chosen[kind] = list(found.values())
        return joined or (bool(found) and self.chosen[kind] != old)

    def _unify_inputs(self, ops: list[Op]) -> bool:
        """The integers were read off an input of the module; whether that couples anything new."""
        new = False
        for op in ops:
            for layout, _, _ in op.follows:
                for other in self.inputs.get(op.module, ()):
                    a, b = axes.normal(layout), axes.normal(other)
                    if a != b and axes.size(a) == axes.size(b) and any(axes.leaves(b)):
                        axes.unify(a, b, op)
                        new = True
        if new:
            self._choose_attributes(type(self.modules[ops[0].module]))
        return new

    def _fix_integers(self, ops: list[Op]) -> bool:
        for op in ops:
            for layout, _, _ in op.follows:
                why = f"{op} uses the integer {axes.size(layout)}, which nothing lets follow"
                axes.fix(layout, why)
        return True

    def _minimise(self, named: dict[str, axes.Axis]) -> None:
        """Where several attributes hold one integer, let only those follow without which the pass fails."""
        held: dict[tuple, set[str]] = defaultdict(set)
        for attribute in self.attributes:
            held[attribute.module, axes.size(attribute.layout)].add(attribute.name)
        for kind, group in list(self.chosen.items()):
            doubtful = [a.name for a in group if len(held[a.module, axes.size(a.layout)]) > 1]
            for name in dict.fromkeys(doubtful):
                kept = self.chosen[kind]
                self.chosen[kind] = [a for a in kept if a.name != name]
                if self._probe(named) is not None:
                    self.chosen[kind] = kept

    def _fix_number(self, at: int) -> None:
        """A number derived from a size: fix what it was derived from. Most likely that is the last dimension,
        else what the last product in this module summed over (the features of attention), else anything near."""
        same = [(i, op) for i, op in enumerate(self.ops) if self.kinds[i] == self.kinds[at]]
        products = [[o for o in self.ops[:i] if o.macs and o.module == op.module][-1:] for i, op in same]
        guesses = [
            [dims[-1] for _, op in same for dims in op.outs if dims],
            [product.over for found in products for product in found],
            [layout for _, op in same for dims in op.outs for layout in dims or ()],
        ]
        why = f"{self.ops[at]} multiplies by a number computed from this size"
        for layouts in guesses:
            if any(True for layout in layouts for _ in axes.leaves(layout)):
                for layout in layouts:
                    axes.fix(layout, why)
                return
        self._fix_around(at)

    def _fix_around(self, at: int) -> None:
        """The code took another way at other sizes: nothing its module touches may shrink."""
        module = self.ops[at].module
        for op in self.ops:
            if op.module.startswith(module):
                for dims in op.outs:
                    for layout in dims or ():
                        axes.fix(layout, f"the code of {module or 'the model'} depends on this size")


def _probe_widths(named: dict[str, axes.Axis]) -> dict[str, int]:
    """A width of its own for every axis, so that one integer is not mistaken for another.

    Larger than the axis: a width of 1 would change which operators run (a reshape becomes a view).
    """
    widths: dict[str, int] = {}
    for name, axis in named.items():
        width = axis.size + 1
        while width in widths.values():
            width += 1
        widths[name] = width
    return widths


def _distinct(uses: list[tuple[int | None, Layout]]) -> list[Layout]:
    return list({axes.normal(layout): layout for _, layout in uses}.values())


def _unify_places(uses: list[tuple[int | None, Layout]], why: str) -> None:
    """Unify the layouts that were first used at the same element of a shape."""
    elements: dict[Layout, int | None] = {}
    for element, layout in uses:
        elements.setdefault(axes.normal(layout), element)
    first: dict[int | None, Layout] = {}
    for layout, element in elements.items():
        axes.unify(first.setdefault(element, layout), layout, why)


# what torch's own layers say about themselves but never read (surgery renews it), or what is no size of an axis
_STATED = {
    *("in_channels", "out_channels", "in_features", "out_features", "num_embeddings", "embedding_dim"),
    *("kdim", "vdim", "kernel_size", "stride", "padding", "dilation", "output_padding"),
    "_reversed_padding_repeated_twice",
}


def _is_torch(kind: type) -> bool:
    return kind.__module__.startswith("torch.nn.modules")


def _holders(
    modules: dict[str, nn.Module], name: str, value: int, tuples: bool
) -> list[tuple[str, str, int | None]]:
    """Integer attributes equal to `value` in the module, else in the nearest module around it.

    An integer of its own counts before one in a tuple, which is more often a kernel or window size.
    """
    while True:
        held = vars(modules[name])
        own = _is_torch(type(modules[name]))  # torch's layers read no other module's attributes
        stated = _STATED if own else ()
        alone = [
            (name, key, None)
            for key, v in held.items()
            if type(v) is int and v == value and key not in stated
        ]
        inside = [
            (name, key, i)
            for key, v in held.items()
            if isinstance(v, (tuple, list)) and key not in stated
            for i, item in enumerate(v)
            if type(item) is int and item == value
        ]
        if alone or inside or own or not name:
            return alone + inside if tuples else alone or inside
        name = name.rpartition(".")[0]


def _as_traced(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("meta") if tensor.is_floating_point() else tensor.detach().clone()
