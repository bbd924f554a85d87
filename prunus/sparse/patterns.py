"""Patterns of zeros that hardware can use: N of every M, and blocks.

A weight is viewed as the matrix of its product: a row for each output, a column for each input. For a
convolution (O, I, kh, kw) that is (O, kh * kw * I), inputs innermost, as kernels for channels-last data read
it; so neither a group of M nor the columns of a block mix two places of the kernel. In a grouped convolution
a row holds the inputs of one group.

    "2:4"     of every 4 neighbours in a row at most 2 stay: for sparse tensor cores, of NVIDIA since Ampere
    "4x1"     4 rows by 1 column stay or go together: for block-sparse kernels

All weights in a group of N:M share their output, so the layer after cancels out: there lookahead ranks by |w|
times the norm of the weights that feed the input, which is Wanda without data. That is ours, as is the sum
over a block.
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

CHUNK = 1 << 16  # weights processed at once: they fit a core's own cache
MOST = 128  # the largest M, because ranks in a group are counted in bytes


@dataclass(frozen=True)
class NofM:
    """A pattern in which of every m neighbours along the inputs n stay."""

    n: int
    m: int

    @property
    def share(self) -> float:
        """The share of zeros, 0 to 1."""
        return 1 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Blocks:
    """A pattern of rectangles of outputs (rows) by inputs (columns) that stay or go whole."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


Pattern = NofM | Blocks


def parse(text: str | Pattern) -> Pattern:
    """Parse a pattern such as "2:4" or "4x4". Raises UserError for other texts."""
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
    """The share of zeros (0 to 1) to which a pattern leads by itself; None for blocks and for no pattern."""
    pattern = None if pattern is None else parse(pattern)
    return pattern.share if isinstance(pattern, NofM) else None


def contracted(graph: Graph) -> dict[str, int]:
    """Find the dimension along which the inputs of each weight lie, over which its product sums.

    Args:
        graph: The graph of the model.

    Returns:
        The dimension for every parameter of two dimensions or more: usually 1, but 0 for transposed
        convolutions.
        An embedding that is also the last layer's weight counts as that.
    """
    found: dict[str, int] = {}
    for name in graph.parameters:
        dims = [dim for dim in range(len(graph.shapes[name])) if graph.role(name, dim) == op.CONSUMES]
        if len(graph.shapes[name]) > 1:
            found[name] = dims[0] if dims else 1
    return found


def unfit(
    shapes: Mapping[str, torch.Size], pattern: str | Pattern, dims: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Find the weights that a pattern does not fit.

    Args:
        shapes: The shape of each weight, by parameter name.
        pattern: The pattern, such as "2:4" or "4x4".
        dims: The dimension of each weight's inputs, see `contracted`; 1 for weights that it does not name.

    Returns:
        The reason in words, for each weight that the pattern does not fit.

    Raises:
        UserError: The text is no pattern.
    """
    pattern = parse(pattern)
    refused: dict[str, str] = {}
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
    """A view of a tensor as (outputs, ..., inputs), its inputs being dimension `dim`."""
    return tensor.movedim(dim, -1)


def n_of_m(scores: Tensor, pattern: NofM, dim: int = 1, within: Tensor | None = None) -> Tensor:
    """The mask (bool, of the scores' shape) of the best n of every m; of equal scores the first stay.

    within: a mask so far; weights that it prunes stay pruned, so that a group may keep fewer. The scores must
    be finite.
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
    """The rank of each value in its group: the number of larger ones, and of equal ones before it.

    It starts as the number of values before it; each pair whose later value is larger moves one up and one
    down.
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
    """The place of each weight in its group, and by distance whether a later weight is in it too."""
    place = (np.arange(length) // stride % m).astype(np.uint8)
    return place, [(place < m - distance).view(np.uint8) for distance in range(1, m)]


def block_scores(scores: Tensor, blocks: Blocks, dim: int = 1) -> Tensor:
    """The sum over each block: float32, each dimension of `scores` divided by the side of a block."""
    lying = matrix(scores.detach(), dim).float()
    if blocks.rows > 1:  # first, because rows lie far apart, which is fast to add
        lying = lying.unflatten(0, (-1, blocks.rows)).sum(1)
    return lying.unflatten(-1, (-1, blocks.columns)).sum(-1).movedim(-1, dim)


def block_mask(chosen: Tensor, blocks: Blocks, dim: int = 1) -> Tensor:
    """The mask of weights from a mask of blocks."""
    lying = matrix(chosen, dim)
    whole = lying.repeat_interleave(blocks.rows, 0).repeat_interleave(blocks.columns, -1)
    return whole.movedim(-1, dim).contiguous()
