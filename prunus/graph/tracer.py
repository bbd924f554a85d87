"""One forward pass, observed: every operator passes through its rule, and every tensor gets its layouts.

The pass runs on a skeleton of the model, so nothing is computed.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prunus.graph.attributes import Integers
from prunus.graph.axes import Axis, Layout
from prunus.graph.calls import Modules
from prunus.graph.experts import PICKING, choose_experts
from prunus.graph.op import Op, Tag, Untracked, is_inexact, new_generation, put_tag, tag_of, tensors_in
from prunus.graph.operators import DATA_DEPENDENT, EMBEDDING, MOVE, NEW, Args, Kwargs, flat, is_a
from prunus.graph.origins import Origins, seen_through
from prunus.graph.rules import indexing, registry
from prunus.graph.sizes import Journal, Sized, number_text, origins, plain
from prunus.graph.skeleton import (
    SameDevice,
    compute,
    make_skeleton,
    mixes_devices,
    named_tensors,
    quiet_forward,
    same_device,
    seeded,
)
from prunus.graph.state import kept_tensors
from prunus.graph.symbols import concrete, terms_of
from prunus.inputs import call


class Storage:
    """One allocation of the forward pass, for the memory cost.

    Args:
        dims: The layout of each dimension.
        bytes_per_element: The size of one element in bytes.
        born: The number of the operation that made it. `died` is the number of the last one that read it.
    """

    __slots__ = ("born", "bytes_per_element", "died", "dims")

    def __init__(self, dims: list[Layout], bytes_per_element: int, born: int):
        self.dims, self.bytes_per_element, self.born, self.died = dims, bytes_per_element, born, born


def user_line() -> str:
    """The innermost line of the user's code on the stack, as "file:line: source"."""
    own, library = (
        f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(torch.__file__).parent)
    )
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith((own, library)):
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return "unknown line"


class DataDependentError(Exception):
    """A forward pass asks for a value that abstract tensors do not have; says which, and where."""


class Tracer(TorchDispatchMode):
    """Passes each operator through its rule and tags its results."""

    def __init__(self, modules: Modules):
        super().__init__()
        self.modules = modules
        self.origins: Origins | None = None
        self.ops: list[Op] = modules.ops
        self.storages: list[Storage] = []
        self.reads_data = False  # whether the code reads values off the data, which may decide its way
        self.read: dict[Op, Any] = {}  # what these were, and what operators without a rule returned, if real
        self.tensors: dict[Tag, str] = {}  # parameters and buffers, before anything wrote to them

    def __torch_dispatch__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        kwargs = kwargs or {}
        name, rule = registry.find(func)
        terms = terms_of(args) if self.origins is not None else {}
        if self.origins is not None:
            args = tuple(map(concrete, args))
            kwargs = {key: concrete(value) for key, value in kwargs.items()}
        tensors = tensors_in(args) + tensors_in(kwargs.values())
        tags = [tag for tag in map(tag_of, tensors) if tag is not None]
        reads = is_a(func, DATA_DEPENDENT) or indexing.masks(func, args)
        if reads:
            self.reads_data |= bool(tags)
            if any(t.is_meta for t in tensors):
                what = "an input" if any(tag.data for tag in tags) else "the weights"
                raise DataDependentError(f"{name} reads a value that depends on {what}, at {user_line()}")
        seen = bool(tags) or is_a(func, NEW)
        numbers = registry.scalars(func, args, kwargs) if seen else ()
        inputs = _values(args), dict(zip(kwargs, _values(kwargs.values()), strict=True))
        args, kwargs = same_device(args, kwargs)
        out = compute(func, args, kwargs)
        op = Op(func, self.modules.stack[-1], out)
        if seen:
            op.scalars, op.inputs, op.terms = numbers, inputs, terms
            op.outs = _as_list(rule(op, *args, **kwargs))
            op.carry_places(tensors)
            if (reads or rule is registry.unknown) and not any(t.is_meta for t in tensors):
                self.read[op] = out
            if self.origins is not None and (self.origins.given or self.origins.scale):
                self._find_terms(op, self.origins, args)
            self._tag(op, out, tags)
        op.out = None
        self.ops.append(op)
        return out

    def _find_terms(self, op: Op, function: Origins, args: Args) -> None:
        """Terms of integers that torch takes no symbols for, and of numbers, among those that a function was given."""
        given = list(flat(function.given))
        for _, place, element in op.follows:
            known = (place, element) in op.terms or op.takes_symbol(place, element)
            if not known and place < len(args):
                same = [n.term for n in given if isinstance(n, Sized) and plain(n) == args[place]]
                if same:
                    op.terms[place, element] = same[0]
        numbers = [n for n in function.given if isinstance(n, (int, float)) and number_text(n) in op.scalars]
        op.origins = origins(numbers) or (function.scale if op.scalars else ())

    def _tag(self, op: Op, out: Any, tags: list[Tag]) -> None:
        now = len(self.ops)
        for tag in tags:
            tag.met = True
            if tag.storage is not None:
                tag.storage.died = now
        outputs = out if isinstance(out, (tuple, list)) else [out]
        shared = tag_of(op.alias)
        data = op.is_a(EMBEDDING) or any(tag.data for tag in tags)
        picked = any(tag.picked for tag in tags) if op.is_a(MOVE) else op.picks and not op.reads()[0].data
        for number, (tensor, dims) in enumerate(zip(outputs, op.outs, strict=False)):
            op.results.append(None)
            if dims is None or not isinstance(tensor, torch.Tensor):
                continue
            old = tag_of(tensor)  # an operator in place returns its input
            if old is not None:
                storage = old.storage
            elif shared is not None:
                storage = shared.storage
            else:
                storage = Storage(dims, tensor.element_size(), now)
                self.storages.append(storage)
            op.results[-1] = tag = Tag(dims, storage, data, op.places_in(number), picked)
            tensor._prunus_tag = tag  # pyright: ignore[reportAttributeAccessIssue]  # put_tag, without a call


