"""Tracing a model into a graph, with its axes named and the unused ones fixed."""

from __future__ import annotations

import warnings
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


@torch.inference_mode(False)  # which would hide what convolutions and linear layers are made of
def trace(model: nn.Module, example: Any) -> Graph:
    """Run `model` once on the meta device and infer its axes.

    example: a tensor, a tuple of arguments or a dict of keyword arguments, as the model takes them; only
    shapes matter, but integer tensors (token ids) are used as they are. The model is left untouched.
    Raises TraceError if the forward pass depends on data, or nothing in the model may shrink.
    Source: ours (design, section 3).
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"trace needs an nn.Module, got {type(model).__name__}.")
    if hasattr(model, "_orig_mod"):
        raise UserError("this model went through torch.compile; trace the model itself (model._orig_mod).")
    lazy = [
        name for name, tensor in skeleton.named_tensors(model).items() if torch.nn.parameter.is_lazy(tensor)
    ]
    if lazy:
        raise TraceError(f"{lazy[0]} has no shape yet; run the model once on real inputs, then trace it.")
    example = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), example)  # ours to keep
    graph = _trace(model, example, real=False) or _trace(model, example, real=True)
    if not graph.axes:
        why = _short([f"{what}: {reason}" for what, reason in graph.fixed], 3) or "no parameters at all"
        raise TraceError(f"nothing in this {type(model).__name__} may shrink: {why}.")
    return graph


def _trace(model: nn.Module, example: Any, real: bool) -> Graph | None:
    """One attempt, on the meta device or with real tensors; None if the meta device cannot serve."""
    bare = skeleton.skeleton(model, real)
    layouts = tracer.fresh_layouts(bare)
    owners = {id(axis): (name, dim) for name, dims in layouts.items() for dim, axis in enumerate(dims)}
    try:
        traced, output = tracer.run(bare, example, layouts)
    except TraceError:
        raise
    except Exception as error:  # whatever the user's code raises
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
    met = {name for name, tensor in skeleton.named_tensors(bare).items() if tag_of(tensor).met}
    _fix_unused(parameters, layouts, met)

    def name_axes() -> dict[str, Axis]:
        return _name_axes(layouts, parameters)

    if real:  # probing needs abstract tensors, so no integer can be followed: the proof decides alone
        warnings.warn("traced with real tensors, for the meta device cannot run this model", stacklevel=3)
    attributes = [] if real else Follower(bare, example, traced, layouts).settle(name_axes)
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
        _roles=roles,
        _classes={name: type(module).__name__ for name, module in model.named_modules()},
    )


def _fix_unused(parameters: dict, layouts: dict[str, list[Layout]], met: set[str]) -> None:
    """What no operator met cannot be known to shrink (an auxiliary head, say)."""
    for name in layouts.keys() - met:
        for layout in layouts[name]:
            axes.fix(layout, "never used in the forward pass")
    unused = [name for name in parameters if name not in met]
    if unused:
        warnings.warn(
            f"{len(unused)} parameters are never used in evaluation mode and stay as they are ({_short(unused, 3)}). "
            "If they are used in training, what feeds them must stay too: freeze it.",
            stacklevel=4,
        )


def _name_axes(layouts: dict[str, list[Layout]], parameters: dict) -> dict[str, Axis]:
    """Name each axis that may shrink after the module that produces it; returns them in that order.

    A dimension made of several axes numbers them: `attn.qkv#0`, `attn.qkv#1`.
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
    """A sub-module and the arguments it is called with when the whole model runs on `inputs`.

    For models that cannot be traced whole: graph = trace(*part(model, "backbone", inputs)). Raises UserError
    if there is no such module, it is not called, or it is called with keywords and positions mixed.
    """
    modules = dict(model.named_modules())
    if name not in modules:
        raise unknown("module", name, modules)
    calls: list[Any] = []

    def catch(module: nn.Module, args: tuple, kwargs: dict) -> None:
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
            f"{name} must be called with arguments by position, or all by keyword; got {calls[:1]}."
        )
    args, kwargs = calls[0]
    return modules[name], args or kwargs
