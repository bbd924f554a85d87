"""Rules of operators for squared activations, all else being linear, as Lookahead needs them.

A `Wave` is the expected square of an activation if the sign of every weight is random. It is stored small: a
dimension along which it is constant (the batch, space) has size 1. Products with weights are in products.py;
an operator without a rule ends the waves that enter it. Source: specification of Lookahead on any traced
model (ours), after Park et al., ICLR 2020, arXiv:2002.04809.

    identity                      activations, dropout, adding a constant
    * c^2                         scaling by a constant, norms (their scale; batch norm with its variance)
    sum                           adding two activations
    each takes the other as 1     multiplying two activations (gates)
    / m                           the mean of m
    the operator itself           operators that only move or join elements
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunus.graph import Op, Untracked, operators


def widen(w: Tensor) -> Tensor:
    """Convert to float32; float64 stays."""
    return w if w.dtype == torch.float64 else w.float()


class Wave(NamedTuple):
    """The squares of an activation of shape `shape`; constant dimensions of `value` have size 1."""

    value: Tensor
    shape: tuple[int, ...]

    def full(self) -> Tensor:
        """The value in its shape; nothing is copied."""
        return self.value.expand(self.shape)

    @property
    def repeats(self) -> int:
        """The number of elements for which each number of `value` stands."""
        return math.prod(self.shape) // max(1, self.value.numel())

    def along(self, dim: int) -> Tensor:
        """The mean over the other dimensions: (shape[dim],)."""
        if self.value.numel() == self.shape[dim] == self.value.shape[dim]:
            return self.value.reshape(-1)
        others = [d for d in range(len(self.shape)) if d != dim % len(self.shape)]
        value = self.value.mean(others) if others else self.value
        return value.expand(self.shape[dim])


def collapse(full: Tensor) -> Wave:
    """Make a wave of a tensor, with size 1 along dimensions of stride 0, which are constant."""
    value = full
    for dim, (size, stride) in enumerate(zip(full.shape, full.stride(), strict=True)):
        if stride == 0 and size > 1:
            value = value.narrow(dim, 0, 1)
    return Wave(value, tuple(full.shape))


def shapes_of(op: Op) -> list[tuple[int, ...]]:
    """The shape of each output that the trace follows."""
    return [tag.shape if tag else () for tag in op.results]


Handler = Callable[..., Any]
HANDLERS: dict[operators.Family, Handler] = {}


def handler(*families: operators.Family) -> Callable[[Handler], Handler]:
    """Register a rule of families. It takes the operation and its arguments, waves for activations."""

    def register(function: Handler) -> Handler:
        for family in families:
            HANDLERS.update(dict.fromkeys(family.parts, function))
        return function

    return register


def find(op: Op) -> Handler | None:
    """The rule of an operator's family, or None."""
    return None if op.family is None else HANDLERS.get(op.family)


# ------------------------------------------------------------------------------------ elementwise
@handler(operators.ELEMENTWISE, operators.COPY, operators.RESTRIDED)
def elementwise(op: Op, *args: Any, **kwargs: Any) -> Wave:
    """Add waves that meet; a single wave passes unchanged."""
    waves = [arg for arg in args if isinstance(arg, Wave)]
    shape = shapes_of(op)[0]
    if len(waves) == 1 and waves[0].shape == shape:
        return waves[0]
    first, *others = (align(wave, op) for wave in waves)
    return Wave(sum(others, first), shape)


def align(wave: Wave, op: Op) -> Tensor:
    """Give the value as many dimensions as the output."""
    missing = len(shapes_of(op)[0]) - wave.value.dim()
    if not missing:
        return wave.value
    return wave.value.reshape((1,) * missing + tuple(wave.value.shape))


