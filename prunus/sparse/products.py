"""Rules of products with weights: each ends the wave that enters it and starts one of its own row norms.

They report to a neighbours.Flow (here `flow`), which keeps the sites. Shapes: O outputs and I inputs of a
weight, G groups, *kernel the places of a convolution's kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.graph import Graph, Op, operators
from prunus.sparse.squares import Wave, shapes_of, widen

Lag = tuple[int, ...]  # a distance between two elements in space
ROWS = 1 << 18  # elements processed at once: they fit a core's cache


def convolution(flow: Any, place: int, op: Op, x: Wave, w: Tensor) -> Wave:
    """w (O, I / G, *kernel), transposed (I, O / G, *kernel)."""
    kernel, stride, dilation = w.dim() - 2, op.argument("stride"), op.argument("dilation")
    transposed, groups = op.argument("transposed", False), op.argument("groups")
    if len(stride) < kernel or len(dilation) < kernel:  # one number for all
        stride, dilation = (list(each) * (kernel // len(each)) for each in (stride, dilation))
    lag = flow.lag[-kernel:] if kernel <= len(flow.lag) else (0,) * kernel
    spread, shape = (1,) * kernel, shapes_of(op)[0]

    def along_first(numbers: Tensor) -> Tensor:
        return numbers.view(-1, 1, *spread)

    def along_second(numbers: Tensor) -> Tensor:
        if groups == 1:
            return numbers.view(1, -1, *spread)
        each = numbers.view(groups, 1, -1).expand(-1, w.shape[0] // groups, -1)
        return each.reshape(*w.shape[:2], *spread)

    of_inputs, of_outputs = (along_first, along_second) if transposed else (along_second, along_first)

    def energies(w: Tensor, of_lag: Lag | None, site: Any = None) -> tuple[Tensor, Tensor]:
        """Sums (outputs,) and (inputs,) of squares over the kernel, or of products at a lag.

        The second are weighted by the trailing norm's factors of outputs.
        """
        rows = flow.trailing.get(place)
        if of_lag is None or any(of_lag):
            matrix = overlap(w, of_lag)
        elif groups == 1 and not transposed and is_dense(w):
            last = by_channel_last(w)
            produced, read = sums(as_matrix(w, last), as_matrix(flow.squared(w, site), last), rows)
            return produced, read.view(-1, w.shape[1]).sum(0) if last else read.view(w.shape[1], -1).sum(1)
        else:
            matrix = square(w, flow.squared(w, site)).flatten(2).sum(2)
        scaled = matrix if rows is None else matrix * of_outputs(rows).flatten(1)
        if transposed:
            return matrix.view(groups, -1, w.shape[1]).sum(1).flatten(), scaled.sum(1)
        return matrix.sum(1), scaled.view(groups, -1, w.shape[1]).sum(1).flatten()

    transparent = flow.depthwise == "transparent" and groups == w.shape[0] and w.shape[1] == 1
    before = of_inputs(flow.fed[place] if place in flow.fed else x.along(1))
    site, w = flow.site(
        place, w, torch.ones_like(before) if transparent else before, tuple(stride), transposed
    )
    near, far = places(lag, dilation), places(scale_lag(lag, stride), dilation)
    at_input, at_output = (far, near) if transposed else (near, far)
    produced, reads = energies(w, at_output, site)
    if transparent:  # the derivative with respect to it includes the norm before
        return Wave(x.value * flow.leaf(produced, shape, site, of_outputs).view(1, -1, *spread), shape)
    if at_input != at_output:
        reads = energies(w, at_input)[1]
    flow.sink(x, reads.view(1, -1, *spread), site, lambda w: energies(w, at_input)[1].view(1, -1, *spread))
    return Wave(flow.leaf(produced, shape, site, of_outputs).view(1, -1, *spread), shape)


def matrix(flow: Any, place: int, op: Op, x: Wave, w: Tensor, first: bool) -> Wave:
    """w times x if `first`, otherwise x times w; w is (..., I, O), but (O, I) for linear."""
    shape = shapes_of(op)[0]
    stands = first or op.is_a(operators.LINEAR)
    w = w.unsqueeze(0) if w.dim() == 1 else w if stands else w.transpose(-1, -2)  # (..., O, I)
    dim = -2 if first and len(x.shape) > 1 else -1  # the dimension of x over which the product sums
    if w.dim() > 2 and not any(w.stride()[:-2]):  # the same matrix for all of a batch
        w = w[(0,) * (w.dim() - 2)]
    if place in flow.fed:
        before = flow.fed[place]
    elif w.dim() > 2:
        before = x.value.transpose(-1, dim).mean(-2).expand(*w.shape[:-2], w.shape[-1])
    else:
        before = x.along(dim)
    site, w = flow.site(place, w, before.unsqueeze(-2))
    rows = flow.trailing.get(place)
    produced, read = sums(w, flow.squared(w, site), rows)

    def along(read: Tensor) -> Tensor:
        spread = read.unsqueeze(-2 if dim == -1 else -1) if len(x.shape) > 1 else read
        return spread.view((1,) * (len(x.shape) - spread.dim()) + tuple(spread.shape)) * flow.white

    flow.sink(x, along(read), site, lambda w: along(sums(w, flow.squared(w), rows)[1]))
    wave = flow.leaf(produced * flow.white, shape, site, lambda behind: behind.unsqueeze(-1))
    if w.dim() > 2:  # a batch of matrices
        return Wave(wave.unsqueeze(-2 if dim == -1 else -1), shape)
    if not shape or shape[dim] != len(produced):  # a single output without a dimension
        return Wave(wave.sum().view([1] * len(shape)), shape)
    return Wave(wave.view([-1 if d == dim % len(shape) else 1 for d in range(len(shape))]), shape)


def matmul(op: Op, a: Wave, b: Wave) -> Wave:
    """Both depend on the input, as in attention, so squares multiply as the values do."""
    return Wave(_product(a.value, b.value, a.shape[-1]), shapes_of(op)[0])


def attention(flow: Any, op: Op, q: Wave, k: Wave, v: Wave) -> Wave:
    """q (N, H, T, D), k (N, H', S, D), v (N, H', S, E); scores are read fully, values averaged evenly."""
    k, v = _heads(k, q.shape[1]), _heads(v, q.shape[1])
    scores = _product(q.value, k.value.transpose(-1, -2), q.shape[-1])
    flow.read(Wave(scores, (*q.shape[:3], k.shape[2])))
    return Wave(v.value.mean(2, keepdim=True) / v.shape[2], shapes_of(op)[0])


def embedding(flow: Any, place: int, op: Op, table: Tensor) -> Wave:
    """Data pick the rows, each with the same probability."""
    shape = shapes_of(op)[0]
    site, table = flow.site(place, table, widen(table.new_ones(())) / len(table))
    produced = sums(table, flow.squared(table, site))[1] / len(table) * flow.white
    wave = flow.leaf(produced, shape, site, lambda behind: behind.unsqueeze(0))
    return Wave(wave.view(*(1,) * (len(shape) - 1), -1), shape)


def _product(a: Tensor, b: Tensor, summed: int) -> Tensor:
    """a @ b summed over `summed` elements, for all of which a dimension of size 1 stands."""
    held = max(a.shape[-1], b.shape[-2])
    a, b = a.expand(*a.shape[:-1], held), b.expand(*b.shape[:-2], held, b.shape[-1])
    return torch.matmul(a, b) * (summed / held)


def _heads(wave: Wave, heads: int) -> Wave:
    """Repeat heads that serve several queries."""
    times = heads // wave.shape[1]
    value = wave.value.repeat_interleave(times, 1) if times > 1 and wave.value.shape[1] > 1 else wave.value
    return Wave(value, (wave.shape[0], heads, *wave.shape[2:]))


def fit(weights: Tensor, x: Wave) -> Tensor:
    """Reduce weights of the elements of x to the shape of its value: summed where that is constant."""
    value = tuple(x.value.shape)
    summed = [d for d, n in enumerate(value) if n == 1 and weights.shape[d] > 1]
    weights = weights.sum(summed, keepdim=True) if summed else weights
    times = math.prod(n for d, n in enumerate(x.shape) if value[d] == 1 and d not in summed)
    return (weights * times).expand(value)


def scale_lag(lag: Lag, stride: Sequence[int]) -> Lag:
    """The distance on the strided side of a convolution that corresponds to `lag` on the other."""
    return tuple(n * s for n, s in zip(lag, stride, strict=True))


def places(distances: Sequence[int], dilation: Sequence[int]) -> Lag | None:
    """A distance between pixels, in places of the kernel; None if no two places have it."""
    if any(n % d for n, d in zip(distances, dilation, strict=True)):
        return None
    return tuple(n // d for n, d in zip(distances, dilation, strict=True))


def overlap(w: Tensor, lag: Lag | None) -> Tensor:
    """The sum over the kernel of w(u) w(u + lag): float32 (dimension 0, dimension 1)."""
    if lag is None or any(abs(n) >= size for n, size in zip(lag, w.shape[2:], strict=True)):
        return widen(w.new_zeros(w.shape[:2]))
    w = widen(w)
    if not any(lag):
        return w.square().flatten(2).sum(2)
    one, other = w, w
    for dim, n in enumerate(lag, 2):
        length = w.shape[dim] - abs(n)
        one, other = one.narrow(dim, max(0, -n), length), other.narrow(dim, max(0, n), length)
    return (one * other).flatten(2).sum(2)


def sums(w: Tensor, out: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sums (..., O) and (..., I) of squares along rows and columns of w (..., O, I), in one pass.

    out: memory of w's shape for the squares. rows: factors (O,) of the squares, for the second sum.
    """
    if w.dim() > 2:
        square(w, out)
        return out.sum(-1), (out if rows is None else out * rows[:, None]).sum(-2)
    if w.stride(0) == 1 and w.stride(1) > 1 and rows is None:
        read, produced = sums(w.t(), out.t())
        return produced, read
    produced, read = out.new_empty(out.shape[0]), out.new_zeros(out.shape[1])
    ones = out.new_ones(out.shape[0]) if rows is None else rows.to(out.dtype)
    for start in range(0, w.shape[0], step := max(1, ROWS // max(1, w.shape[1]))):
        block = slice(start, start + step)
        torch.sum(square(w[block], out[block]), 1, out=produced[block])
        read.addmv_(out[block].t(), ones[block])
    return produced, read


def square(w: Tensor, out: Tensor) -> Tensor:
    """Write w^2 to `out`, whose precision may be wider."""
    if w.dtype == out.dtype:
        return torch.mul(w, w, out=out)
    return out.copy_(w).mul_(out)


def is_dense(w: Tensor) -> bool:
    """Whether `as_matrix` is a view of a convolution's weight."""
    return w.is_contiguous() or by_channel_last(w)


def by_channel_last(w: Tensor) -> bool:
    """Whether a convolution's weight is in the channels-last layout."""
    return w.dim() == 4 and not w.is_contiguous() and w.is_contiguous(memory_format=torch.channels_last)


def as_matrix(w: Tensor, last: bool) -> Tensor:
    """A weight as (dimension 0, all others) in the order of memory; last: the result of `by_channel_last`."""
    return (w.permute(0, 2, 3, 1) if last and w.dim() == 4 else w).flatten(1)


def lags(graph: Graph) -> list[Lag]:
    """Lag zero, and one of each pair of opposite distances at which two places of a kernel overlap."""
    reach = [0, 0]
    for op in graph.ops:
        if op.is_a(operators.CONVOLUTION) and any(op.results):
            (_, weight), dilation = op.operands(), op.argument("dilation")
            kernel = list(weight.shape[2:])[-2:]
            dilation = list(dilation) * (len(kernel) // len(dilation))
            for i, (k, d) in enumerate(zip(kernel, dilation, strict=True), 2 - len(kernel)):
                reach[i] = max(reach[i], d * (k - 1))
    every = itertools.product(*(range(-n, n + 1) for n in reach))
    return [lag for lag in every if lag >= (0, 0)]
