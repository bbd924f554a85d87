"""The order of units under which N:M pruning loses least.

The inputs of a layer have no order of their own: units may change places if all that makes and reads them follows,
and the network computes the same. Which inputs fall into one group of M is thus ours to choose, and large scores that
stand together are better spread (Pool and Yu, Channel permutations for N:M sparsity, NeurIPS 2021). An axis names all
tensors that must follow, so residual streams and concatenations are permuted like any other.

The search, ours: in every round all swaps of two units of an axis are valued at once, and the best that touch
different groups are made, until none gains or `rounds` are over. A group that gives up unit j for x keeps
T_j + max(b_j, x) of a row, T_j being the n - 1 largest of its other scores and b_j the next: over all pairs and rows
that is a matrix of L1 distances. No step loses, the same input gives the same order, and the result is proved: the
permuted model and the original are run side by side.

Shapes: R rows (outputs, and places of a kernel, of all weights that read the axis), U units, C units compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunus.errors import PruningError, UserError
from prunus.graph import Graph, make_skeleton, skeleton, tracer
from prunus.sparse.patterns import NofM, Pattern, contracted, matrix, parse, unfit
from prunus.surgery import TOLERANCES, checked_tensors, clone, sliced

ROWS = 256  # looked at in the search; what is gained is counted over all
UNITS = 1024  # compared with each other in a round
LEAST_GAIN = 1e-6  # of what the groups keep: less may be rounding


@dataclass(frozen=True)
class Permuted:
    """A model that computes the same, its units in another order.

    order: axis -> the old index of the unit in each place, for the axes that changed; as a keep it cuts any tensor
    that goes with the model (weights.sliced). before, after: the share of all scores that N:M keeps.
    skipped: axes that could not be permuted, and why.
    """

    model: nn.Module
    order: dict[str, list[int]]
    before: float
    after: float
    skipped: dict[str, str]

    @property
    def gain(self) -> float:
        """How much more of the scores is kept, as a share of all."""
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
    """A copy of `model` with the units of every axis in the order that keeps most of `scores` under N:M.

    scores: by weight, see scores.py; weights that the pattern does not fit do not count. The masks are then chosen
    for the new model. rounds: at most so many for each axis. Raises UserError for blocks, and if no layer fits.
    """
    pattern = parse(pattern)
    if not isinstance(pattern, NofM):
        raise UserError(
            f"pattern {pattern}: a permutation is searched for N:M, such as 2:4; blocks have none."
        )
    tensors, dims = checked_tensors(model, graph), contracted(graph)
    refused = unfit({name: score.shape for name, score in scores.items()}, pattern, dims)
    rows = {
        n: matrix(s.detach().float().cpu(), dims[n]).flatten(0, -2)
        for n, s in scores.items()
        if n not in refused
    }
    if not rows:
        raise UserError(f"pattern {pattern} fits no layer; there is nothing to permute for.")
    found, skipped = {}, {}
    for name in graph.axes:
        columns, why = _columns(graph, name, rows, dims, pattern.m)
        if why:
            skipped[name] = why
        elif columns is not None:
            order = _searched(columns, pattern, rounds, seed)
            if _kept(columns[:, order], pattern) > _kept(columns, pattern):
                found[name] = order.tolist()
    found, wrong = _proved(model, graph, tensors, found)
    total = sum(float(score.sum(dtype=torch.float64)) for score in rows.values()) or 1.0
    before = sum(_kept(score, pattern) for score in rows.values())
    after = sum(
        _kept(sliced(s, [s.shape[0], graph.layouts[n][dims[n]]], _indices(found)), pattern)
        for n, s in rows.items()
    )
    small = clone(model, _reordered(graph, tensors, found))
    return Permuted(small, found, before / total, after / total, skipped | wrong)


def _columns(
    graph: Graph, axis: str, rows: Mapping[str, Tensor], dims: Mapping[str, int], m: int
) -> tuple[Tensor | None, str]:
    """The scores (R, U) of all weights that read an axis, and why it cannot be permuted, if so."""
    found, units = [], graph.axes[axis].size
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
            continue  # each group lies within a unit: their order does not matter
        runs = index - index[:1] == torch.arange(units)[:, None]
        if units % m or not runs.all() or (index[0] % m).any():
            return None, f"groups of {m} inputs of {member.tensor} are not made of its units alone"
        found += [score[:, start : start + units] for start in index[0].tolist()]
    return (torch.cat(found) if found and units > m else None), ""


def _kept(columns: Tensor, pattern: NofM) -> float:
    """What N:M keeps of scores (R, U)."""
    best = columns.reshape(-1, pattern.m).topk(pattern.n, dim=1, sorted=False).values
    return float(best.sum(dtype=torch.float64))


def _searched(columns: Tensor, pattern: NofM, rounds: int, seed: int) -> Tensor:
    """The order (U,) found for scores (R, U)."""
    generator = torch.Generator().manual_seed(seed)
    if len(columns) > ROWS:
        columns = columns[torch.randperm(len(columns), generator=generator)[:ROWS].sort().values]
    groups = torch.arange(columns.shape[1]).view(-1, pattern.m)
    together = max(2, UNITS // pattern.m)
    for _ in range(rounds):
        swapped = 0
        for chosen in torch.randperm(len(groups), generator=generator).split(together):
            if len(chosen) > 1:
                new, swaps = _swapped(columns, groups[chosen], pattern.n)
                groups[chosen], swapped = new, swapped + swaps
        if not swapped:
            break
    return groups.flatten()


def _swapped(columns: Tensor, groups: Tensor, n: int) -> tuple[Tensor, int]:
    """Groups (C / m, m) of units after the best swaps between different groups, and how many those were."""
    count, m = groups.shape
    score_RC = columns[:, groups.flatten()]
    score = score_RC.view(-1, count, m)
    best = score.topk(n + 1, dim=2).values
    top, nth, next_ = best[..., :n].sum(2, keepdim=True), best[..., n - 1 : n], best[..., n:]
    is_in = score >= nth
    others = (top - torch.where(is_in, score, nth)).flatten(1)  # T: the n - 1 largest without this unit
    bar_RC = torch.where(is_in, next_, nth).flatten(1)  # b: the one after them
    largest = (torch.cdist(bar_RC.T, score_RC.T, p=1) + bar_RC.sum(0)[:, None] + score_RC.sum(0)) / 2
    kept = top.sum(0).repeat_interleave(m, 0)  # (C, 1), of the group each unit is in
    change = others.sum(0)[:, None] + largest - kept  # of its group, if row's unit leaves for column's
    gain = change + change.T
    group = torch.arange(count).repeat_interleave(m)
    gain.masked_fill_(group[:, None] >= group, 0)
    values, places = gain.flatten().topk(min(4 * count * m, gain.numel()))
    new, touched, swaps = groups.flatten().clone(), set(), 0
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
def _indices(order: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {name: torch.tensor(indices) for name, indices in order.items()}


def _reordered(
    graph: Graph, tensors: Mapping[str, Tensor], order: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    keep = _indices(order)
    return {name: sliced(tensor, graph.layouts[name], keep) for name, tensor in tensors.items()}


def _proved(
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
            f"permuting {', '.join(right)} together changes what the model computes; nothing was changed."
        )
    return right, dict.fromkeys(order.keys() - right.keys(), "another order changes what the model computes")


def _same(
    model: nn.Module, graph: Graph, tensors: Mapping[str, Tensor], order: Mapping[str, Sequence[int]]
) -> bool:
    """Whether the outputs agree on a random input, in the highest precision that the model runs in."""
    if not order:
        return True
    plain = make_skeleton(model, real=True)
    for dtype, tolerance in TOLERANCES.items():
        try:
            exact = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
            expected = _outputs(clone(plain, exact), graph, dtype)
            got = _outputs(clone(plain, _reordered(graph, exact, order)), graph, dtype)
        except Exception:  # no such precision on this device, or a dtype written into the forward
            continue
        return all(
            torch.allclose(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()), equal_nan=True)
            for ours, theirs in zip(got, expected, strict=True)
            if theirs.numel()
        )
    return False


def _outputs(model: nn.Module, graph: Graph, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device

    def drawn(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            tensor = torch.randn(tensor.shape, generator=generator, dtype=dtype)
        return tensor.to(device)

    with skeleton.quiet_forward():
        output = skeleton.call(model.eval(), tree_map_only(Tensor, drawn, graph.example))
    return tracer.output_tensors(output)