@handler(operators.MULTIPLICATION, operators.DIVISION)
def mul(op: Op, a: Any, b: Any, **kwargs: Any) -> Wave:
    shape = shapes_of(op)[0]
    if isinstance(a, Wave) and isinstance(b, Wave):
        a, b = align(a, op), align(b, op)
        if op.is_a(operators.DIVISION):
            b = b.detach()  # the statistic of a norm written by hand
        # the gradient of each is 1, the value is their mean
        return Wave(a + b - (a + b).detach() / 2, shape)
    wave, factor = (a, b) if isinstance(a, Wave) else (b, a)
    if isinstance(factor, Untracked):
        return Wave(align(wave, op), shape)
    square = widen(factor.detach()).square() if isinstance(factor, Tensor) else float(factor) ** 2
    value = align(wave, op)
    return Wave(value / square if op.is_a(operators.DIVISION) and wave is a else value * square, shape)


@handler(operators.GLU)
def glu(op: Op, x: Wave, dim: int = -1) -> Wave:
    a, b = x.full().chunk(2, dim)
    return collapse(a + b - (a + b).detach() / 2)


@handler(operators.SOFTMAX)
def softmax(op: Op, x: Wave, dim: int, *args: Any) -> Wave:
    """Its weights average evenly; the flow reads its input fully (see neighbours.py)."""
    return Wave(x.value.new_full((1,) * len(x.shape), 1 / x.shape[dim] ** 2), x.shape)


# ------------------------------------------------------------------------------------------ norms
def norm_scale(op: Op, args: Sequence[Any]) -> Tensor | None:
    """The squared factor (C,) of a batch norm in evaluation mode; None without weights and statistics.

    args: the arguments of the operator, with tensors in the place of their tags.
    """
    weight, variance, eps, epsilon = (
        operators.argument(op.func, name, args, default=None)
        for name in ("weight", "running_var", "eps", "epsilon")
    )
    scale = widen(weight).square() if isinstance(weight, Tensor) else None
    if isinstance(variance, Tensor):
        inverse = 1 / (widen(variance) + (epsilon if eps is None else eps))
        scale = inverse if scale is None else scale * inverse
    return scale


@handler(operators.BATCH_NORM)
def batch_norm(op: Op, x: Wave, *args: Any) -> Wave:
    scale = norm_scale(op, (x, *args))
    return x if scale is None else Wave(x.value * scale.view(1, -1, *(1,) * (len(x.shape) - 2)), x.shape)


@handler(operators.LAYER_NORM, operators.RMS_NORM)
def layer_norm(op: Op, x: Wave, shape: list[int], weight: Any = None, *args: Any) -> Wave:
    scaled = x.value * widen(weight).square() if isinstance(weight, Tensor) else x.value
    return Wave(scaled, x.shape)


@handler(operators.GROUP_NORM)
def group_norm(op: Op, x: Wave, weight: Any = None, *args: Any) -> Wave:
    if not isinstance(weight, Tensor):
        return x
    return Wave(x.value * widen(weight).square().view(1, -1, *(1,) * (len(x.shape) - 2)), x.shape)


# --------------------------------------------------------------------------- reductions and space
@handler(operators.MEAN, operators.SUM)
def reduce(op: Op, x: Wave, over: Any = None, *args: Any, **kwargs: Any) -> Wave:
    """The sum of m squares, divided by m^2 for a mean."""
    over = [over] if isinstance(over, int) else over
    over = sorted({d % len(x.shape) for d in over}) if over else list(range(len(x.shape)))
    m = math.prod(x.shape[d] for d in over)
    held = math.prod(x.value.shape[d] for d in over)  # the number of the m that differ
    value = x.value.sum(over, keepdim=True) * (m / held) / (m**2 if op.is_a(operators.MEAN) else 1)
    shape = shapes_of(op)[0]
    return Wave(value if len(shape) == len(x.shape) else value.squeeze(over), shape)


@handler(operators.LARGEST)
def largest(op: Op, x: Wave, over: Any = None, *args: Any, **kwargs: Any) -> Wave:
    total = reduce(op, x, over)
    return Wave(total.value * math.prod(total.shape) / math.prod(x.shape), total.shape)


