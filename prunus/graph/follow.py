"""Integers that must follow when axes shrink: `num_heads` in a module, `C` read off another shape.

After tracing, a second pass over the skeleton at other widths (all larger, no two alike) checks that each
operator meets the shapes that its layouts predict. If one does not, the forward code uses an integer of the
old size. These remedies are tried in order, each checked by another pass:
  1. an attribute of the running module (or of one around it) holds that integer: it will follow;
  2. the integer was read off an input of the module: the two dimensions are the same, unify them;
  3. otherwise the axes cannot shrink: fix them, and say where.
A number computed from a size (1 / sqrt(head_dim)) would change the function, so its axes are fixed too.
A remedy found for one module is applied to all modules of its class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
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
from prunus.graph.operators import CONVOLUTION, Args, Kwargs
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

Kind = tuple[type, int, str]  # an operation's module class, its place among the module's operations, its name
Use = tuple[int | None, Layout]  # the element of a shape at which a layout is used, if it is one
Place = tuple[str, str, int | None]  # a module, one of its attributes, an item of it


class _Mismatch(Exception):
    """An operator met other shapes or numbers than predicted."""


class _Probe(TorchDispatchMode):
    """Compares a pass at other widths with the traced one, operator by operator."""

    def __init__(self, ops: list[Op], widths: Mapping[str, int]):
        super().__init__()
        self.ops, self.widths, self.at = ops, widths, 0
        self.number = False  # whether what differed was a number, not a shape

    def __torch_dispatch__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
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


def _agrees(args: Args, argument: int, element: int | None, expected: int) -> bool:
    """Whether an integer argument is what its layout predicts; negative ones (-1, from the end) agree."""
    if argument >= len(args) or args[argument] is None:
        return True
    value = args[argument] if element is None else args[argument][element]
    return value < 0 or value == expected


class Follower:
    """Finds the attributes of a skeleton that follow, given the traced operations and layouts."""

    def __init__(self, bare: nn.Module, example: Any, traced: Tracer, layouts: dict[str, list[Layout]]):
        self.bare, self.example, self.ops, self.layouts = bare, example, traced.ops, layouts
        self.inputs = traced.modules.inputs
        self.modules = dict(bare.named_modules())
        self.slots = slots(bare)
        self.dtypes = {name: t.dtype for name, t in named_tensors(bare).items() if t.is_meta}
        self.chosen: dict[type, list[Attribute]] = {}  # the attributes that follow, per class of module
        self.tried: set[tuple[str, type | Kind]] = set()  # the remedies so far, see _choose_next
        self.kinds = self._kinds()
        self.error: Exception | None = None  # the one that ended the last probe

    def _kinds(self) -> list[Kind]:
        """The kind of each operation."""
        seen: dict[str, int] = defaultdict(int)
        kinds: list[Kind] = []
        for op in self.ops:
            kinds.append((type(self.modules.get(op.module)), seen[op.module], op.name))
            seen[op.module] += 1
        return kinds

    @property
    def attributes(self) -> list[Attribute]:
        """The attributes chosen so far, each once."""
        found = {(a.module, a.name, a.item): a for group in self.chosen.values() for a in group}
        return list(found.values())

    def resolve(self, name_axes: Callable[[], dict[str, axes.Axis]]) -> list[Attribute]:
        """Probe until a whole pass agrees, then drop the attributes that need not follow.

        name_axes: names the axes that may still shrink, and returns them. Returns the attributes that follow.
        Raises TraceError if no remedy makes a pass agree.
        """
        for kind in dict.fromkeys(map(type, self.modules.values())):
            if _is_torch(kind):
                self._choose_attributes(kind)
        for _ in range(4 * len(set(self.kinds)) + 8):
            failed = self._probe(name_axes())
            if failed is None:
                self._minimise(name_axes())
                return self.attributes
            self._choose_next(*failed)
        raise TraceError(
            f"the sizes used in this model's forward could not be followed (last: {self.error!r}); trace a sub-module "
            "instead: part, example = prunus.part(model, 'NAME', inputs)."
        ) from self.error

    def _probe(self, named: dict[str, axes.Axis]) -> tuple[int, bool] | None:
        """Run a pass at other widths; None if it agrees, otherwise (operation, whether a number differed)."""
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
            with quiet_forward(), probe, SameDevice() if mixes_devices(self.bare, example) else nullcontext():
                call(self.bare, example)
            return None if probe.at == len(self.ops) else (probe.at, False)
        except Exception as error:  # any error that the user's code raises when sizes disagree
            self.error = error
            return min(probe.at, len(self.ops) - 1), probe.number
        finally:
            for (module, name), tensor in originals.items():
                setattr(module, name, tensor)
            for (module, name), value in old.items():
                setattr(self.modules[module], name, value)

    def _resize(self, widths: dict[str, int]) -> None:
        """Replace the skeleton's abstract tensors by those of other widths."""
        for name, dtype in self.dtypes.items():
            shape = [axes.size(layout, widths) for layout in self.layouts[name]]
            tensor = torch.empty(shape, dtype=dtype, device="meta")
            for module, attribute in self.slots[name]:
                is_parameter = attribute in module._parameters
                value = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
                setattr(module, attribute, value)

    def _choose_next(self, at: int, number: bool) -> None:
        """Try the next remedy for the operation that failed, or for the next one that uses integers."""
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
        """Whether an operation uses an integer whose axes may shrink."""
        return any(True for layout, _, _ in op.follows for _ in axes.leaves(layout))

    def _choose_attributes(
        self, kind: type, backwards: bool = False, share: bool = False, tuples: bool = False
    ) -> bool:
        """Let the attributes that hold the integers follow; whether that is anything new.

        If one integer stands for several layouts (8 heads of 8 features) they are taken in the order of the
        forward pass, or backwards. share: layouts at the same place of a shape are unified (the features of
        queries and of values, if one attribute holds both). tuples: integers in tuples follow too, even if an
        attribute of its own has the same value.
        """
        # by module and integer
        wanted: dict[str, dict[int, list[Use]]] = defaultdict(lambda: defaultdict(list))
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
        found: dict[Place, Attribute] = {}
        joined = False
        for module, integers in wanted.items():
            for value, uses in integers.items():
                places = _holders(self.modules, module, value, tuples)
                layouts = _different(uses)
                if share and places and len(layouts) > 1:
                    _unify_places(uses, f"the integer {value} in {module}")
                    layouts = _different(uses)
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
        """Unify the integers with equal dimensions of the module's inputs; whether that is anything new."""
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
        """Fix every axis that an integer of these operations depends on; always a change."""
        for op in ops:
            for layout, _, _ in op.follows:
                why = f"{op} uses the integer {axes.size(layout)}, which no attribute or input holds"
                axes.fix(layout, why)
        return True

    def _minimise(self, named: dict[str, axes.Axis]) -> None:
        """If several attributes hold one integer, keep only those without which the pass fails."""
        held: dict[tuple[str, int], set[str]] = defaultdict(set)
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
        """Fix the size from which a number was derived.

        Most likely that is the last dimension, otherwise the one over which the last product in this module
        summed (the features of attention), otherwise any dimension of these operations.
        """
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
        """Fix all that a module touches, because its code takes another way at other sizes."""
        module = self.ops[at].module
        for op in self.ops:
            if op.module.startswith(module):
                for dims in op.outs:
                    for layout in dims or ():
                        axes.fix(layout, f"the code of {module or 'the model'} depends on this size")


