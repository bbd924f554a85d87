"""The record of one traced operation: its arguments, its result, and the layouts that a rule reads and sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from prunus.graph import axes, operators
from prunus.graph.axes import Layout
from prunus.graph.operators import Family

PRODUCES, CONSUMES, SCALES, SHIFTS = "produces", "consumes", "scales", "shifts"


class Tag:
    """What tracing knows about a tensor: a layout per dimension, and the allocation it lives in."""

    __slots__ = ("_shape", "dims", "met", "storage")

    def __init__(self, dims: Sequence[Layout], storage: Any = None):
        self.dims = list(dims)
        self.met = False  # whether an operator read it
        self.storage = storage  # see tracer.Storage; None for parameters and buffers
        self._shape: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape; computed once, for those who go through a trace again and again."""
        if self._shape is None:
            self._shape = tuple(map(axes.size, self.dims))
        return self._shape


def tag_of(tensor: Any) -> Tag | None:
    """The tag of a tensor that tracing has seen; None for constants, and for what is no tensor."""
    return getattr(tensor, "_prunus_tag", None)


class Untracked(NamedTuple):
    """Stands for a tensor that depends on no parameter and no input."""

    shape: torch.Size


class Op:
    """One operation of the traced forward pass."""

    __slots__ = (
        "alias",
        "contracts",
        "family",
        "follows",
        "func",
        "inputs",
        "macs",
        "mixes",
        "module",
        "name",
        "order",
        "out",
        "outs",
        "over",
        "results",
        "roles",
        "scalars",
    )

    def __init__(self, func: torch._ops.OpOverload, module: str, out: Any):
        self.func = func
        self.name = operators.name_of(func)
        self.family = operators.family_of(func)
        self.module = module
        self.out = out
        self.outs: list[list[Layout] | None] = []  # per output tensor, what the rule returned
        self.macs: list[tuple[int, tuple[Layout, ...]]] = []
        self.follows: list[tuple[Layout, int, int | None]] = []
        self.roles: list[tuple[Layout, str]] = []  # the axis a parameter dimension was born with, its role
        self.scalars: tuple[str, ...] = ()
        self.inputs: tuple[list, dict] = ([], {})  # its arguments: a tag for a tensor, or `Untracked`
        self.results: list[Tag | None] = []  # the tags of its output tensors
        self.mixes = self.contracts = False
        self.over: Layout = 1  # what a product sums over
        self.order: list[int] | None = None  # of a transposition: which input dimension each becomes
        self.alias: torch.Tensor | None = None  # the input whose memory the output shares

    def __str__(self) -> str:
        return f"{self.name} in {self.module or 'the model itself'}"

    # -------------------------------------------------------------------------- questions to a trace
    def is_a(self, family: Family) -> bool:
        """Whether the operator belongs to a family (see operators.py)."""
        return self.family in family.parts

    def argument(self, name: str, default: Any = operators._REQUIRED) -> Any:
        """An argument by its name in the operator's schema; a tag in the place of a tensor.

        default: for operators without an argument of this name, which raise UserError otherwise.
        """
        return operators.argument(self.func, name, *self.inputs, default=default)

    def operands(self) -> Sequence:
        """What a product multiplies: tags, or `Untracked`."""
        return operators.operands(self.func, self.inputs[0])

    def values(self) -> Iterator[Any]:
        """All arguments, those in lists and those given by keyword too."""
        yield from operators.flat(self.inputs[0])
        yield from operators.flat(self.inputs[1].values())

    def reads(self) -> list[Tag]:
        """The tags of the tensors that it takes."""
        return [value for value in self.values() if isinstance(value, Tag)]

    def writes(self) -> list[Tag]:
        """The tags of the tensors that it gives."""
        return [tag for tag in self.results if tag is not None]

    def tags(self) -> list[Tag]:
        """The tags of all its tensors, those it takes first."""
        return self.reads() + self.writes()

    # ---------------------------------------------------------------------------- what a rule says
    def dims(self, tensor: torch.Tensor) -> list[Layout]:
        tag = tag_of(tensor)
        return tag.dims if tag is not None else list(tensor.shape)

    def unify(self, a: Layout, b: Layout) -> None:
        axes.unify(a, b, self)

    def fix(self, *layouts: Layout) -> None:
        for layout in layouts:
            axes.fix(layout, self)

    def count(self, times: int, *layouts: Layout, over: Layout) -> None:
        self.contracts, self.over = True, over
        self.macs.append((times, layouts))

    def follow(self, layout: Layout, argument: str, element: int | None = None) -> None:
        if not isinstance(layout, int):
            self.follows.append((layout, operators.position(self.func, argument), element))

    def role(self, tensor: torch.Tensor, dim: int, role: str) -> None:
        self.roles.append((self.dims(tensor)[dim], role))


def tensors_in(args: Any) -> list[torch.Tensor]:
    """All tensors among arguments, one level of lists deep."""
    found = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found += [item for item in arg if isinstance(item, torch.Tensor)]
    return found
