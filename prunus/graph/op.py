"""The record of one traced operation: its arguments, its result, and the layouts that a rule reads and sets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from prunus.graph import axes, operators
from prunus.graph.axes import Layout
from prunus.graph.operators import Family, Kwargs
from prunus.graph.sizes import Made, Term

PRODUCES, CONSUMES, SCALES, SHIFTS = "produces", "consumes", "scales", "shifts"
DIRECTION = "direction"  # divided by its own length over the other dimensions, so it may not be zero


class Tag:
    """The facts that tracing attaches to a tensor: a layout for each dimension, and its allocation.

    Args:
        dims: The layout of each dimension.
        storage: The allocation (see tracer.Storage); None for parameters and buffers.
        data: Whether it depends on an input; otherwise it is a parameter, or made of parameters alone.
        places: The layout whose units its numbers count, such as those of `topk`; None for other numbers.
        picked: Whether data have picked it from a table of weights, such as the weights of an expert.
    """

    __slots__ = ("_shape", "data", "dims", "generation", "met", "picked", "places", "storage")

    def __init__(
        self,
        dims: Sequence[Layout],
        storage: Any = None,
        data: bool = False,
        places: Layout | None = None,
        picked: bool = False,
    ):
        self.dims = list(dims)
        self.data = data
        self.met = False  # whether an operator read it
        self.generation = _generation  # the number of the pass
        self.storage = storage
        self.places = places
        self.picked = picked
        self._shape: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor; computed once, because some passes visit a trace again and again."""
        if self._shape is None:
            self._shape = tuple(map(axes.size, self.dims))
        return self._shape


_generation = 0


def new_generation() -> None:
    """Begin a pass: tags of earlier passes, on tensors that some function has stored, are not seen any more."""
    global _generation
    _generation += 1


def tag_of(tensor: Any) -> Tag | None:
    """The tag of a tensor that this pass has seen; None for constants and for other objects."""
    tag = getattr(tensor, "_prunus_tag", None)
    return tag if tag is not None and tag.generation == _generation else None


def dims_of(tensor: torch.Tensor) -> list[Layout]:
    """The layout of each dimension of a tensor; its plain size if nothing is known of it."""
    tag = tag_of(tensor)
    return tag.dims if tag is not None else list(tensor.shape)


def put_tag(tensor: Any, tag: Tag) -> None:
    """Attach a tag to a tensor."""
    tensor._prunus_tag = tag


