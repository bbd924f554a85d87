"""Tracing a model into a graph, with its axes named and the unused ones fixed."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from prunus.errors import TraceError, UserError, unknown
from prunus.graph import axes, skeleton, tracer
from prunus.graph.axes import Axis, Layout
from prunus.graph.calls import shared_names
from prunus.graph.construction import stated
from prunus.graph.experts import PICKING, USUAL, choose_experts
from prunus.graph.graph import Graph
from prunus.graph.making import Maker
from prunus.graph.modules import evaluation_mode
from prunus.graph.op import CONSUMES, PRODUCES
from prunus.graph.operators import Args, Kwargs
from prunus.graph.outputs import Outputs
from prunus.graph.packing import plain_model, unwrap
from prunus.graph.parametrised import follow_steps
from prunus.graph.passes import Passes, doubled
from prunus.graph.turns import one_at_a_time
from prunus.graph.words import shorten
from prunus.inputs import call, plain

MODES = ("eval", "train")


@one_at_a_time()
@torch.inference_mode(
    False
)  # inference mode would hide the operators that convolutions and linear layers consist of
def trace(
    model: nn.Module,
    example: Any,
    *,
    modes: Collection[str] | Mapping[str, Any] | None = None,
    outputs: Outputs | None = None,
) -> Graph:
    """Run a model on the meta device, in evaluation and in training mode, and infer its axes.

    Source: ours (design, section 3).

    Args:
        model: The model, which is left untouched; of one in DistributedDataParallel, DataParallel, torch.compile's or
            torch's AveragedModel, the module inside.
        example: A tensor, a tuple of arguments or a dict of keyword arguments, as the model takes them; only
            shapes matter, but integer tensors (token ids) are used as they are.
        modes: The modes to trace, "eval" and "train", or an example for each, where training takes other arguments
            (targets): {"eval": images, "train": (images, targets)}. By default both; training is left out, with a
            warning, where it fails on the example.
        outputs: The outputs that count and keep their sizes: a path ("logits", "0.logits"), a list of paths, or a
            function from the output to tensors; by default all. Others may come out smaller. In a mode that returns
            none of the paths, all outputs count.

    Returns:
        The graph, which serves every copy of the model.

    Raises:
        TraceError: The model does not run on the example, or nothing in it may shrink.
        UserError: `model` is not an nn.Module, was scripted, quantised, sharded or offloaded, or cannot be copied, or
            there is no such mode, or no mode returns an output under one of the paths.
    """
    model = plain_model(model)
    examples = _examples(example, modes)
    try:
        graph = _trace(model, examples, False, modes is not None, outputs)
    except _NotOnMetaError as error:
        graph = _trace(model, examples, True, modes is not None, outputs)
        warnings.warn(str(error), stacklevel=3)
    if not graph.axes:
        why = shorten([f"{what}: {reason}" for what, reason in graph.fixed], 3) or "no parameters at all"
        raise TraceError(f"nothing in this {type(model).__name__} may shrink: {why}.")
    return graph


def _examples(example: Any, modes: Collection[str] | Mapping[str, Any] | None) -> dict[str, Any]:
    """An example for each mode, of tensors that the graph keeps."""
    chosen = MODES if modes is None else [modes] if isinstance(modes, str) else modes
    for mode in chosen:
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
    examples = {
        mode: plain(modes[mode] if isinstance(modes, Mapping) else example)
        for mode in MODES
        if mode in chosen
    }
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), examples)


def _trace(
    model: nn.Module, examples: Mapping[str, Any], real: bool, asked: bool, outputs: Outputs | None
) -> Graph:
    """Trace on the meta device, or with real tensors.

    asked: whether the user named the modes, so that each has to work. Raises _NotOnMetaError if the model fails on
    the meta device.
    """
    bare = skeleton.make_skeleton(model, real)
    switched = choose_experts(bare, PICKING)
    layouts = tracer.fresh_layouts(bare)
    owners = {id(axis): (name, dim) for name, dims in layouts.items() for dim, axis in enumerate(dims)}
    passes = Passes(bare, layouts, outputs)
    for mode, example in examples.items():
        try:
            passes.run(mode, example)
        except TraceError:
            raise
        except Exception as error:  # any error of the user's code
            if passes.traced and not asked and (real or not _runs_with_data(model, mode, example)):
                _warn_of_training(error)
            elif not real:
                raise _NotOnMetaError(_words_for_real(error)) from error
            else:
                how = "in training mode " if mode == "train" else ""
                raise TraceError(f"the model's forward pass failed {how}on the example: {error}") from error
    roles = _roles(passes, owners)
    parameters = dict(bare.named_parameters())
    _fix_unused(parameters, layouts, passes)

    def name_axes() -> dict[str, Axis]:
        return _name_axes(layouts, parameters, roles)

    behind = follow_steps(model, layouts, name_axes)
    passes.check(name_axes)
    if switched and not passes.as_called(skeleton.make_skeleton(model, real)):
        usual = skeleton.make_skeleton(model, real)
        choose_experts(usual, USUAL)
        passes.as_called(usual)
    if switched:
        roles = _roles(passes, owners)
    named, first = name_axes(), next(iter(passes.traced.values()))
    read, maker, tensors = passes.settled(), Maker.of(model), skeleton.named_tensors(bare)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for layout in [layout for dims in layouts.values() for layout in dims]:
        for axis in axes.leaves(layout):
            if axis.name not in named:
                axes.fix(axis, "only buffers lie along it")
    return Graph(
        axes=named,
        layouts={name: layouts[name] for name in shapes},
        state={name: dims for name, dims in layouts.items() if name not in shapes},
        shapes=shapes,
        parameters=frozenset(parameters),
        ops=first.ops,
        storages=first.storages,
        tensors=first.tensors,
        outputs=passes.outputs,
        attributes=passes.attributes(),
        stated=stated(model, maker, layouts, read),
        modes=passes.modes,
        traced=tuple(passes.traced),
        chosen=outputs,
        _roles=roles,
        _classes={name: type(module).__name__ for name, module in model.named_modules()},
        bytes_per_element={name: tensor.element_size() for name, tensor in tensors.items()},
        behind=behind,
        calls=first.modules.calls,
        shared=shared_names(model),
        maker=maker,
        read=read,
    )


def _roles(passes: Passes, owners: Mapping[int, tuple[str, int]]) -> dict[tuple[str, int], str]:
    """The role of each dimension of a parameter of which some operator states one.

    owners: the parameter and the number of the dimension, by the id of the axis that it was born with.
    """
    roles: dict[tuple[str, int], str] = {}
    stated_roles = [role for each in passes.traced.values() if each.origins for role in each.origins.roles]
    stated_roles += [role for each in passes.traced.values() for op in each.ops for role in op.roles]
    for layout, role in stated_roles:
        if id(layout) in owners:
            roles.setdefault(owners[id(layout)], role)
    return roles


def _runs_with_data(model: nn.Module, mode: str, example: Any) -> bool:
    """Whether a model runs with real tensors in a mode in which it failed without."""
    bare = skeleton.make_skeleton(model, real=True).train(mode == "train")
    for parameter in bare.parameters():  # which the forward pass may write to
        parameter.data = parameter.data.clone()
    for inputs in (example, doubled(example)):
        try:
            with skeleton.quiet_forward(), skeleton.seeded():
                call(bare, tree_map_only(torch.Tensor, torch.clone, inputs))
            return True
        except Exception:  # any error of the user's code
            continue
    return False


class _NotOnMetaError(Exception):
    """A model does not run on the meta device; says why, as a warning."""


def _words_for_real(error: Exception) -> str:
    if not isinstance(error, tracer.DataDependentError):
        return "traced with real tensors, because the meta device cannot run this model"
    return (
        f"traced with real tensors, because {error}. What the model does at other values is not known: if it runs "
        "other layers then, freeze those, or trace a part that does not do this: "
        "part, example = prunus.part(model, 'NAME', inputs)."
    )


def _warn_of_training(error: Exception) -> None:
    warnings.warn(
        "traced in evaluation mode alone, because the forward pass in training mode fails "
        f"({type(error).__name__}: {error}). Sizes that only training uses are not known, and what it returns is not "
        "proved. If it takes other arguments there, trace "
        'with modes={"eval": inputs, "train": (inputs, targets)}.',
        stacklevel=4,
    )


def _fix_unused(parameters: Collection[str], layouts: dict[str, list[Layout]], passes: Passes) -> None:
    """Fix the tensors that no operator met (an auxiliary head, say): it is unknown how they may shrink."""
    for name in layouts.keys() - passes.met:
        for layout in layouts[name]:
            axes.fix(layout, "never used in the forward pass")
    unused = [name for name in parameters if name not in passes.met]
    if unused:
        known = "in evaluation or training mode" if "train" in passes.modes else "in evaluation mode"
        warnings.warn(
            f"{len(unused)} parameters are never used {known} and stay as they are ({shorten(unused, 3)}). "
            "If they are used otherwise, the layers that feed them must stay too: freeze those.",
            stacklevel=4,
        )


def _name_axes(
    layouts: dict[str, list[Layout]], parameters: Collection[str], roles: Mapping[tuple[str, int], str]
) -> dict[str, Axis]:
    """Name each axis that may shrink by the module that produces it; returns them in that order.

    Several axes in one dimension are numbered: `attn.qkv#0`, `attn.qkv#1`.
    """
    named: dict[str, Axis] = {}
    done: set[int] = set()
    places = [(n, 0) for n in parameters if len(layouts[n]) > 1 and roles.get((n, 0)) != CONSUMES]
    every = [(n, d) for n in parameters for d in reversed(range(len(layouts[n])))]
    places += [place for place in every if roles.get(place) == PRODUCES] + every
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
    model = unwrap(model)
    modules = dict(model.named_modules())
    if name not in modules:
        raise unknown("module", name, modules)
    calls: list[Any] = []

    def catch(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        calls.append((args, kwargs))

    handle = modules[name].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad(), evaluation_mode(model):
            call(model, inputs)
    finally:
        handle.remove()
    if not calls or (calls[0][0] and calls[0][1]):
        raise UserError(
            f"{name} must run on `inputs` and take its arguments all by position or all by keyword; "
            f"its calls were {calls[:1]}. Name another module."
        )
    args, kwargs = calls[0]
    return modules[name], args or kwargs
