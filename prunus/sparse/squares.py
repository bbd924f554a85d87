"""What each operator does to squared magnitudes, all else linear: the part of Lookahead that knows operators.

A `Wave` is the expected square of an activation, as if every weight's sign were random. It is stored small: a
dimension along which it is the same everywhere (the batch, space) has size 1. Products with weights are not here
(see products.py); an operator that is not here either ends the waves that enter it.
Source: specification of Lookahead on any traced model (ours), after Park et al., ICLR 2020, arXiv:2002.04809.

    identity                     activations, dropout, adding what is constant
    * c^2                        scaling by a constant, norms (their scale; batch norm with its variance)
    sum                          adding two activations
    either sees the other as 1   multiplying two activations (gates)
    / m                          the mean of m
    moved                        all that only moves or joins elements
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunus.graph import Op, Untracked, operators


def wide(w: Tensor) -> Tensor:
    """As float32, or float64 if it is."""
    return w if w.dtype == torch.float64 else w.float()


class Wave(NamedTuple):
    """Squares of an activation of shape `shape`; in `value` a dimension has that size, or 1 if it is constant."""

    value: Tensor
    shape: tuple[int, ...]

    def full(self) -> Tensor:
        """The value in its shape; nothing is copied."""
        return self.value.expand(self.shape)

    @property
    def repeats(self) -> int:
        """How many elements each number of `value` stands for."""
        return math.prod(self.shape) // max(1, self.value.numel())

    def along(self, dim: int) -> Tensor:
        """(shape[dim],): the mean over the other dimensions."""
        if self.value.numel() == self.shape[dim] == self.value.shape[dim]:
            return self.value.reshape(-1)
        others = [d for d in range(len(self.shape)) if d != dim % len(self.shape)]
        value = self.value.mean(others) if others else self.value
        return value.expand(self.shape[dim])


def collapsed(full: Tensor) -> Wave:
    """The wave of a tensor, small where its memory shows that it is constant."""
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
    """Register what operators do. A handler takes the operation and its arguments, waves in tensors' places."""

    def register(function: Handler) -> Handler:
        for family in families:
            HANDLERS.update(dict.fromkeys(family.parts, function))
        return function

    return register


def find(op: Op) -> Handler | None:
    """The handler of an operator's family."""
    return HANDLERS.get(op.family)


# ------------------------------------------------------------------------------------ elementwise
@handler(operators.ELEMENTWISE, operators.COPY, operators.RESTRIDED)
def elementwise(op: Op, *args: Any, **kwargs: Any) -> Wave:
    """Waves that meet are added; everything else lets a wave through as it is."""
    waves = [arg for arg in args if isinstance(arg, Wave)]
    shape = shapes_of(op)[0]
    if len(waves) == 1 and waves[0].shape == shape:
        return waves[0]
    return Wave(sum(aligned(wave, op) for wave in waves), shape)


def aligned(wave: Wave, op: Op) -> Tensor:
    """The value with as many dimensions as the output."""
    missing = len(shapes_of(op)[0]) - wave.value.dim()
    if not missing:
        return wave.value
    return wave.value.reshape((1,) * missing + tuple(wave.value.shape))


@handler(operators.MULTIPLICATION, operators.DIVISION)
def mul(op: Op, a: Any, b: Any, **kwargs: Any) -> Wave:
    shape = shapes_of(op)[0]
    if isinstance(a, Wave) and isinstance(b, Wave):
        a, b = aligned(a, op), aligned(b, op)
        if op.is_a(operators.DIVISION):
            b = b.detach()  # what a norm written by hand divides by
        # The gradient of each is 1; the value is between theirs.
        return Wave(a + b - (a + b).detach() / 2, shape)
    wave, factor = (a, b) if isinstance(a, Wave) else (b, a)
    if isinstance(factor, Untracked):
        return Wave(aligned(wave, op), shape)
    square = wide(factor.detach()).square() if isinstance(factor, Tensor) else float(factor) ** 2
    value = aligned(wave, op)
    return Wave(value / square if op.is_a(operators.DIVISION) and wave is a else value * square, shape)


@handler(operators.GLU)
def glu(op: Op, x: Wave, dim: int = -1) -> Wave:
    a, b = x.full().chunk(2, dim)
    return collapsed(a + b - (a + b).detach() / 2)


@handler(operators.SOFTMAX)
def softmax(op: Op, x: Wave, dim: int, *args: Any) -> Wave:
    """What is weighted by it is averaged evenly; what it is computed from is needed as it is (see neighbours)."""
    return Wave(x.value.new_full((1,) * len(x.shape), 1 / x.shape[dim] ** 2), x.shape)


