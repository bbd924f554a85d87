"""The graph of a model: its axes, the layout of every parameter and buffer, and the operators that met them.

`trace(model, example)` runs the model once without computing anything and returns a `Graph`. The graph
holds no weights, so it serves every copy of the model. A `keep` is plain data on it:
{axis name: indices that stay}; an axis that is not named keeps everything.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch

from prunus.errors import UserError, unknown
from prunus.graph import axes, op
from prunus.graph.attributes import Attribute
from prunus.graph.axes import Axis, Layout
from prunus.graph.op import Op, Tag
from prunus.graph.tracer import Storage

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
        usual = op.SCALES if len(self.layouts[tensor]) == 1 else op.CONSUMES if dim else op.PRODUCES
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
