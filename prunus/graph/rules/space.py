"""Rules for operators on spatial dimensions: pooling, padding, resizing, shuffles."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from prunus.graph import axes
from prunus.graph.axes import Axis, Layout
from prunus.graph.op import Op
from prunus.graph.operators import PADDING, SPATIAL
from prunus.graph.rules.registry import Rule, rule


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


@rule(PADDING)
def constant_pad(op: Op, x: torch.Tensor, pad: list[int], value: float = 0) -> list[Layout]:
    """Padding a dimension that shrinks adds axes of its own (the zero-padded shortcuts of ResNet)."""
    dims = list(op.dims(x))
    for k in range(len(pad) // 2):
        d = x.dim() - 1 - k
        before, after = pad[2 * k], pad[2 * k + 1]
        if before == after == 0:
            continue
        if not any(axes.leaves(dims[d])) or before < 0 or after < 0:
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


@rule("im2col")
def im2col(op: Op, x: torch.Tensor, kernel: list[int], *args: Any) -> list[Layout]:
    dims = op.dims(x)
    op.fix(*dims[-2:])
    return [*dims[:-3], axes.nest(dims[-3], prod(kernel)), op.out.shape[-1]]