@handler(operators.SPATIAL)
def spatial(op: Op, x: Wave, *args: Any, **kwargs: Any) -> Wave:
    """Poolings and resizings: the wave is constant over space, so only the size of the window matters."""
    shape = shapes_of(op)[0]
    inner = list(range(2, len(shape))) if len(shape) > 2 else []
    value = x.value.mean(inner, keepdim=True) if inner else x.value
    window = 1.0
    if op.is_a(operators.ADAPTIVE_POOLING):
        window = math.prod(x.shape[2:]) / math.prod(shape[2:])
    elif op.is_a(operators.AVERAGE_POOLING):
        sizes = list(op.argument("kernel_size"))
        window = math.prod(sizes * (len(shape) - 2) if len(sizes) == 1 else sizes)
    return Wave(value / window, shape)


# ---------------------------------------------------------------------------- moving and joining
@handler(
    operators.TRANSPOSE,
    operators.WRAPPING,
    operators.REPEAT,
    operators.PART,
    operators.SHUFFLE,
    operators.TRIANGLE,
)
def move(op: Op, x: Wave, *args: Any, **kwargs: Any) -> Any:
    """Apply the operator to the squares; constant dimensions keep stride 0, because nothing is copied."""
    out = op.func(x.full(), *args, **kwargs)
    return [collapse(each) for each in out] if isinstance(out, (tuple, list)) else collapse(out)


@handler(operators.VIEW)
def view(op: Op, x: Wave, *args: Any) -> Wave:
    return collapse(x.full().reshape(shapes_of(op)[0]))


@handler(operators.CAT)
def cat(op: Op, tensors: list[Any], dim: int = 0) -> Wave:
    shape = shapes_of(op)[0]
    dim %= len(shape)
    waves = [wave if isinstance(wave, Wave) else constant(wave) for wave in tensors]
    waves = [wave for wave in waves if len(wave.shape) == len(shape)]
    wide = [max(wave.value.shape[d] for wave in waves) for d in range(len(shape))]
    parts = [
        wave.value.expand([wave.shape[dim] if d == dim else n for d, n in enumerate(wide)]) for wave in waves
    ]
    return Wave(torch.cat(parts, dim), shape)


@handler(operators.STACK)
def stack(op: Op, tensors: list[Any], dim: int = 0) -> Wave:
    waves = [wave if isinstance(wave, Wave) else constant(wave) for wave in tensors]
    wide = torch.broadcast_shapes(*(wave.value.shape for wave in waves))
    return Wave(torch.stack([wave.value.expand(wide) for wave in waves], dim), shapes_of(op)[0])


def constant(other: Tensor | Untracked) -> Wave:
    """The wave of a tensor that depends on no activation: zero."""
    return Wave(torch.zeros((1,) * len(other.shape)), tuple(other.shape))


@handler(operators.PADDING)
def pad(op: Op, x: Wave, amounts: list[int], *args: Any) -> Wave:
    """Padding of space is ignored, as in convolutions; padded channels are zero."""
    value = x.value
    for k in range(len(amounts) // 2):
        d = len(x.shape) - 1 - k
        if value.shape[d] > 1 and any(amounts[2 * k : 2 * k + 2]):
            sides = [0] * (2 * k) + list(amounts[2 * k : 2 * k + 2])
            value = torch.nn.functional.pad(value, sides)
    return Wave(value, shapes_of(op)[0])


@handler(operators.INDEXING)
def index(op: Op, x: Wave | Tensor | Untracked, *args: Any) -> Wave:
    """The elements taken are unknown, so each is the mean over those that may be taken; a table has no signal."""
    x = x if isinstance(x, Wave) else constant(x)
    shape = shapes_of(op)[0]
    same = len(shape) == len(x.shape)
    value = x.value
    for d in range(len(x.shape)):
        if value.shape[d] > 1 and not (same and shape[d] == x.shape[d]):
            value = value.mean(d, keepdim=True)
    return Wave(value if same else value.mean().reshape((1,) * len(shape)), shape)
