"""Patterns of zeros that hardware can use: N of every M, and blocks.

A weight is looked at as the matrix it is multiplied as: a row for each output, a column for each input. Of a
convolution (O, I, kh, kw) that is (O, kh * kw * I), inputs innermost, as kernels for channels-last data read it; so
neither the M of a group nor the columns of a block ever mix two places of the kernel. Grouped convolutions have the
inputs of one group in a row.

    "2:4"     of every 4 neighbours in a row at most 2 stay: what sparse tensor cores multiply, NVIDIA since Ampere
    "4x1"     4 rows by 1 column stay or go together: what block-sparse kernels skip

Inside a group of N:M all weights have the output in common, so what stands behind the layer cancels: lookahead picks
there by |w| * norm of what feeds the input, Wanda without data. That is ours, as is the sum over a block.
"""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunus.errors import UserError
from prunus.graph import Graph, op

CHUNK = 1 << 16  # weights looked at together: they fit a core's own cache
MOST = 128  # of M: ranks in a group are counted in bytes


@dataclass(frozen=True)
class NofM:
    """Of every m neighbours along the inputs, n stay."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Blocks:
    """Rectangles that stay or go whole."""

    rows: int  # outputs
    columns: int  # inputs

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


Pattern = NofM | Blocks


def parse(text: str | Pattern) -> Pattern:
    """The pattern written as "2:4" or "4x4". Raises UserError for what is neither."""
    if isinstance(text, Pattern):
        return text
    found = re.fullmatch(r"(\d+)([:x])(\d+)", text)
    first, kind, second = (int(found[1]), found[2], int(found[3])) if found else (0, "", 0)
    if kind == ":" and 0 < first < second <= MOST:
        return NofM(first, second)
    if kind == "x" and first and second and first * second > 1:
        return Blocks(first, second)
    raise UserError(
        f"pattern {text!r}: expected N:M such as 2:4 or 4:8 (N of every M inputs stay, N below M, M at most {MOST}), "
        "or blocks of outputs x inputs such as 1x4, 16x1 or 4x4."
    )


def share(pattern: str | Pattern | None) -> float | None:
    """The share of zeros that a pattern by itself leads to; None for blocks and for no pattern."""
    pattern = None if pattern is None else parse(pattern)
    return 1 - pattern.n / pattern.m if isinstance(pattern, NofM) else None


def contracted(graph: Graph) -> dict[str, int]:
    """The dimension along which each parameter's inputs lie: 1 as a rule, 0 for transposed convolutions, say.

    An embedding that is also the last layer's weight counts as that.
    """
    found = {}
    for name in graph.parameters:
        dims = [dim for dim in range(len(graph.shapes[name])) if graph.role(name, dim) == op.CONSUMES]
        if len(graph.shapes[name]) > 1:
            found[name] = dims[0] if dims else 1
    return found


def unfit(
    shapes: Mapping[str, torch.Size], pattern: str | Pattern, dims: Mapping[str, int] | None = None
) -> dict[str, str]:
    """The weights that a pattern does not fit, and why. dims: see `contracted`; 1 where none is given."""
    pattern, refused = parse(pattern), {}
    down, across = (1, pattern.m) if isinstance(pattern, NofM) else (pattern.rows, pattern.columns)
    for name, shape in shapes.items():
        dim = (dims or {}).get(name, 1)
        inputs, outputs = shape[dim], shape[0 if dim else 1]
        if inputs % across:
            refused[name] = f"has {inputs} inputs to each output, not a multiple of {across}"
        elif outputs % down:
            refused[name] = f"has {outputs} outputs, not a multiple of {down}"
    return refused


def matrix(tensor: Tensor, dim: int = 1) -> Tensor:
    """`tensor` as (outputs, ..., inputs), its inputs being dimension `dim`. A view."""
    return tensor.movedim(dim, -1)


def n_of_m(scores: Tensor, pattern: NofM, dim: int = 1, within: Tensor | None = None) -> Tensor:
    """The mask of the best n of every m; equal scores stay by rising place. bool, shaped as `scores`.

    within: what it prunes stays pruned, so that a group may have fewer. The scores are taken to be numbers.
    """
    scores = (
        scores.detach().cpu() if within is None else scores.masked_fill(~within.to(scores.device), -1).cpu()
    )
    flat = scores.reshape(-1)
    stride = math.prod(scores.shape[dim + 1 :])  # from an input to the next
    chunk = max(1, CHUNK // (pattern.m * stride)) * pattern.m * stride
    place, near = _places(min(chunk, len(flat)), pattern.m, stride)
    mask = np.empty(len(flat), dtype=bool)
    for start in range(0, len(flat), chunk):
        values = flat[start : start + chunk].float().numpy()
        np.less(_rank(values, place, near, stride), pattern.n, out=mask[start : start + chunk])
    found = torch.from_numpy(mask).view(scores.shape)
    return found if within is None else found.to(within.device) & within


def _rank(values: np.ndarray, place: np.ndarray, near: list[np.ndarray], stride: int) -> np.ndarray:
    """How many of its group come before each value: those that are larger, and equal ones in front of it.

    Starting from all in front of it: each pair of which the later is larger moves one up and one down.
    """
    rank = place[: len(values)].copy()
    for distance, together in enumerate(near, 1):
        gap = distance * stride
        lost = np.less(values[:-gap], values[gap:]).view(np.uint8)
        lost &= together[: len(lost)]
        rank[:-gap] += lost
        rank[gap:] -= lost
    return rank


@functools.lru_cache(maxsize=16)
def _places(length: int, m: int, stride: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The place in its group of each of so many weights, and for each distance whether one so far behind is in it."""
    place = (np.arange(length) // stride % m).astype(np.uint8)
    return place, [(place < m - distance).view(np.uint8) for distance in range(1, m)]


def block_scores(scores: Tensor, blocks: Blocks, dim: int = 1) -> Tensor:
    """The sum over each block: float32, with as many dimensions as `scores`, shorter by the sides of a block."""
    lying = matrix(scores.detach(), dim).float()
    if blocks.rows > 1:  # first, for they lie far apart, which is fast to add
        lying = lying.unflatten(0, (-1, blocks.rows)).sum(1)
    return lying.unflatten(-1, (-1, blocks.columns)).sum(-1).movedim(-1, dim)


def block_mask(chosen: Tensor, blocks: Blocks, dim: int = 1) -> Tensor:
    """The mask of weights from a mask of blocks."""
    lying = matrix(chosen, dim)
    whole = lying.repeat_interleave(blocks.rows, 0).repeat_interleave(blocks.columns, -1)
    return whole.movedim(-1, dim).contiguous()
