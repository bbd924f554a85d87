"""Tracing a model into a graph, with its axes named and the unused ones fixed."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from prunus.errors import TraceError, UserError, unknown
from prunus.graph import axes, skeleton, tracer
from prunus.graph.axes import Axis, Layout
from prunus.graph.follow import Follower
from prunus.graph.graph import Graph, _short
from prunus.graph.op import tag_of
from prunus.graph.operators import Args, Kwargs


@torch.inference_mode(
    False
)  # inference mode would hide the operators that convolutions and linear layers consist of
def trace(model: nn.Module, example: Any) -> Graph:
    """Run a model once on the meta device and infer its axes. Source: ours (design, section 3).

    Args:
        model: The model, which is left untouched.
        example: A tensor, a tuple of arguments or a dict of keyword arguments, as the model takes them; only
            shapes matter, but integer tensors (token ids) are used as they are.

    Returns:
        The graph, which serves every copy of the model.

    Raises:
        TraceError: The forward pass depends on data, or nothing in the model may shrink.
        UserError: `model` is not an nn.Module, was compiled, or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"trace expects an nn.Module, but got a {type(model).__name__}; pass the model itself."
        )
    if hasattr(model, "_orig_mod"):
        raise UserError("this model went through torch.compile; trace the model itself (model._orig_mod).")
    lazy = [
        name for name, tensor in skeleton.named_tensors(model).items() if torch.nn.parameter.is_lazy(tensor)
    ]
    if lazy:
        raise TraceError(f"{lazy[0]} has no shape yet; run the model once on real inputs, then trace it.")
    example = tree_map_only(
        torch.Tensor, lambda tensor: tensor.detach().clone(), example
    )  # the graph keeps it
    graph = _trace(model, example, real=False) or _trace(model, example, real=True)
    assert graph is not None, "a trace with real tensors returns or raises"
    if not graph.axes:
        why = _short([f"{what}: {reason}" for what, reason in graph.fixed], 3) or "no parameters at all"
        raise TraceError(f"nothing in this {type(model).__name__} may shrink: {why}.")
    return graph


def _trace(model: nn.Module, example: Any, real: bool) -> Graph | None:
    """Trace on the meta device, or with real tensors; None if the model fails on the meta device."""
    bare = skeleton.make_skeleton(model, real)
    layouts = tracer.fresh_layouts(bare)
    owners = {id(axis): (name, dim) for name, dims in layouts.items() for dim, axis in enumerate(dims)}
    try:
        traced, output = tracer.run(bare, example, layouts)
    except TraceError:
        raise
    except Exception as error:  # any error of the user's code
        if not real:
            return None
        raise TraceError(f"the model's forward pass failed on the example: {error}") from error
    outputs = tracer.output_tensors(output)
    if not any(tag_of(tensor) for tensor in outputs):
        raise TraceError("no output of the model depends on its parameters and inputs.")
    for tensor in outputs:
        tag = tag_of(tensor)
        for layout in tag.dims if tag else ():
            axes.fix(layout, "an output of the model")
    roles: dict[tuple[str, int], str] = {}
    for op in traced.ops:
        for layout, role in op.roles:
            if id(layout) in owners:
                roles.setdefault(owners[id(layout)], role)
    parameters = dict(bare.named_parameters())
    tags = {name: tag_of(tensor) for name, tensor in skeleton.named_tensors(bare).items()}
    met = {name for name, tag in tags.items() if tag is not None and tag.met}
    _fix_unused(parameters, layouts, met)

    def name_axes() -> dict[str, Axis]:
        return _name_axes(layouts, parameters)

    if real:  # probing needs abstract tensors, so no integer can be followed: the proof decides alone
        warnings.warn("traced with real tensors, because the meta device cannot run this model", stacklevel=3)
    attributes = [] if real else Follower(bare, example, traced, layouts).resolve(name_axes)
    named = name_axes()
    for layout in [layout for dims in layouts.values() for layout in dims]:
        for axis in axes.leaves(layout):
            if axis.name not in named:
                axes.fix(axis, "only buffers lie along it")
    return Graph(
        axes=named,
        layouts=layouts,
        shapes={name: tensor.shape for name, tensor in skeleton.named_tensors(bare).items()},
        parameters=frozenset(parameters),
        ops=traced.ops,
        storages=traced.storages,
        tensors=traced.tensors,
        outputs=[tag for tag in map(tag_of, outputs) if tag is not None],
        attributes=[a for a in attributes if any(axes.leaves(a.layout))],
        example=example,
        modes={"eval": example},
        _roles=roles,
        _classes={name: type(module).__name__ for name, module in model.named_modules()},
    )


def _fix_unused(parameters: Collection[str], layouts: dict[str, list[Layout]], met: set[str]) -> None:
    """Fix the tensors that no operator met (an auxiliary head, say): it is unknown how they may shrink."""
    for name in layouts.keys() - met:
        for layout in layouts[name]:
            axes.fix(layout, "never used in the forward pass")
    unused = [name for name in parameters if name not in met]
    if unused:
        warnings.warn(
            f"{len(unused)} parameters are never used in evaluation mode and stay as they are ({_short(unused, 3)}). "
            "If they are used in training, the layers that feed them must stay too: freeze those.",
            stacklevel=4,
        )


def _name_axes(layouts: dict[str, list[Layout]], parameters: Collection[str]) -> dict[str, Axis]:
    """Name each axis that may shrink by the module that produces it; returns them in that order.

    Several axes in one dimension are numbered: `attn.qkv#0`, `attn.qkv#1`.
    """
    named: dict[str, Axis] = {}
    done: set[int] = set()
    places = [(n, 0) for n in parameters if len(layouts[n]) > 1]
    places += [(n, d) for n in parameters for d in reversed(range(len(layouts[n])))]
    for name, dim in places:
        if not layouts[name]:
            continue
        found = list(dict.fromkeys(axes.leaves(layouts[name][dim])))
        base = name.removesuffix(".weight")
        for i, axis in enumerate(found):
            if id(axis) not in done:
                done.add(id(axis))
                label = base if len(found) == 1 else f"{base}#{i}"
                while label in named:
                    label += "'"
                axis.name = label
                named[label] = axis
    return named


def part(model: nn.Module, name: str, inputs: Any) -> tuple[nn.Module, Any]:
    """Find a sub-module and its example, for models that cannot be traced whole.

    `graph = trace(*part(model, "backbone", inputs))`. Source: ours.

    Args:
        model: The whole model, which runs once in evaluation mode.
        name: The name of the sub-module.
        inputs: An example for the whole model, as `trace` takes it.

    Returns:
        The sub-module itself, and the arguments of its call: a tuple, or a dict of keyword arguments.

    Raises:
        UserError: There is no such module, it does not run, or takes arguments by position and by keyword.
    """
    modules = dict(model.named_modules())
    if name not in modules:
        raise unknown("module", name, modules)
    calls: list[Any] = []

    def catch(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        calls.append((args, kwargs))

    handle = modules[name].register_forward_pre_hook(catch, with_kwargs=True)
    mode = model.training
    try:
        with torch.no_grad():
            skeleton.call(model.eval(), inputs)
    finally:
        handle.remove()
        model.train(mode)
    if not calls or (calls[0][0] and calls[0][1]):
        raise UserError(
            f"{name} must run on `inputs` and take its arguments all by position or all by keyword; "
            f"its calls were {calls[:1]}. Name another module."
        )
    args, kwargs = calls[0]
    return modules[name], args or kwargs