def is_inexact(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds floating-point or complex numbers, as weights and signals do; others are indices."""
    return tensor.is_floating_point() or tensor.is_complex()


class Untracked(NamedTuple):
    """A placeholder for a tensor that depends on no parameter and no input."""

    shape: torch.Size


class Op:
    """One operation of the traced forward pass.

    Args:
        func: The operator that ran.
        module: The name of the module that was running; "" for the model itself.
        out: The result; None once the operation's rule has read it.
    """

    __slots__ = (
        "alias",
        "contracts",
        "family",
        "follows",
        "func",
        "inputs",
        "leasts",
        "macs",
        "mixes",
        "module",
        "multiples",
        "name",
        "order",
        "origins",
        "out",
        "outs",
        "over",
        "picks",
        "placed",
        "places",
        "results",
        "roles",
        "scalars",
        "terms",
        "unread",
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
        self.multiples: list[tuple[Layout, int]] = []
        self.leasts: list[tuple[Layout, int]] = []
        self.roles: list[tuple[Layout, str]] = []  # the axis a parameter dimension was born with, its role
        self.terms: dict[tuple[int, int | None], Term] = {}  # of its integers, by argument and element
        self.scalars: tuple[str, ...] = ()
        self.origins: tuple[Term, ...] = ()  # the terms of what its scalars were computed from
        self.inputs: tuple[list[Any], Kwargs] = ([], {})  # its arguments: a tag for a tensor, or `Untracked`
        self.results: list[Tag | None] = []  # the tags of its output tensors
        self.mixes = self.contracts = False
        self.picks = False  # whether it takes the units at some places, without computing with their numbers
        self.places: Layout | None = None  # the layout of which numbers that it returns are places
        self.placed: Collection[int] = ()  # the numbers of the results that hold these places
        self.over: Layout = 1  # the dimension that a product sums over
        self.order: list[int] | None = None  # the input dimension at each place of a transposition's result
        self.alias: torch.Tensor | None = None  # the input whose memory the output shares
        self.unread: tuple[int, Layout] | None = None  # a result, and what stays if something reads that

    def __str__(self) -> str:
        return f"{self.name} in {self.module or 'the model itself'}"

    # -------------------------------------------------------------------------- questions to a trace
    def is_a(self, family: Family) -> bool:
        """Return whether the operator belongs to a family (see operators.py)."""
        return self.family in family.parts

    def argument(self, name: str, default: Any = operators._REQUIRED) -> Any:
        """Look up an argument by its name in the operator's schema.

        Args:
            name: The name, such as "groups".
            default: The value for operators without an argument of this name.

        Returns:
            Its value, or the schema's default if it was left out; a tag in the place of a tensor.

        Raises:
            UserError: The operator has no such argument, and there is no `default`.
        """
        return operators.argument(self.func, name, *self.inputs, default=default)

    def operands(self) -> Sequence[Any]:
        """The tensors that a product multiplies, as tags or `Untracked`; none for other operators."""
        return operators.operands(self.func, self.inputs[0])

    def values(self) -> Iterator[Any]:
        """All arguments, including those in lists and those by keyword."""
        yield from operators.flat(self.inputs[0])
        yield from operators.flat(self.inputs[1].values())

    def reads(self) -> list[Tag]:
        """The tags of the tensors that it reads."""
        return [value for value in self.values() if isinstance(value, Tag)]

    def writes(self) -> list[Tag]:
        """The tags of the tensors that it returns."""
        return [tag for tag in self.results if tag is not None]

    def tags(self) -> list[Tag]:
        """The tags of all its tensors, first those that it reads."""
        return self.reads() + self.writes()

    # ---------------------------------------------------------------------------- what a rule says
    def dims(self, tensor: torch.Tensor) -> list[Layout]:
        """The layout of each dimension of an argument; its plain size if nothing is known of it."""
        return dims_of(tensor)

    def sizes(self) -> tuple[Any, ...]:
        """A list of the plain sizes of each result, for dimensions that stay; None for one that is no tensor."""
        results = self.out if isinstance(self.out, (tuple, list)) else (self.out,)
        return tuple(list(each.shape) if isinstance(each, torch.Tensor) else None for each in results)

    def unify(self, a: Layout, b: Layout) -> None:
        """Let two dimensions be the same, because of this operation."""
        axes.unify(a, b, self)

    def match(self, a: Layout, b: Layout) -> None:
        """Let two dimensions be as long as each other, because of this operation."""
        axes.match(a, b, self)

    def fix(self, *layouts: Layout) -> None:
        """Let no axis of these layouts shrink, because of this operation."""
        for layout in layouts:
            axes.fix(layout, self)

    def count(self, times: int, *layouts: Layout, over: Layout) -> None:
        """Add multiply-adds: `times` the product of the sizes of `layouts`, summed over `over`."""
        self.contracts, self.over = True, over
        self.macs.append((times, layouts))

    def multiple(self, layout: Layout, number: int) -> None:
        """State that the operator takes only tensors in which this dimension is a multiple of `number`."""
        self.multiples.append((layout, number))

    def least(self, layout: Layout, number: int) -> None:
        """State that the operator takes only tensors in which this dimension is at least `number`."""
        self.leasts.append((layout, number))

    def carry_places(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note that the result holds places of a layout if the operator moves such places; otherwise fix the layout.

        A place is the number of a unit, and a unit has another number in the small model. So an operator that computes
        with these numbers would give another result there. One that only picks by them would not.

        Args:
            tensors: The operator's tensors.
        """
        for tensor in tensors:
            tag = tag_of(tensor)
            if tag is None or tag.places is None or self.picks:
                continue
            if self.is_a(operators.MOVE):
                self.places, self.placed = tag.places, range(len(self.outs))
            else:
                self.fix(tag.places)

    def places_in(self, number: int) -> Layout | None:
        """The layout of which the numbers in a result are places, by the number of the result; None for others."""
        return self.places if number in self.placed else None

    def follow(self, layout: Layout, argument: str, element: int | None = None) -> None:
        """Let the integer argument of this name, or one element of it, be the size of a layout."""
        place = operators.position(self.func, argument)
        known = (place, element) in self.terms or not self.takes_symbol(place, element)
        if known or not isinstance(layout, int):
            self.follows.append((layout, place, element))

    def takes_symbol(self, place: int, element: int | None) -> bool:
        """Whether an integer argument, or an element of it, reaches the operator with its term (see symbols.py)."""
        return element is not None or "Sym" in str(self.func._schema.arguments[place].real_type)

    def from_end(self, argument: str, whole: Layout) -> None:
        """Let a negative integer argument count from the end of a dimension."""
        place = operators.position(self.func, argument)
        term = self.terms.get((place, None))
        if isinstance(term, int):
            self.terms[place, None] = Made("+", whole, term)
        elif isinstance(term, Made) and term.sign == "-" and term.left == 0:
            self.terms[place, None] = Made("-", whole, term.right)

    def role(self, tensor: torch.Tensor, dim: int, role: str) -> None:
        """State how a dimension of a parameter is used: `PRODUCES`, `CONSUMES`, `SCALES` or `SHIFTS`.

        The tensor may be made of parameters (moved, scaled, standardised), or picked from one; of others nothing is
        noted.
        """
        tag = tag_of(tensor)
        if tag is not None and (tag.picked or not tag.data):
            self.roles += [(born, role) for born in axes.parts(tag.dims[dim])]


def tensors_in(args: Iterable[Any]) -> list[torch.Tensor]:
    """Collect the tensors among arguments.

    Args:
        args: Any values; lists and tuples among them are searched one level deep.

    Returns:
        The tensors, in order.
    """
    found: list[torch.Tensor] = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found += [item for item in arg if isinstance(item, torch.Tensor)]
    return found
