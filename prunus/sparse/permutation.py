"""The order of units under which N:M pruning loses least.

The inputs of a layer have no order of their own: if units change places in all tensors that make and read
them, the network computes the same. So the inputs that share a group of M may be chosen, and large scores
that are neighbours are better spread (Pool and Yu, Channel permutations for N:M sparsity, NeurIPS 2021). An
axis names all tensors that must follow, so residual streams and concatenations are permuted like any other.

The search is ours. In every round the gains of all swaps of two units of an axis are computed at once, and
the best that touch different groups are made, until none gains or all rounds are over. A group that exchanges
unit j for x keeps T_j + max(b_j, x) of a row, T_j being the n - 1 largest of its other scores and b_j the
next; over all pairs and rows that is a matrix of L1 distances. No step loses, the same input gives the same
order, and the result is proved: the outputs of the permuted model and the original are compared.

Shapes: R rows (outputs, and places of a kernel, of all weights that read the axis), U units, C units
compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunus.errors import PruningError, UserError
from prunus.graph import Graph, make_skeleton, output_tensors, skeleton
from prunus.inputs import call
from prunus.sparse.patterns import NofM, Pattern, contracted, matrix, parse, unfit
from prunus.surgery import TOLERANCES, checked_tensors, clone, slice_tensor

ROWS = 256  # used by the search; the final gain is computed over all
UNITS = 1024  # compared with each other in a round
LEAST_GAIN = 1e-6  # as a share of the scores that groups keep: less may be rounding


@dataclass(frozen=True)
class Permuted:
    """A model that computes the same with its units in another order."""

    model: nn.Module
    order: dict[
        str, list[int]
    ]  # the old indices in their new order, for axes that changed; a keep for `sliced`
    before: float  # the share (0 to 1) of all scores that N:M keeps in the old order
    after: float  # the same in the new order
    skipped: dict[str, str]  # the axes that could not be permuted, and the reason

    @property
    def gain(self) -> float:
        """The gain in the share of all scores that is kept."""
        return self.after - self.before


@torch.no_grad()
def permuted(
    model: nn.Module,
    graph: Graph,
    scores: Mapping[str, Tensor],
    pattern: str | Pattern = "2:4",
    *,
    rounds: int = 8,
    seed: int = 0,
) -> Permuted:
    """Copy a model with the units of every axis in the order that keeps most under N:M. Source: ours.

    Args:
        model: The model, which is left untouched.
        graph: Its graph.
        scores: The scores of its weights by parameter name, see scores.py; weights that the pattern does not
            fit do not count.
        pattern: An N:M pattern.
        rounds: The most rounds for each axis.
        seed: The seed of the search.

    Returns:
        The permuted copy, for which the masks are then chosen, with its order and gain.

    Raises:
        UserError: The pattern is one of blocks, or fits no layer.
        PruningError: A new order changes the outputs of the model.
    """
    pattern = parse(pattern)
    if not isinstance(pattern, NofM):
        raise UserError(f"pattern {pattern}: expected N:M such as 2:4, to permute for; blocks have none.")
    tensors, dims = checked_tensors(model, graph), contracted(graph)
    refused = unfit({name: score.shape for name, score in scores.items()}, pattern, dims)
    rows = {
        n: matrix(s.detach().float().cpu(), dims[n]).flatten(0, -2)
        for n, s in scores.items()
        if n not in refused
    }
    if not rows:
        raise UserError(
            f"pattern {pattern} fits no layer, so no order is better; take another pattern, or none."
        )
    found: dict[str, list[int]] = {}
    skipped: dict[str, str] = {}
    for name in graph.axes:
        columns, why = _columns(graph, name, rows, dims, pattern.m)
        if why:
            skipped[name] = why
        elif columns is not None:
            order = _search(columns, pattern, rounds, seed)
            if _sum_kept(columns[:, order], pattern) > _sum_kept(columns, pattern):
                found[name] = order.tolist()
    found, wrong = _prove(model, graph, tensors, found)
    total = sum(float(score.sum(dtype=torch.float64)) for score in rows.values()) or 1.0
    before = sum(_sum_kept(score, pattern) for score in rows.values())
    after = sum(
        _sum_kept(slice_tensor(s, [s.shape[0], graph.layouts[n][dims[n]]], found), pattern)
        for n, s in rows.items()
    )
    small = clone(model, _reorder(graph, tensors, found))
    return Permuted(small, found, before / total, after / total, skipped | wrong)


def _columns(
    graph: Graph, axis: str, rows: Mapping[str, Tensor], dims: Mapping[str, int], m: int
) -> tuple[Tensor | None, str]:
    """The scores (R, U) of all weights that read an axis, and why it cannot be permuted, or ""."""
    found: list[Tensor] = []
    units = graph.axes[axis].size
    for member in graph.members(axis):
        if member.tensor not in rows or member.dim != dims[member.tensor]:
            continue
        index, score = member.index, rows[member.tensor]  # (U, k), (R, inputs)
        k = index.shape[1]
        inside = index.view(units, -1, m) if k % m == 0 else None
        if (
            inside is not None
            and (inside - inside[..., :1] == torch.arange(m)).all()
            and not (inside[..., 0] % m).any()
        ):
            continue  # each group lies within a unit, so the order of units has no effect
        runs = index - index[:1] == torch.arange(units)[:, None]
        if units % m or not runs.all() or (index[0] % m).any():
            return None, f"groups of {m} inputs of {member.tensor} hold more than its units"
        found += [score[:, start : start + units] for start in index[0].tolist()]
    return (torch.cat(found) if found and units > m else None), ""


def _sum_kept(columns: Tensor, pattern: NofM) -> float:
    """The sum of the scores (R, U) that N:M keeps."""
    best = columns.reshape(-1, pattern.m).topk(pattern.n, dim=1, sorted=False).values
    return float(best.sum(dtype=torch.float64))


def _search(columns: Tensor, pattern: NofM, rounds: int, seed: int) -> Tensor:
    """Search for the best order (U,) of scores (R, U)."""
    generator = torch.Generator().manual_seed(seed)
    if len(columns) > ROWS:
        columns = columns[torch.randperm(len(columns), generator=generator)[:ROWS].sort().values]
    groups = torch.arange(columns.shape[1]).view(-1, pattern.m)
    together = max(2, UNITS // pattern.m)
    for _ in range(rounds):
        swapped = 0
        for chosen in torch.randperm(len(groups), generator=generator).split(together):
            if len(chosen) > 1:
                new, swaps = _swap(columns, groups[chosen], pattern.n)
                groups[chosen], swapped = new, swapped + swaps
        if not swapped:
            break
    return groups.flatten()


def _swap(columns: Tensor, groups: Tensor, n: int) -> tuple[Tensor, int]:
    """Make the best swaps between groups (C / m, m) of units; returns the groups and the number of swaps."""
    count, m = groups.shape
    score_RC = columns[:, groups.flatten()]
    score = score_RC.view(-1, count, m)
    best = score.topk(n + 1, dim=2).values
    top, nth, next_ = best[..., :n].sum(2, keepdim=True), best[..., n - 1 : n], best[..., n:]
    is_in = score >= nth
    others = (top - torch.where(is_in, score, nth)).flatten(1)  # T: the n - 1 largest without this unit
    bar_RC = torch.where(is_in, next_, nth).flatten(1)  # b: the one after them
    largest = (torch.cdist(bar_RC.T, score_RC.T, p=1) + bar_RC.sum(0)[:, None] + score_RC.sum(0)) / 2
    kept = top.sum(0).repeat_interleave(m, 0)  # (C, 1), of the group of each unit
    change = (
        others.sum(0)[:, None] + largest - kept
    )  # of the group of the row's unit, if the column's takes its place
    gain = change + change.T
    group = torch.arange(count).repeat_interleave(m)
    gain.masked_fill_(group[:, None] >= group, 0)
    values, places = gain.flatten().topk(min(4 * count * m, gain.numel()))
    new, swaps = groups.flatten().clone(), 0
    touched: set[int] = set()
    least = LEAST_GAIN * float(kept.mean())
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        one, other = divmod(place, count * m)
        if value <= least:
            break
        if touched.isdisjoint((one // m, other // m)):
            touched |= {one // m, other // m}
            new[[one, other]] = new[[other, one]]
            swaps += 1
    return new.view(count, m), swaps


# ------------------------------------------------------------------------------------------- proof
def _reorder(
    graph: Graph, tensors: Mapping[str, Tensor], order: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    return {name: slice_tensor(tensor, graph.layouts[name], order) for name, tensor in tensors.items()}


def _prove(
    model: nn.Module, graph: Graph, tensors: Mapping[str, Tensor], order: dict[str, list[int]]
) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The orders under which the model computes the same, and the axes that must keep theirs, with the reason."""
    if _same(model, graph, tensors, order):
        return order, {}
    right = {
        name: indices for name, indices in order.items() if _same(model, graph, tensors, {name: indices})
    }
    if not _same(model, graph, tensors, right):
        raise PruningError(
            f"permuting {', '.join(right)} together should leave the outputs as they are, but changes "
            "them; the model was left untouched. Please report this model."
        )
    return right, dict.fromkeys(order.keys() - right.keys(), "another order changes the outputs of the model")


def _same(
    model: nn.Module, graph: Graph, tensors: Mapping[str, Tensor], order: Mapping[str, Sequence[int]]
) -> bool:
    """Whether the outputs agree on a random input, in the highest precision in which the model runs."""
    if not order:
        return True
    plain = make_skeleton(model, real=True)
    for dtype, tolerance in TOLERANCES.items():
        try:
            exact = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
            expected = _outputs(clone(plain, exact), graph, dtype)
            got = _outputs(clone(plain, _reorder(graph, exact, order)), graph, dtype)
        except Exception:  # no such precision on this device, or a dtype written into the forward
            continue
        return all(
            torch.allclose(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()), equal_nan=True)
            for ours, theirs in zip(got, expected, strict=True)
            if theirs.numel()
        )
    return False


def _outputs(model: nn.Module, graph: Graph, dtype: torch.dtype) -> list[Tensor]:
    """The outputs for random inputs of the example's shapes."""
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device

    def sample(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            tensor = torch.randn(tensor.shape, generator=generator, dtype=dtype)
        return tensor.to(device)

    with skeleton.quiet_forward():
        output = call(model.eval(), tree_map_only(Tensor, sample, graph.example))
    return output_tensors(output)
