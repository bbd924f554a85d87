"""The graph of a model: its axes, the layout of every parameter and buffer, and the operators that met them.

`trace(model, example)` runs the model once without computing anything and returns a `Graph`. The graph
holds no weights, so it serves every copy of the model. A `keep` is plain data on it:
{axis name: indices that stay}; an axis that is not named keeps everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import torch

from prunus.errors import UserError, unknown
from prunus.graph import axes, op, words
from prunus.graph.attributes import Attribute
from prunus.graph.axes import Axis, Layout
from prunus.graph.blocks import SUFFIX
from prunus.graph.calls import Call
from prunus.graph.configs import Config
from prunus.graph.construction import Stated
from prunus.graph.demands import asking, leasts_of, multiples_of
from prunus.graph.kinds import Kinds
from prunus.graph.making import Maker
from prunus.graph.names import holder, lies_in
from prunus.graph.op import Op, Tag
from prunus.graph.operators import BATCH_NORM
from prunus.graph.outputs import Outputs
from prunus.graph.places import Keep, check_indices
from prunus.graph.sizes import Place
from prunus.graph.skippable import Blocks
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
    calls: list[Call] = field(default_factory=list, repr=False)  # of modules, in the first mode
    shared: list[list[str]] = field(default_factory=list, repr=False)  # modules and tensors of several names

    @property
    def example(self) -> Any:
        """The example of the first mode."""
        return next(iter(self.modes.values()))

    # ----------------------------------------------------------------------------------- depth
    @cached_property
    def blocks(self) -> Blocks:
        """The modules that can be skipped, by the names of their axes, in the order in which they run."""
        return Blocks(
            self.ops, self.calls, self.outputs, self.tensors, self.shared, self.layouts | self.state
        )

    @cached_property
    def deep(self) -> Graph:
        """The graph with an axis of one unit for each block, which a keep may leave out, after its own axes."""
        if self.axes.keys() & self.blocks.keys():
            return self
        found = replace(self, axes=self.axes | self.blocks.axes)
        found.__dict__["blocks"] = self.blocks
        return found

    def axis(self, name: str) -> Axis:
        """Look up an axis, or that of a block.

        Args:
            name: Its name.

        Returns:
            The axis.

        Raises:
            UserError: There is no such axis; of a module that cannot be skipped, the message says why.
        """
        if name not in self.axes and not name.endswith(SUFFIX):
            raise unknown("axis", name, self.axes)
        return self.axes[name] if name in self.axes else self.blocks.axis(name)

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
        return multiples_of(self.ops, self.axes)

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
    def cached(self) -> list[Tag]:
        """The keys and values of each attention, as a cache holds them."""
        return self._found.kept

    @cached_property
    def leasts(self) -> dict[str, tuple[int, str]]:
        """The fewest units that some operator takes, with the operator, of the axes that have more than one."""
        return leasts_of(self.ops)

    def topology(self, axis: str) -> tuple[tuple[str, str, int, int], ...]:
        """Describe an axis; equal for axes with the same roles in the same classes of modules.

        Args:
            axis: The name of the axis.

        Returns:
            The class, role, dimension and number of dimensions of each member, sorted.
        """
        kinds = [
            (self._classes.get(holder(m.tensor), ""), m.role, m.dim, len(self.layouts[m.tensor]))
            for m in self.members(axis)
        ]
        return tuple(sorted(kinds))

    @cached_property
    def config(self) -> Config | None:
        """The model's config, to be tried at other sizes; None if the model cannot be made again."""
        if self.maker is None:
            return None
        try:
            config = Config(self.maker, self._of_units, self.layouts | self.behind, self.read)
        except Exception:  # whatever a constructor raises
            return None
        return config if config.is_same(self.shapes) else None

    @cached_property
    def ties(self) -> Ties:
        """The axes that keep one share together under `uniform=True` (see ties.py)."""
        if self.config is None:
            return block_ties(self._of_units, {name: self.topology(name) for name in self._of_units})
        return config_ties(self.config)

    def misfits(self, widths: Mapping[str, int]) -> list[str]:
        """List what would be other than in the small model if that were made again from its config.

        Args:
            widths: The number of units of each axis, by its name.

        Returns:
            What it is called; empty if all agrees, or if the model is not made from a config.
        """
        if self.config is None:
            return []
        widths = {name: widths[name] for name in self._of_units}
        return self.config.misfits(self.ties.fields(self._sizes, widths), widths)

    @property
    def _of_units(self) -> dict[str, Axis]:
        return {name: axis for name, axis in self.axes.items() if axis.kind != "depth"}

    @property
    def _sizes(self) -> dict[str, int]:
        return {name: axis.size for name, axis in self._of_units.items()}

    def widths(self, keep: Keep | None = None) -> dict[str, int]:
        """Count the units that each axis keeps.

        Args:
            keep: The indices that stay, per axis; all stay on an axis that is not named.

        Returns:
            The number of units by axis, for every axis, and for every block if the keep names one.

        Raises:
            UserError: `keep` does not fit the graph.
        """
        keep = self.check_keep(keep or {})
        named = self if keep.keys() <= self.axes.keys() else self.deep
        return {name: len(keep[name]) if name in keep else axis.size for name, axis in named.axes.items()}

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
        """The integers of a config that say these widths."""
        widths = {name: widths.get(name, size) for name, size in self._sizes.items()}
        if self.maker is None or widths == self._sizes:
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
            axis = self.axis(str(name))
            wanted = check_indices(name, indices, axis.size, least=0 if axis.kind == "depth" else 1)
            least, why = self.leasts.get(name, (0, ""))
            if len(wanted) < least:
                raise UserError(
                    f"keep[{name!r}] must hold {least} indices or more, because {why} takes no fewer."
                )
            multiple = self.multiples.get(name, 1)
            if len(wanted) % multiple:
                raise UserError(
                    f"keep[{name!r}] must hold a multiple of {multiple} indices, because {asking(self.ops, axis)} "
                    f"takes no other width; got {len(wanted)}."
                )
            result[name] = wanted
        self.blocks.check(result)
        return result

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
                -(-self.leasts.get(name, (1, ""))[0] // multiples[name]) * multiples[name],
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
        tensors = {name: dims for name, dims in self.layouts.items() if name in self.parameters}
        return [each for name, dims in tensors.items() for each in words.reasons(name, dims)]

    def explain(self, name: str) -> str:
        """Explain in words what is coupled to an axis, module or parameter, through what, or why it is fixed.

        Args:
            name: The name of an axis, module or parameter.

        Returns:
            A text of several lines.

        Raises:
            UserError: Nothing has this name, the nearest names are listed; or it is a module that cannot be skipped.
        """
        if name.endswith(SUFFIX):
            return f"axis {self.axis(name).name}: {self.blocks[name]}"
        tensors = [n for n in self.layouts if lies_in(n, name)]
        if not tensors and name not in self.axes:
            modules = set(map(holder, self.layouts))
            raise unknown("axis, module or parameter", name, {*self.axes, *modules, *self.layouts} - {""})
        leaves = [axis.name for n in tensors for dim in self.layouts[n] for axis in axes.leaves(dim)]
        found = dict.fromkeys([name, *leaves] if name in self.axes else leaves)
        lines = [line for n in tensors for line in words.describe_tensor(n, self.layouts[n])]
        for each in found:
            members = [f"{m.tensor}, dimension {m.dim}, {m.role}" for m in self.members(each)]
            lines.append(words.describe_axis(self.axes[each], self.kinds[each], members))
        return "\n".join(lines)
