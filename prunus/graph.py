"""The graph of a model: its axes, the layout of every parameter and buffer, and the operators that met them.

`trace(model, example)` runs the model once without computing anything and returns a `Graph`. The graph
holds no weights, so it serves every copy of the model. A `keep` is plain data on it:
{axis name: indices that stay}; an axis that is not named keeps everything.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from prunus import axes, rules, skeleton, tracer
from prunus.axes import Axis, Layout
from prunus.errors import TraceError, UserError, unknown
from prunus.follow import Attribute, Follower
from prunus.rules import Op, Tag
from prunus.tracer import Storage

Keep = Mapping[str, Sequence[int]]


class Member(NamedTuple):
    """One dimension of one parameter or buffer that an axis runs along."""

    tensor: str  # name of the parameter or buffer
    dim: int
    role: str  # produces, consumes, scales, shifts, or buffer
    index: torch.Tensor  # LongTensor (axis.size, k): the positions along `dim` that belong to each unit


@dataclass(frozen=True, eq=False)
class Graph:
    """What tracing gives. `axes` are those that may shrink, by name, in the order of the parameters."""

    axes: dict[str, Axis]
    layouts: dict[str, list[Layout]]  # per parameter and buffer, one layout per dimension
    shapes: dict[str, torch.Size]
    parameters: frozenset[str]  # which of `layouts` are parameters (the rest are buffers)
    ops: list[Op] = field(repr=False)
    storages: list[Storage] = field(repr=False)
    tensors: dict[Tag, str] = field(repr=False)  # parameters and buffers among the inputs of `ops`
    outputs: list[Tag] = field(repr=False)  # what the model returned, among the results of `ops`
    attributes: list[Attribute]  # integers in modules that follow
    example: Any = field(repr=False)
    _roles: dict[tuple[str, int], str] = field(repr=False)
    _classes: dict[str, str] = field(repr=False)  # module name -> class name

    # ------------------------------------------------------------------------------- structure
    @cached_property
    def _members(self) -> dict[str, list[Member]]:
        found: dict[str, list[Member]] = {name: [] for name in self.axes}
        for name, layouts in self.layouts.items():
            for dim, layout in enumerate(layouts):
                for axis, index in axes.units(layout).items():
                    found[axis.name].append(Member(name, dim, self.role(name, dim), index))
        return found

    def members(self, axis: str) -> list[Member]:
        """The parameter and buffer dimensions that shrink with an axis."""
        if axis not in self.axes:
            raise unknown("axis", axis, self.axes)
        return self._members[axis]

    def role(self, tensor: str, dim: int) -> str:
        """How a dimension is used: as its operator said, else as dimension 0 and the others usually are."""
        if tensor not in self.parameters:
            return "buffer"
        usual = rules.SCALES if len(self.layouts[tensor]) == 1 else rules.CONSUMES if dim else rules.PRODUCES
        return self._roles.get((tensor, dim), usual)

    def topology(self, axis: str) -> tuple:
        """Equal for axes of the same structure: the same roles in the same kinds of modules."""
        kinds = [
            (self._classes.get(m.tensor.rpartition(".")[0], ""), m.role, m.dim, len(self.layouts[m.tensor]))
            for m in self.members(axis)
        ]
        return tuple(sorted(kinds))

    def widths(self, keep: Keep | None = None) -> dict[str, int]:
        """How many units each axis keeps. Raises UserError if `keep` does not fit."""
        keep = self.checked(keep or {})
        return {name: len(keep[name]) if name in keep else axis.size for name, axis in self.axes.items()}

    def shape(self, tensor: str, keep: Keep) -> torch.Size:
        """The shape of a parameter or buffer after `keep`."""
        widths = self.widths(keep)
        return torch.Size(axes.size(layout, widths) for layout in self.layouts[tensor])

    def checked(self, keep: Keep) -> dict[str, list[int]]:
        """`keep`, sorted and known to fit. Raises UserError naming the first axis that does not."""
        if not isinstance(keep, Mapping):
            raise UserError(f"keep should be a dict of axis name to indices, is a {type(keep).__name__}.")
        result = {}
        for name, indices in keep.items():
            if name not in self.axes:
                raise unknown("axis", str(name), self.axes)
            n = self.axes[name].size
            try:
                wanted = [
                    i if type(i) is int else operator.index(i)
                    for i in indices
                    if i is not True and i is not False
                ]
            except TypeError:
                wanted = []
            if not wanted or len(set(wanted)) < len(indices) or min(wanted) < 0 or max(wanted) >= n:
                raise UserError(
                    f"keep[{name!r}] must hold 1 to {n} different integers from 0 to {n - 1}; got {indices!r}."
                )
            result[name] = sorted(wanted)
        return result

    def coverage(self) -> float:
        """The share of parameters with at least one dimension that may shrink."""
        sizes = {name: self.shapes[name].numel() for name in self.parameters}
        covered = [
            n for name, n in sizes.items() if any(any(axes.leaves(layout)) for layout in self.layouts[name])
        ]
        return sum(covered) / max(1, sum(sizes.values()))

    # ------------------------------------------------------------------------------ explanations
    @cached_property
    def fixed(self) -> list[tuple[str, str]]:
        """Parameter dimensions that may not shrink, each with the reason, in words."""
        found = []
        for name in self.layouts:
            for dim, layout in enumerate(self.layouts[name]):
                if name in self.parameters and self.shapes[name][dim] > 1:
                    whys = {str(axis.fixed) for axis in axes.ends(layout) if axis.fixed}
                    found += [(f"{name}, dimension {dim}", why) for why in sorted(whys)]
        return found

    def explain(self, name: str) -> str:
        """In words: what is coupled to an axis, module or parameter, through what, and why something is fixed.

        Raises UserError with the nearest names if nothing is called so.
        """
        tensors = [n for n in self.layouts if n == name or n.startswith(f"{name}.")]
        if not tensors and name not in self.axes:
            modules = {n.rpartition(".")[0] for n in self.layouts}
            raise unknown("axis, module or parameter", name, {*self.axes, *modules, *self.layouts} - {""})
        lines, seen = [], {name: None} if name in self.axes else {}
        for tensor in tensors:
            for dim, layout in enumerate(self.layouts[tensor]):
                lines.append(f"{tensor}, dimension {dim} ({self.shapes[tensor][dim]}): {self._words(layout)}")
                seen.update(dict.fromkeys(axis.name for axis in axes.leaves(layout)))
        return "\n".join([*lines, *(self._explain_axis(axis) for axis in seen)])

    def _explain_axis(self, name: str) -> str:
        axis = self.axes[name]
        members = [f"  {m.tensor}, dimension {m.dim}, {m.role}" for m in self.members(name)]
        links = dict.fromkeys(str(link) for link in axis.links)
        through = f"\n  coupled through: {_short(list(links), 8)}" if links else ""
        return f"axis {name}: {axis.size} units shrink together in\n" + "\n".join(members) + through

    def _words(self, layout: Layout) -> str:
        shape = axes.normal(layout)
        whys = sorted({str(axis.fixed) for axis in axes.ends(layout) if axis.fixed})
        text = f"fixed at {shape}" if isinstance(shape, int) else _formula(shape)
        return f"{text} ({'; '.join(whys)})" if whys else text


def _formula(layout: Layout) -> str:
    if isinstance(layout, Axis):
        return f"{layout.name}[{layout.size}]"
    if isinstance(layout, axes.Sum):
        return " + ".join(map(_formula, layout.parts))
    if isinstance(layout, axes.Product):
        return " x ".join(
            f"({_formula(f)})" if isinstance(f, axes.Sum) else _formula(f) for f in layout.factors
        )
    return str(layout)


def _short(items: Sequence, most: int = 6) -> str:
    text = ", ".join(map(str, items[:most]))
    return text + (f", ... ({len(items)} in all)" if len(items) > most else "")


# --------------------------------------------------------------------------------------- tracing
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
    if not any(rules.tag_of(tensor) for tensor in outputs):
        raise TraceError("no output of the model depends on its parameters and inputs.")
    for tensor in outputs:
        tag = rules.tag_of(tensor)
        for layout in tag.dims if tag else ():
            axes.fix(layout, "an output of the model")
    roles: dict[tuple[str, int], str] = {}
    for op in traced.ops:
        for layout, role in op.roles:
            if id(layout) in owners:
                roles.setdefault(owners[id(layout)], role)
    parameters = dict(bare.named_parameters())
    met = {name for name, tensor in skeleton.named_tensors(bare).items() if rules.tag_of(tensor).met}
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
        outputs=[tag for tag in map(rules.tag_of, outputs) if tag is not None],
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