def _probe_widths(named: dict[str, axes.Axis]) -> dict[str, int]:
    """Different widths for all axes, so that one integer is not mistaken for another.

    They are larger than the axes, because a width of 1 would change which operators run (view for reshape).
    """
    widths: dict[str, int] = {}
    for name, axis in named.items():
        width = axis.size + 1
        while width in widths.values():
            width += 1
        widths[name] = width
    return widths


def _different(uses: list[Use]) -> list[Layout]:
    return list({axes.normal(layout): layout for _, layout in uses}.values())


def _unify_places(uses: list[Use], why: str) -> None:
    """Unify the layouts that were first used at the same element of a shape."""
    elements: dict[Layout, int | None] = {}
    for element, layout in uses:
        elements.setdefault(axes.normal(layout), element)
    first: dict[int | None, Layout] = {}
    for layout, element in elements.items():
        axes.unify(first.setdefault(element, layout), layout, why)


# attributes of torch's own layers that state a size but are never read (surgery updates them), or are no size
_STATED = {
    *("in_channels", "out_channels", "in_features", "out_features", "num_embeddings", "embedding_dim"),
    *("kdim", "vdim", "kernel_size", "stride", "padding", "dilation", "output_padding"),
    "_reversed_padding_repeated_twice",
}


def _is_torch(kind: type) -> bool:
    return kind.__module__.startswith("torch.nn.modules")


def _holders(modules: dict[str, nn.Module], name: str, value: int, tuples: bool) -> list[Place]:
    """Integer attributes equal to `value` in the module, otherwise in the nearest module around it.

    An attribute of its own is preferred to an item of a tuple, which is more often a kernel or window size.
    """
    while True:
        held = vars(modules[name])
        own = _is_torch(type(modules[name]))  # torch's layers read no other module's attributes
        stated = _STATED if own else ()
        alone: list[Place] = [
            (name, key, None)
            for key, v in held.items()
            if type(v) is int and v == value and key not in stated
        ]
        inside: list[Place] = [
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
    """A copy of an input, abstract if it was so in the trace."""
    return tensor.detach().to("meta") if tensor.is_floating_point() else tensor.detach().clone()
