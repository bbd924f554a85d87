"""The functions that a forward pass calls, watched, so that sizes reach the operators with their terms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
import torch._tensor
import torch.functional
from torch.overrides import TorchFunctionMode

from prunus.graph import axes
from prunus.graph.axes import Layout
from prunus.graph.op import DIRECTION, SCALES, tag_of
from prunus.graph.operators import Args, Kwargs
from prunus.graph.sizes import Journal, Place, Sized, SizedFloat, Term, ends, origins, plain
from prunus.graph.symbols import symbolic

# functions whose integers are sizes: plain ones are noted too, because they are written in the code and do not follow
_SIZES = frozenset(
    "view reshape expand split split_with_sizes narrow __getitem__ unflatten repeat zeros ones full empty randn rand "
    "new_zeros new_ones new_full new_empty pad constant_pad_nd layer_norm rms_norm group_norm tile".split()
)
_SCALED = "scaled_dot_product_attention"  # by default with 1 / sqrt(the last dimension of its first argument)
_TRAILING = {"rms_norm"}  # their second argument states the last dimensions of the first
_SLICES = "__getitem__"
_WEIGHT_NORM = (
    "_weight_norm"  # along an inner dimension it is several operators, none of which knows of the others
)
_LEAVES = {"numpy", "tolist", "__array__", "__dlpack__"}  # functions that take numbers out of torch
_READS, _COUNTS = {"size", "__get__"}, {"numel", "nelement"}


class Origins(TorchFunctionMode):
    """Hands out the sizes of tensors with their layouts, and hands sizes on to operators as symbols.

    Args:
        journal: Where sized integers note what else is done with them.
        so_far: The lists of operations and allocations, taken back if a function refuses symbols and is called again.
    """

    def __init__(self, journal: Journal, *so_far: list[Any]):
        super().__init__()
        self.journal, self.so_far = journal, so_far
        self.given: list[Any] = []  # the arguments of the function that runs, if one of them is sized
        self.noted: list[tuple[Layout, Term, str]] = []  # claims of sizes that torch does not hand on
        self.roles: list[tuple[Layout, str]] = []  # as in Op, of parameters that a function uses as a whole
        self.places: set[Place] = set()  # the attributes that reached a function
        self.scale: tuple[Layout, ...] = ()  # the dimension from which torch computes a number in it

    def __torch_function__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if name in _READS:
            return self._read((*args, *kwargs.values()), func(*args, **kwargs))
        if name == _WEIGHT_NORM:
            self._note_direction(*args)
        if name in _COUNTS:
            return self._count(args, func(*args))
        if name in _LEAVES:
            self._fix_read(name, args)
        sized = _has_sized(args) or bool(kwargs and _has_sized(kwargs.values()))
        self.given = [*args, *kwargs.values()] if sized else []
        found = (end for term in origins(self.given) for end in ends(term))
        self.places.update(end for end in found if isinstance(end, Place))
        self.scale = self._scale(args) if name == _SCALED and kwargs.get("scale") is None else ()
        if not sized and name not in _SIZES:
            return func(*args, **kwargs)
        if name in _TRAILING:
            self._note_trailing(name, *args[:2])
        if name == _SLICES:
            self._note_whole(*args)
        before = list(map(len, self.so_far))
        try:
            return func(*symbolic(args), **{key: symbolic(value) for key, value in kwargs.items()})
        except Exception:  # some functions take no symbols; an error of the user's own comes again
            for each, length in zip(self.so_far, before, strict=True):
                del each[length:]
            return func(*args, **kwargs)

    def _read(self, args: Args, out: Any) -> Any:
        """Sizes that a function reads off a tensor, with the layouts of its dimensions."""
        tag = tag_of(args[0])
        if tag is None:
            return out
        if isinstance(out, torch.Size):
            return torch.Size(map(self._sized, out, tag.dims))
        if len(args) > 1:
            return self._sized(out, tag.dims[args[1]])
        return out

    def _note_direction(self, direction: torch.Tensor, length: torch.Tensor, dim: int = 0) -> None:
        """Note that a weight is a direction over its length, for each unit of `dim` (-1: over all), times a length."""
        for tensor, role in ((direction, DIRECTION), (length, SCALES)) if dim != -1 else ():
            tag = tag_of(tensor)
            if tag is not None:
                self.roles += [(born, role) for born in axes.parts(tag.dims[dim])]

    def _fix_read(self, name: str, args: Args) -> None:
        """Let all dimensions stay of a tensor whose numbers leave torch, because what becomes of them is not seen."""
        tag = tag_of(args[0])
        for layout in tag.dims if tag else ():
            axes.fix(layout, f"{name} in {self.journal.module() or 'the model itself'}")

    def _note_trailing(self, name: str, x: torch.Tensor, shape: Sequence[int]) -> None:
        tag = tag_of(x)
        for layout, size in zip(tag.dims[-len(shape) :] if tag else (), shape, strict=False):
            self._note(layout, size, name)

    def _note_whole(self, x: torch.Tensor, index: Any) -> None:
        """Note the ends of slices that leave a dimension as it is, which torch skips."""
        tag = tag_of(x)
        items = index if isinstance(index, tuple) else (index,)
        if tag is None or not all(each is Ellipsis or isinstance(each, (int, slice)) for each in items):
            return
        before = next((i for i, each in enumerate(items) if each is Ellipsis), len(items))
        pairs = [*zip(items[:before], tag.dims, strict=False)]
        pairs += zip(items[:before:-1], tag.dims[::-1], strict=False)  # from the last dimension on
        for each, layout in pairs:
            end = each.stop if isinstance(each, slice) else None
            if isinstance(end, int) and plain(end) == axes.size(layout):
                self._note(layout, end, "slice")

    def _note(self, layout: Layout, size: int, name: str) -> None:
        term = size.term if isinstance(size, Sized) else size
        self.noted.append((layout, term, f"{name} in {self.journal.module() or 'the model itself'}"))

    def _scale(self, args: Args) -> tuple[Layout, ...]:
        tag = tag_of(args[0]) if args else None
        return () if tag is None else (tag.dims[-1],)

    def _sized(self, size: int, layout: Layout) -> int:
        return size if isinstance(layout, int) or size < 2 else Sized(size, layout, self.journal)

    def _count(self, args: Args, out: int) -> int:
        """The number of elements of a tensor, as the product of its sizes."""
        tag = tag_of(args[0])
        return out if tag is None else prod(map(self._sized, args[0].shape, tag.dims))


def _has_sized(values: Any) -> bool:
    for value in values:
        if isinstance(value, (Sized, SizedFloat)):
            return True
        if isinstance(value, (list, tuple)) and _has_sized(value):
            return True
        if isinstance(value, slice) and _has_sized((value.start, value.stop, value.step)):
            return True
    return False


_PYTHON = (torch.nn.functional, torch.functional, torch._tensor)
_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


@contextmanager
def seen_through() -> Iterator[None]:
    """Let functions of torch that are written in Python run as they stand, so that what they call is watched.

    Such a function hands itself over as a whole while a mode is on, and is blind to the mode inside.
    """
    usual = {(module, name): getattr(module, name) for module in _PYTHON for name in _CHECKS}
    for module, name in usual:
        setattr(module, name, _no)
    try:
        yield
    finally:
        for (module, name), function in usual.items():
            setattr(module, name, function)


def _no(*args: Sequence[Any]) -> bool:
    return False