# ------------------------------------------------------------------------------------------ norms
def norm_scale(op: Op, args: Sequence) -> Tensor | None:
    """The squared factor of a batch norm in evaluation mode, (C,); None without weights and statistics.

    args: of the operator, with what the weights are in their places.
    """
    weight, variance, eps, epsilon = (
        operators.argument(op.func, name, args, default=None)
        for name in ("weight", "running_var", "eps", "epsilon")
    )
    scale = wide(weight).square() if isinstance(weight, Tensor) else None
    if isinstance(variance, Tensor):
        inverse = 1 / (wide(variance) + (epsilon if eps is None else eps))
        scale = inverse if scale is None else scale * inverse
    return scale


@handler(operators.BATCH_NORM)
def batch_norm(op: Op, x: Wave, *args: Any) -> Wave:
    scale = norm_scale(op, (x, *args))
    return x if scale is None else Wave(x.value * scale.view(1, -1, *(1,) * (len(x.shape) - 2)), x.shape)


@handler(operators.LAYER_NORM, operators.RMS_NORM)
def layer_norm(op: Op, x: Wave, shape: list[int], weight: Any = None, *args: Any) -> Wave:
    scaled = x.value * wide(weight).square() if isinstance(weight, Tensor) else x.value
    return Wave(scaled, x.shape)


@handler(operators.GROUP_NORM)
def group_norm(op: Op, x: Wave, weight: Any = None, *args: Any) -> Wave:
    if not isinstance(weight, Tensor):
        return x
    return Wave(x.value * wide(weight).square().view(1, -1, *(1,) * (len(x.shape) - 2)), x.shape)


# --------------------------------------------------------------------------- reductions and space
@handler(operators.MEAN, operators.SUM)
def reduce(op: Op, x: Wave, over: Any = None, *args: Any, **kwargs: Any) -> Wave:
    """The sum of m squares, and for the mean the same over m^2."""
    over = [over] if isinstance(over, int) else over
    over = sorted({d % len(x.shape) for d in over}) if over else list(range(len(x.shape)))
    m = math.prod(x.shape[d] for d in over)
    held = math.prod(x.value.shape[d] for d in over)  # of the m, how many differ
    value = x.value.sum(over, keepdim=True) * (m / held) / (m**2 if op.is_a(operators.MEAN) else 1)
    shape = shapes_of(op)[0]
    return Wave(value if len(shape) == len(x.shape) else value.squeeze(over), shape)


@handler(operators.LARGEST)
def largest(op: Op, x: Wave, over: Any = None, *args: Any, **kwargs: Any) -> Wave:
    total = reduce(op, x, over)
    return Wave(total.value * math.prod(total.shape) / math.prod(x.shape), total.shape)


@handler(operators.SPATIAL)
def spatial(op: Op, x: Wave, *args: Any, **kwargs: Any) -> Wave:
    """Poolings and resizings: constant over the dimensions behind the channels, so only their number matters."""
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
def moved(op: Op, x: Wave, *args: Any, **kwargs: Any) -> Any:
    """The operator itself, on the squares: constant dimensions stay so, for nothing is copied to move them."""
    out = op.func(x.full(), *args, **kwargs)
    return [collapsed(each) for each in out] if isinstance(out, (tuple, list)) else collapsed(out)


@handler(operators.VIEW)
def view(op: Op, x: Wave, *args: Any) -> Wave:
    return collapsed(x.full().reshape(shapes_of(op)[0]))


@handler(operators.CAT)
def cat(op: Op, tensors: list, dim: int = 0) -> Wave:
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
def stack(op: Op, tensors: list, dim: int = 0) -> Wave:
    waves = [wave if isinstance(wave, Wave) else constant(wave) for wave in tensors]
    wide = torch.broadcast_shapes(*(wave.value.shape for wave in waves))
    return Wave(torch.stack([wave.value.expand(wide) for wave in waves], dim), shapes_of(op)[0])


def constant(other: Tensor | Untracked) -> Wave:
    """What does not depend on an activation carries no wave."""
    return Wave(torch.zeros((1,) * len(other.shape)), tuple(other.shape))


@handler(operators.PADDING)
def pad(op: Op, x: Wave, amounts: list[int], *args: Any) -> Wave:
    """Padding of space is left out, as convolutions leave it out; padded channels carry nothing."""
    value = x.value
    for k in range(len(amounts) // 2):
        d = len(x.shape) - 1 - k
        if value.shape[d] > 1 and any(amounts[2 * k : 2 * k + 2]):
            sides = [0] * (2 * k) + list(amounts[2 * k : 2 * k + 2])
            value = torch.nn.functional.pad(value, sides)
    return Wave(value, shapes_of(op)[0])


@handler(operators.INDEXING)
def index(op: Op, x: Wave, *args: Any) -> Wave:
    """Which elements are taken is not known, so each is the mean over what may be taken."""
    shape = shapes_of(op)[0]
    same = len(shape) == len(x.shape)
    value = x.value
    for d in range(len(x.shape)):
        if value.shape[d] > 1 and not (same and shape[d] == x.shape[d]):
            value = value.mean(d, keepdim=True)
    return Wave(value if same else value.mean().reshape((1,) * len(shape)), shape)
