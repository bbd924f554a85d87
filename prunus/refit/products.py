"""A product of an input and a weight, as a system of linear equations.

Whatever the operator is (a matrix product, a convolution of any rank, strided, dilated, grouped or transposed), its
output is Y = u W^T + b for each of G groups: u (n, K) are the inputs that each of n outputs reads, *unfolded*. The
letters of shapes: N images, C channels, G groups, O outputs and K columns of a group, *S the places of the output,
*k those of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.graph import operators

ENOUGH, LEAST = 32, 16384  # equations: for each weight of an output, and in all; more change nothing
BLOCK = 1 << 24  # numbers that are unfolded at once: 64 MB


@dataclass(frozen=True)
class Product:
    """A product that is about to run.

    Args:
        func: The operator.
        args: Its arguments by position.
        kwargs: Those by keyword.
        x: The operand that depends on data.
        weight: The other, which is a parameter, or a part or another view of one.
        first: Whether the weight is the first operand.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    x: Tensor
    weight: Tensor
    first: bool

    def __post_init__(self) -> None:
        """Read a matrix that is repeated for each of a batch, as torch does it for some strides, as one matrix."""
        if operators.is_a(self.func, operators.BATCHED) and self.weight.stride(0) == 0:
            object.__setattr__(self, "weight", self.weight[0])

    @property
    def is_convolution(self) -> bool:
        """Whether the operator is a convolution."""
        return operators.is_a(self.func, operators.CONVOLUTION)

    def argument(self, name: str, default: Any = None) -> Any:
        """The value of an argument by its name in the operator's schema."""
        return operators.argument(self.func, name, self.args, self.kwargs, default=default)

    @property
    def bias(self) -> Tensor | None:
        """The bias that the same operator adds to the product, if that is one number for each output."""
        added = operators.is_a(self.func, operators.ADDMM)
        bias = self.argument("self" if added else "bias")
        return bias if isinstance(bias, Tensor) and bias.dim() == 1 and not self._first else None

    @property
    def groups(self) -> int:
        """The number of groups G."""
        if self.is_convolution:
            return self.argument("groups")
        return len(self.weight) if self._batched else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (G, O, K) of `matrix`."""
        w, groups = self.weight, self.groups
        if not self.is_convolution:
            stands = self._first or operators.is_a(self.func, operators.LINEAR)
            outputs, columns = w.shape[-2:] if stands else w.shape[-2:][::-1]
            return groups, outputs, columns
        outputs = w.shape[1] if self.argument("transposed", False) else w.shape[0] // groups
        return groups, outputs, w.numel() // (groups * outputs)

    def channels(self, dims: Sequence[Any]) -> tuple[Any, Any]:
        """Find among the layouts of an input's or output's dimensions those of its groups and of its channels.

        The first is 1 if the channels' layout counts the groups too, as in a convolution.
        """
        if self.is_convolution:
            return 1, dims[1]
        channels = dims[-2 if self._first and len(dims) > 1 else -1]
        return (dims[0] if self._batched else 1), channels

    def spacing(self, there: int, columns: int) -> int:
        """Return the distance of the places that give equations: 1 takes all, 3 each third in every dimension.

        It is odd, so that all phases of a strided kernel give equations.

        Args:
            there: The number of places that there are.
            columns: The number of columns of the equations; more columns need more places.
        """
        rank = self.weight.dim() - 2 if self.is_convolution else 1
        spacing = int((there / max(ENOUGH * columns, LEAST)) ** (1 / rank))
        return max(1, spacing - 1 + spacing % 2)

    def without_data(self) -> Product:
        """The same product without its input, which would be kept in memory."""
        empty = self.x.new_empty(0)
        return replace(self, x=empty, args=tuple(empty if each is self.x else each for each in self.args))

    def reads_same(self, other: Product) -> bool:
        """Whether another product reads the same numbers in the same way, as those of queries, keys and values do."""
        places = [
            (each.x.data_ptr(), each.x.shape, each.x.stride(), each.x.dtype, each.x._version)
            for each in (self, other)
        ]
        return places[0] == places[1] and self._unfolding == other._unfolding

    @property
    def _unfolding(self) -> tuple[Any, ...]:
        """The properties that decide, besides the input, which numbers an equation has."""
        if not self.is_convolution:
            return self._first, self._batched, self.shape[2]
        names = ("stride", "padding", "dilation", "output_padding")
        each = (tuple(_each(self.argument(name, 0), self.weight.shape[2:])) for name in names)
        return self.weight.shape[2:], self.groups, self.argument("transposed", False), *each

    # ------------------------------------------------------------------------------------ weights
    def matrix(self) -> Tensor:
        """The weight as (G, O, K), in float64; a copy."""
        w = self.weight.detach().double()
        if not self.is_convolution:
            stands = self._first or operators.is_a(self.func, operators.LINEAR)
            w = w if stands else w.transpose(-1, -2)
            return w.reshape(-1, *w.shape[-2:]).clone()
        groups = self.argument("groups")
        if self.argument("transposed", False):  # (I, O / G, *k)
            w = w.unflatten(0, (groups, -1)).transpose(1, 2).flip(tuple(range(3, w.dim() + 1)))
            return w.flatten(2).clone()
        return w.unflatten(0, (groups, -1)).flatten(2).clone()

    @torch.no_grad()
    def write(self, matrix: Tensor) -> None:
        """Write a weight (G, O, K) to the parameter."""
        shape = self.weight.shape
        if not self.is_convolution:
            stands = self._first or operators.is_a(self.func, operators.LINEAR)
            w = matrix if stands else matrix.transpose(-1, -2)
            self.weight.copy_(w.reshape(shape))
        elif self.argument("transposed", False):
            kernel = tuple(range(3, len(shape) + 1))
            w = matrix.unflatten(2, (-1, *shape[2:])).flip(kernel).transpose(1, 2)
            self.weight.copy_(w.flatten(0, 1))
        else:
            self.weight.copy_(matrix.unflatten(2, (-1, *shape[2:])).flatten(0, 1))

    # ------------------------------------------------------------------------------- inputs, outputs
    def count(self, out: Tensor) -> int:
        """The number of outputs n of one group that an output of the operator holds."""
        width = out.shape[1] if self.is_convolution else out.shape[-2 if self._first else -1]
        return out.numel() // max(1, width * (len(out) if self._batched else 1))

    def equations(self, wanted: Tensor, spacing: int = 1, offset: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over unfolded inputs u (G, n, K) and the outputs wanted for them y (G, n, O), in blocks.

        Args:
            wanted: The outputs, as the operator returns them.
            spacing: Take one of this many places along each dimension of space, or of all rows of a matrix.
            offset: The first place that is taken, less than `spacing` times the number of places.
        """
        if self.is_convolution:
            yield from self._windows(wanted, spacing, offset)
            return
        x, y = self.x, wanted
        if self._first:
            x, y = (each.transpose(-1, -2) if each.dim() > 1 else each.unsqueeze(0) for each in (x, y))
        if not self._batched:
            x, y = (each.reshape(1, -1, each.shape[-1]) for each in (x, y))
        begin = offset % min(spacing, x.shape[1])
        x, y = x[:, begin::spacing], y[:, begin::spacing]
        step = max(1, BLOCK // max(1, x.shape[0] * x.shape[2]))
        yield from zip(x.split(step, 1), y.split(step, 1), strict=True)

    @property
    def _first(self) -> bool:
        return self.first and not self.is_convolution

    @property
    def _batched(self) -> bool:
        return operators.is_a(self.func, operators.BATCHED) and self.weight.dim() > 2

    def _windows(self, wanted: Tensor, spacing: int, offset: int) -> Iterator[tuple[Tensor, Tensor]]:
        kernel, rank = self.weight.shape[2:], self.weight.dim() - 2
        transposed, groups = self.argument("transposed", False), self.argument("groups")
        stride = [1] * rank if transposed else _each(self.argument("stride"), kernel)
        dilation = _each(self.argument("dilation"), kernel)
        view = self._padded()
        for dim, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
            view = view.unfold(dim, d * (k - 1) + 1, s)[..., ::d]  # (N, C, *S, *k) in the end
        for dim in range(2, 2 + rank):
            begin = offset % min(spacing, wanted.shape[dim])
            view, wanted = (_every(each, dim, begin, spacing) for each in (view, wanted))
        step = max(1, BLOCK // max(1, view[0].numel()))
        order = [1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank)]
        for u, y in zip(view.split(step), wanted.split(step), strict=True):
            u = u.unflatten(1, (groups, -1)).permute(order).flatten(rank + 2).flatten(1, -2)
            yield u, y.unflatten(1, (groups, -1)).movedim(2, -1).transpose(0, 1).flatten(1, -2)

    def _padded(self) -> Tensor:
        """The input with the zeros around it (and for a transposed convolution, between its numbers)."""
        x, kernel = self.x, self.weight.shape[2:]
        padding = _each(self.argument("padding"), kernel)
        if not self.argument("transposed", False):
            return F.pad(x, [n for p in reversed(padding) for n in (p, p)])
        stride, dilation = (_each(self.argument(name), kernel) for name in ("stride", "dilation"))
        more = _each(self.argument("output_padding"), kernel)
        spread = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
        wide = x.new_zeros((*x.shape[:2], *spread))
        wide[(..., *(slice(None, None, s) for s in stride))] = x
        amounts = []
        for k, p, d, extra in zip(kernel, padding, dilation, more, strict=True):
            amounts = [d * (k - 1) - p, d * (k - 1) - p + extra, *amounts]
        return F.pad(wide, amounts)


def _each(value: Any, kernel: torch.Size) -> list[int]:
    """One number for each dimension of the kernel."""
    values = [value] if isinstance(value, int) else list(value)
    return values * (len(kernel) // len(values))


def _every(tensor: Tensor, dim: int, begin: int, spacing: int) -> Tensor:
    """The places begin, begin + spacing, ... of a dimension."""
    return tensor[(slice(None),) * dim + (slice(begin, None, spacing),)]
