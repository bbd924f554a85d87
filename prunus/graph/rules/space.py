"""Rules for operators on spatial dimensions: pooling, padding, resizing, shuffles."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from prunus.graph import axes
from prunus.graph.axes import Axis, Layout
from prunus.graph.op import Op
from prunus.graph.operators import PADDING, SPATIAL
from prunus.graph.rules.registry import Rule, along, rule


def _spatial(count: int) -> Rule:
    def carry(op: Op, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        dims = op.dims(x)
        op.fix(*dims[-count:])
        out = op.out[0] if isinstance(op.out, tuple) else op.out
        result = [*dims[:-count], *out.shape[-count:]]
        return (result, result) if isinstance(op.out, tuple) else result

    return carry


for _count in (1, 2, 3):
    rule(" ".join(name for name in SPATIAL.names if f"{_count}d" in name))(_spatial(_count))


@rule("max_unpool2d max_unpool3d")
def max_unpool(op: Op, x: torch.Tensor, where: torch.Tensor, size: list[int], *args: Any) -> Any:
    """The numbers of x put at the places in space from which pooling took them, zeros elsewhere."""
    for a, b in zip(op.dims(x), op.dims(where), strict=True):
        op.unify(a, b)
    return along(op, x, range(-len(size), 0))


@rule("grid_sampler_2d grid_sampler_3d")
def grid_sampler(op: Op, x: torch.Tensor, grid: torch.Tensor, *args: Any) -> list[Layout]:
    """x (N, C, *space) read at the places `grid` (N, *space, 2 or 3)."""
    batch, channels, *space = op.dims(x)
    op.unify(batch, op.dims(grid)[0])
    op.fix(*space, *op.dims(grid)[1:])
    return [batch, channels, *op.out.shape[2:]]


@rule(PADDING)
def constant_pad(op: Op, x: torch.Tensor, pad: list[int], value: float = 0) -> list[Layout]:
    """Padding adds axes of its own (the zero-padded shortcuts of ResNet), also beside a dimension that stays.

    Such a dimension may have been free when the model was traced; a proof has to come to the same axes.
    """
    dims = list(op.dims(x))
    for k in range(len(pad) // 2):
        d = x.dim() - 1 - k
        before, after = pad[2 * k], pad[2 * k + 1]
        if before == after == 0:
            continue
        if before < 0 or after < 0:
            op.fix(dims[d])
            dims[d] = op.out.shape[d]
        else:
            front, back = Axis(before), Axis(after)
            op.follow(front, "pad", 2 * k)
            op.follow(back, "pad", 2 * k + 1)
            dims[d] = axes.Sum((front, dims[d], back))
    return dims


@rule("pixel_shuffle")
def pixel_shuffle(op: Op, x: torch.Tensor, upscale: int) -> list[Layout]:
    *batch, channels, _, _ = op.dims(x)
    outer, inner = axes.factor(channels, upscale * upscale, op)
    op.fix(inner)
    return [*batch, outer, *op.out.shape[-2:]]


@rule("pixel_unshuffle")
def pixel_unshuffle(op: Op, x: torch.Tensor, downscale: int) -> list[Layout]:
    *batch, channels, _, _ = op.dims(x)
    return [*batch, axes.nest(channels, downscale * downscale), *op.out.shape[-2:]]


@rule("channel_shuffle native_channel_shuffle")
def channel_shuffle(op: Op, x: torch.Tensor, groups: int) -> list[Layout]:
    dims = list(op.dims(x))
    outer, inner = axes.factor(dims[1], x.shape[1] // groups, op)
    op.follow(outer, "groups")
    dims[1] = axes.nest(inner, outer)
    return dims


@rule("col2im")
def col2im(op: Op, x: torch.Tensor, size: list[int], kernel: list[int], *args: Any) -> list[Layout]:
    *batch, columns, places = op.dims(x)
    channels, inner = axes.factor(columns, prod(kernel), op)
    op.fix(inner, places)
    return [*batch, channels, *op.out.shape[-2:]]


@rule("_fft_r2c _fft_c2c _fft_c2r")
def fourier(op: Op, x: torch.Tensor, over: list[int], *args: Any) -> Any:
    return along(op, x, over)


@rule("im2col")
def im2col(op: Op, x: torch.Tensor, kernel: list[int], *args: Any) -> list[Layout]:
    dims = op.dims(x)
    op.fix(*dims[-2:])
    return [*dims[:-3], axes.nest(dims[-3], prod(kernel)), op.out.shape[-1]]