def _values(args: Collection[Any]) -> list[Any]:
    """Arguments with a tag in the place of each tensor, also of those in lists."""
    if not any(isinstance(arg, (torch.Tensor, list, tuple)) for arg in args):
        return list(args)
    return [
        (tag_of(arg) or Untracked(arg.shape))
        if isinstance(arg, torch.Tensor)
        else _values(arg)
        if isinstance(arg, (list, tuple))
        else arg
        for arg in args
    ]


def _as_list(outs: Any) -> list[list[Layout] | None]:
    return list(outs) if isinstance(outs, tuple) else [outs]


def run(
    bare: nn.Module,
    example: Any,
    tags: dict[str, list[Layout]],
    integers: Integers | None = None,
    terms: bool = True,
) -> tuple[Tracer, Any]:
    """Run a skeleton once under a tracer, its parameters and buffers tagged with the layouts `tags`.

    integers: those of the skeleton, whose state is put back after the pass. terms: give them terms for the pass.
    Returns the tracer (operations, allocations) and the output. Inputs of floating-point or complex numbers become
    abstract if the skeleton is.
    """
    new_generation()
    tensors = named_tensors(bare)
    meta = any(tensor.is_meta for tensor in tensors.values())
    owners: dict[Tag, str] = {}
    for name, tensor in (tensors | kept_tensors(bare)).items():
        if name in tags:
            tag = Tag(tags[name])
            put_tag(tensor, tag)
            owners[tag] = name

    def abstract(tensor: torch.Tensor) -> torch.Tensor:
        if not is_inexact(tensor):
            return tensor.detach().clone()  # the forward may write to it
        tensor = tensor.detach().to("meta") if meta else tensor.detach().clone()
        dims: list[Layout] = list(tensor.shape)
        storage = Storage(dims, tensor.element_size(), 0)
        put_tag(tensor, Tag(dims, storage, data=True))
        tracer.storages.append(storage)
        return tensor

    modules = Modules(bare)
    tracer = Tracer(modules)
    tracer.tensors = owners
    with ExitStack() as stack:
        stack.callback(modules.remove)
        if integers is not None:
            journal = Journal(lambda: modules.stack[-1]) if terms else None
            tracer.origins = None if journal is None else Origins(journal, tracer.ops, tracer.storages)
            stack.callback(integers.restore)
            integers.mark(journal)
        example = tree_map_only(torch.Tensor, abstract, example)
        stack.enter_context(quiet_forward())
        stack.enter_context(seeded())
        stack.enter_context(tracer)
        if meta and mixes_devices(bare, example):
            stack.enter_context(SameDevice())
        if tracer.origins is not None:
            stack.enter_context(seen_through())
            stack.enter_context(tracer.origins)
        output = call(bare, example)
    return tracer, output


def fresh_layouts(bare: nn.Module) -> dict[str, list[Layout]]:
    """A new axis for every dimension of every parameter, buffer and tensor kept otherwise."""
    tensors = named_tensors(bare) | kept_tensors(bare)
    return {name: [Axis(n) for n in tensor.shape] for name, tensor in tensors.items()}


def operators_of(model: nn.Module, mode: str, example: Any) -> list[tuple[Any, ...]]:
    """List what a model runs in a mode.

    Args:
        model: The model, which is left untouched.
        mode: "eval" or "train".
        example: Its arguments.

    Returns:
        For each operation the operator, its numbers, and the shapes of its results.
    """
    bare = make_skeleton(model).train(mode == "train")
    choose_experts(bare, PICKING)
    tracer, _ = run(bare, example, fresh_layouts(bare), terms=False)
    return [(op.func, op.scalars, *(tag.shape for tag in op.writes())) for op in tracer.ops]
