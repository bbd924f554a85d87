"""The graph of a model: its axes, the layout of every parameter and buffer, and the operators that met them.

`trace(model, example)` runs the model once without computing anything and returns a `Graph`. The graph
holds no weights, so it serves every copy of the model. A `keep` is plain data on it:
{axis name: indices that stay}; an axis that is not named keeps everything.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import lcm, prod
from typing import Any

import torch

from prunus.errors import UserError, unknown
from prunus.graph import axes, op, words
from prunus.graph.attributes import Attribute
from prunus.graph.axes import Axis, Layout
from prunus.graph.configs import Config
from prunus.graph.construction import Stated
from prunus.graph.kinds import Kinds
from prunus.graph.making import Maker
from prunus.graph.op import Op, Tag
from prunus.graph.operators import BATCH_NORM
from prunus.graph.outputs import Outputs
from prunus.graph.places import Keep
from prunus.graph.sizes import Place
from prunus.graph.ties import Ties, block_ties
from prunus.graph.tracer import Storage
from prunus.graph.tying import config_ties


@dataclass(frozen=True, eq=False)
class Member:
    """One dimension of one parameter or buffer that an axis runs along."""

    tensor: str  # name of the parameter or buffer
    dim: int  # number of the dimension
    role: str  # produces, consumes, scales, shifts, direction, or buffer
    index: torch.Tensor  # LongTensor (axis.size, k): the positions along `dim` that belong to each unit


@dataclass(frozen=True, eq=False)
class Graph:
    """The result of `trace`: the axes of a model, and how tensors and operators use them; no weights."""

    axes: dict[str, Axis]  # those that may shrink, by name, in the order of the parameters
    layouts: dict[str, list[Layout]]  # per parameter and buffer, one layout per dimension
    state: dict[str, list[Layout]] = field(repr=False)  # those of tensors kept in plain attributes (state.py)
    shapes: dict[str, torch.Size]
    parameters: frozenset[str]  # which of `layouts` are parameters (the rest are buffers)
    ops: list[Op] = field(repr=False)
    storages: list[Storage] = field(repr=False)
    tensors: dict[Tag, str] = field(repr=False)  # parameters and buffers among the inputs of `ops`
    outputs: list[Tag] = field(repr=False)  # the model's outputs, among the results of `ops`
    attributes: list[Attribute]  # integers of the model that follow an axis
    stated: list[Stated] = field(
        repr=False
    )  # integers that the forward pass never reads, and that may follow
    chosen: Outputs | None = field(repr=False)  # the outputs that count; None: all
    modes: dict[str, Any] = field(repr=False)  # "eval", "train": those that were traced, with their examples
    traced: tuple[
        str, ...
    ]  # the modes that were run; others differ from the first within torch's layers alone
    bytes_per_element: dict[str, int] = field(repr=False)  # of parameters and buffers
    _roles: dict[tuple[str, int], str] = field(repr=False)
    _classes: dict[str, str] = field(repr=False)  # module name -> class name
    behind: dict[str, list[Layout]] = field(
        default_factory=dict, repr=False
    )  # `layouts` behind parametrisations
    maker: Maker | None = field(default=None, repr=False)  # makes the model again from its config
    read: dict[Place, Layout] = field(
        default_factory=dict, repr=False
    )  # the integers that a forward pass reads

    @property
    def example(self) -> Any:
        """The example of the first mode."""
        return next(iter(self.modes.values()))

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
        """List the parameter and buffer dimensions that shrink with an axis.

        Args:
            axis: The name of the axis.

        Returns:
            A member for each such dimension.

        Raises:
            UserError: There is no such axis.
        """
        if axis not in self.axes:
            raise unknown("axis", axis, self.axes)
        return self._members[axis]

    def role(self, tensor: str, dim: int) -> str:
        """Return how a dimension is used, as its operator said, otherwise as is usual for its place.

        Args:
            tensor: The name of a parameter or buffer.
            dim: The number of the dimension.

        Returns:
            "produces", "consumes", "scales", "shifts", "direction" or "buffer".
        """
        if tensor not in self.parameters:
            return "buffer"
        usual = op.SCALES if len(self.layouts[tensor]) == 1 else op.CONSUMES if dim else op.PRODUCES
        return self._roles.get((tensor, dim), usual)

    @cached_property
    def statistics(self) -> dict[str, str]:
        """The running statistics of batch norms, by name: "shifts" for means, "scales" for variances."""
        found: dict[str, str] = {}
        for each in self.ops:
            if each.is_a(BATCH_NORM):
                for argument, role in (("running_mean", op.SHIFTS), ("running_var", op.SCALES)):
                    name = self.tensors.get(each.argument(argument, default=None))
                    if name is not None:
                        found[name] = role
        return found

    @cached_property
    def multiples(self) -> dict[str, int]:
        """The number of which the width of each axis must be a multiple, because of some operator; mostly 1."""
        found = dict.fromkeys(self.axes, 1)
        for each in self.ops:
            for layout, number in each.multiples:
                for axis, multiple in axes.multiples(layout, number):
                    found[axis.name] = lcm(found.get(axis.name, 1), multiple)
        return found

    @cached_property
    def _found(self) -> Kinds:
        return Kinds(self.ops)

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The kind of each axis, such as "heads" or "mlp", by its name; see `prunus.graph.KINDS`."""
        return {name: self._found.of(axis) for name, axis in self.axes.items()}

    @cached_property
    def rotary(self) -> frozenset[str]:
        """The axes that rotary position embeddings couple in pairs, with the others of the same dimension."""
        coupled = self._found.coupled
        return frozenset(
            n for n, axis in self.axes.items() if axis in coupled and self.kinds[n] == "head_dim"
        )

    @property
    def cached(self) -> list[tuple[int, list[Layout]]]:
        """The keys and values of each attention, as a cache holds them: the bytes of an element, and the layouts."""
        return [(tag.storage.bytes_per_element, tag.dims) for tag in self._found.kept]

    @cached_property
    def leasts(self) -> dict[str, tuple[int, str]]:
        """The fewest units that some operator takes, with the operator, of the axes that have more than one."""
        found: dict[str, tuple[int, str]] = {}
        for each in self.ops:
            for layout, number in each.leasts:
                shape = axes.normal(layout)
                for axis in axes.leaves(
                    shape
                ):  # within a product it is not known which of the factors may shrink
                    units = number if axis is shape else axis.size
                    found[axis.name] = max(found.get(axis.name, (1, "")), (units, str(each)))
        return found

    def topology(self, axis: str) -> tuple[tuple[str, str, int, int], ...]:
        """Describe an axis; equal for axes with the same roles in the same classes of modules.

        Args:
            axis: The name of the axis.

        Returns:
            The class, role, dimension and number of dimensions of each member, sorted.
        """
        kinds = [
            (self._classes.get(m.tensor.rpartition(".")[0], ""), m.role, m.dim, len(self.layouts[m.tensor]))
            for m in self.members(axis)
        ]
        return tuple(sorted(kinds))

    @cached_property
    def config(self) -> Config | None:
        """What the model is made from, to be tried at other sizes; None if it cannot be made again."""
        if self.maker is None:
            return None
        try:
            config = Config(self.maker, self.axes, self.layouts | self.behind, self.read)
        except Exception:  # whatever a constructor raises
            return None
        return config if config.is_same(self.shapes) else None

    @cached_property
    def ties(self) -> Ties:
        """The axes that keep one share together under `uniform=True` (see ties.py)."""
        return self._blocks if self.config is None else config_ties(self.config)

    @property
    def _blocks(self) -> Ties:
        return block_ties(self.axes, {name: self.topology(name) for name in self.axes})

    def misfits(self, widths: Mapping[str, int]) -> list[str]:
        """List what would be other than in the small model if that were made again from its config.

        Args:
            widths: The number of units of each axis, by its name.

        Returns:
            What it is called; empty if all agrees, or if the model is not made from a config.
        """
        if self.config is None:
            return []
        return self.config.misfits(self.ties.fields(self._sizes, widths), widths)

    @property
    def _sizes(self) -> dict[str, int]:
        return {name: axis.size for name, axis in self.axes.items()}

    def widths(self, keep: Keep | None = None) -> dict[str, int]:
        """Count the units that each axis keeps.

        Args:
            keep: The indices that stay, per axis; all stay on an axis that is not named.

        Returns:
            The number of units by axis, for every axis.

        Raises:
            UserError: `keep` does not fit the graph.
        """
        keep = self.check_keep(keep or {})
        return {name: len(keep[name]) if name in keep else axis.size for name, axis in self.axes.items()}

    def shape(self, tensor: str, keep: Keep) -> torch.Size:
        """Compute the shape of a parameter or buffer after a keep.

        Args:
            tensor: The name of the parameter or buffer.
            keep: The indices that stay, per axis.

        Returns:
            The smaller shape.

        Raises:
            UserError: `keep` does not fit the graph.
        """
        widths = self.widths(keep)
        return torch.Size(axes.size(layout, widths) for layout in self.layouts[tensor])

    def integers(self, widths: Mapping[str, int]) -> list[Attribute]:
        """List the integers of the model that follow at some widths.

        Args:
            widths: The number of units of each axis, by its name.

        Returns:
            Those that the forward pass reads, of those that it only states the ones whose layers agree, and those of
            the config that say these widths (see ties.py).
        """
        agree = [
            Attribute(place, layouts[0])
            for place, layouts in self.stated
            if len({axes.size(layout, widths) for layout in layouts}) == 1
        ]
        return self.attributes + agree + self._said(widths)

    def _said(self, widths: Mapping[str, int]) -> list[Attribute]:
        """The integers of a config that say these widths.

        Unless the ties are known they are looked for only where all blocks have the same widths.
        """
        widths = self._sizes | dict(widths)
        known = "ties" in vars(self) or self._blocks.agree(widths)
        if self.maker is None or widths == self._sizes or not known:
            return []
        return self.ties.attributes(self._sizes, widths)

    def check_keep(self, keep: Keep) -> dict[str, list[int]]:
        """Check that a keep fits the graph.

        Args:
            keep: The indices that stay, per axis.

        Returns:
            A copy with the indices sorted.

        Raises:
            UserError: There is no axis of a name, its indices are none, repeated or out of range, or an operator takes
                no such width.
        """
        if not isinstance(keep, Mapping):
            raise UserError(f"keep should be a dict of axis name to indices, but is a {type(keep).__name__}.")
        result: dict[str, list[int]] = {}
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
            least, why = self.leasts.get(name, (1, ""))
            if len(wanted) < least:
                raise UserError(
                    f"keep[{name!r}] must hold {least} indices or more, because {why} takes no fewer."
                )
            multiple = self.multiples.get(name, 1)
            if len(wanted) % multiple:
                raise UserError(
                    f"keep[{name!r}] must hold a multiple of {multiple} indices, because {self._why(name)} takes no "
                    f"other width; got {len(wanted)}."
                )
            result[name] = sorted(wanted)
        return result

    def _why(self, name: str) -> Op:
        """The first operator that takes only some widths of an axis."""
        axis = self.axes[name]
        return next(each for each in self.ops for layout, _ in each.multiples if axis in axes.leaves(layout))

    def halved(self) -> dict[str, int]:
        """Count the units that stay when every axis is halved, rounded down; at least as many stay as operators take.

        Returns:
            The number of units by axis.
        """
        multiples = self.multiples
        return {
            name: max(
                multiples[name],
                axis.size // 2 // multiples[name] * multiples[name],
                self.leasts.get(name, (1, ""))[0],
            )
            for name, axis in self.axes.items()
        }

    def coverage(self) -> float:
        """Measure how much of the model can disappear (see also `prunus.selection.coverage`).

        Returns:
            The share (0 to 1) of the parameters that go when every axis is halved. About 0.75 where all dimensions
            shrink, for then a quarter of most weights stays.
        """
        widths = self.halved()
        left = sum(
            prod(axes.size(layout, widths) for layout in self.layouts[name]) for name in self.parameters
        )
        return 1 - left / max(1, sum(self.shapes[name].numel() for name in self.parameters))

    # ------------------------------------------------------------------------------ explanations
    @cached_property
    def fixed(self) -> list[tuple[str, str]]:
        """Parameter dimensions that may not shrink, each with the reason, in words."""
        found: list[tuple[str, str]] = []
        for name in self.layouts:
            for dim, layout in enumerate(self.layouts[name]):
                if name in self.parameters and self.shapes[name][dim] > 1:
                    whys = {str(axis.fixed) for axis in axes.ends(layout) if axis.fixed}
                    found += [(f"{name}, dimension {dim}", why) for why in sorted(whys)]
        return found

    def explain(self, name: str) -> str:
        """Explain in words what is coupled to an axis, module or parameter, through what, or why it is fixed.

        Args:
            name: The name of an axis, module or parameter.

        Returns:
            A text of several lines.

        Raises:
            UserError: Nothing has this name; the nearest names are listed.
        """
        tensors = [n for n in self.layouts if n == name or n.startswith(f"{name}.")]
        if not tensors and name not in self.axes:
            modules = {n.rpartition(".")[0] for n in self.layouts}
            raise unknown("axis, module or parameter", name, {*self.axes, *modules, *self.layouts} - {""})
        lines: list[str] = []
        seen: dict[str, None] = {name: None} if name in self.axes else {}
        for tensor in tensors:
            for dim, layout in enumerate(self.layouts[tensor]):
                lines.append(
                    f"{tensor}, dimension {dim} ({self.shapes[tensor][dim]}): {words.describe(layout)}"
                )
                seen.update(dict.fromkeys(axis.name for axis in axes.leaves(layout)))
        return "\n".join([*lines, *(self._explain_axis(axis) for axis in seen)])

    def _explain_axis(self, name: str) -> str:
        axis = self.axes[name]
        members = [f"  {m.tensor}, dimension {m.dim}, {m.role}" for m in self.members(name)]
        links = dict.fromkeys(str(link) for link in axis.links)
        through = f"\n  coupled through: {words.shorten(list(links), 8)}" if links else ""
        title = f"axis {name} ({self.kinds[name]}): {axis.size} units shrink together in"
        return "\n".join([title, *members]) + through
