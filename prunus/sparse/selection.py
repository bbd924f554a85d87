"""A sparsity and scores give masks: how many weights stay in each layer, and which.

Sparsity is the share of the weights up for pruning that are zero afterwards; what stays is exact to one weight.
How many stay in each layer, the allocation:

    uniform       the same share everywhere
    uniform_plus  the same, but a first convolution stays dense and the last linear layer keeps a fifth at least
                  (Gale et al., arXiv:1902.09574)
    erk           shares after (inputs + outputs + kernel) / weights (Evci et al., RigL, ICML 2020, arXiv:1911.11134)
    paper         layers go at the rates of the Lookahead paper (arXiv:2002.04809), see RATES
    pooled        one threshold for all scores as they are: global magnitude, and what SNIP, GraSP and SynFlow ask for
    global        the same, but each layer's scores are divided by their Frobenius norm (the Lookahead paper; for
                  magnitude it takes |w| there, where scores here are w^2)
    lamp          one threshold for LAMP: a score over the sum of those in its layer that are no smaller
                  (Lee et al., ICLR 2021, arXiv:2010.07611)

Masks are bool tensors by parameter name, True stays; a weight without a mask stays whole.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from prunus.errors import BudgetError, UserError, unknown
from prunus.graph import Graph
from prunus.selection import Sparsity, holders
from prunus.sparse import patterns
from prunus.sparse.allocation import Allocation, allocated
from prunus.sparse.ranking import checked, top
from prunus.sparse.scores import maskable


def eligible(graph: Graph, freeze: Sequence[str] = ()) -> list[str]:
    """The parameters that may be pruned weight by weight, without those that `freeze` names.

    freeze: shell patterns of parameters or of the modules around them (`layer1*`, `head`, `conv1.weight`).
    Raises UserError for a pattern that matches no parameter, and if nothing is left.
    """
    if isinstance(freeze, str):
        raise UserError(f"freeze: expected a list of patterns, got the text {freeze!r}.")
    frozen = set()
    for pattern in freeze:
        named = {n for n in graph.parameters if any(fnmatchcase(h, pattern) for h in holders(n))}
        if not named:
            raise unknown("freeze pattern", pattern, {h for n in graph.parameters for h in holders(n)})
        frozen |= named
    found = [name for name in maskable(graph) if name not in frozen]
    if not found:
        raise UserError(f"freeze={list(freeze)} leaves no weight to prune; freeze less.")
    return found


def choose(
    scores: Mapping[str, Tensor],
    sparsity: float | Sparsity,
    *,
    allocation: Allocation = "uniform",
    counts: Mapping[str, int] | None = None,
    pattern: str | None = None,
    dims: Mapping[str, int] | None = None,
    within: Mapping[str, Tensor] | None = None,
    min_keep: int = 1,
) -> dict[str, Tensor]:
    """Masks of the best-scored weights; equal scores stay by rising flat index.

    scores: of every weight up for pruning, not negative; how many stay in all is round((1 - sparsity) * their
    number). counts: how many stay in each layer, in place of an allocation. within: masks so far, what they prune
    stays pruned. min_keep: the fewest a layer keeps, as far as it has them.
    pattern: "2:4" keeps 2 of each 4, which is sparsity 0.5 whatever the allocation; "4x4" whole blocks (see
    `patterns`). dims: the dimension each weight contracts, see `patterns.contracted`. Layers that the pattern does not
    fit get no mask: `patterns.unfit` names them. They count as kept, so blocks still give the sparsity asked for, to
    half a block.
    Raises UserError for scores that are not numbers and for masks of other weights, BudgetError where the sparsity
    cannot be met.
    """
    sparsity = sparsity if isinstance(sparsity, Sparsity) else Sparsity(sparsity)
    within = within or {}
    _check_within(within, scores)
    if pattern is not None:
        return _patterned(scores, sparsity, allocation, patterns.parse(pattern), dims or {}, within, min_keep)
    if counts is None:
        counts = allocated(scores, sparsity, allocation, within=within, min_keep=min_keep)
    elif counts.keys() != scores.keys():
        raise UserError(f"counts are for {', '.join(counts)}; scores for {', '.join(scores)}.")
    return {name: top(score, counts[name], within.get(name), name=name) for name, score in scores.items()}


def _check_within(within: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> None:
    if within and not within.keys() & scores.keys():
        raise UserError(f"within has masks of {', '.join(within)}, but scores are of {', '.join(scores)}.")
    for name in within.keys() & scores.keys():
        mask, score = within[name], scores[name]
        if mask.dtype != torch.bool or mask.shape != score.shape:
            raise UserError(
                f"within: the mask of {name} should be bool {tuple(score.shape)}, is {mask.dtype} {tuple(mask.shape)}."
            )


def _patterned(
    scores: Mapping[str, Tensor],
    sparsity: Sparsity,
    allocation: Allocation,
    pattern: patterns.Pattern,
    dims: Mapping[str, int],
    within: Mapping[str, Tensor],
    min_keep: int,
) -> dict[str, Tensor]:
    """`choose` for a pattern."""
    refused = patterns.unfit({name: score.shape for name, score in scores.items()}, pattern, dims)
    fit = {name: score for name, score in scores.items() if name not in refused}
    if not fit:
        whys = "; ".join(f"{name} {why}" for name, why in list(refused.items())[:3])
        raise UserError(f"pattern {pattern} fits no layer: {whys}. Take another pattern, or none.")
    for name, score in fit.items():
        checked(score, name)
    if isinstance(pattern, patterns.NofM):
        if abs(sparsity.value - patterns.share(pattern)) > 1e-9:
            raise UserError(
                f"pattern {pattern} gives sparsity {patterns.share(pattern):g}, not {sparsity.value:g}."
            )
        return {
            name: patterns.n_of_m(score, pattern, dims.get(name, 1), within.get(name))
            for name, score in fit.items()
        }

    def blocks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: patterns.block_scores(t, pattern, dims.get(n, 1)) for n, t in tensors.items() if n in fit}

    area = pattern.rows * pattern.columns
    weights, dense = (
        sum(score.numel() for score in group.values()) for group in (scores, {n: scores[n] for n in refused})
    )
    number = (weights - dense) // area
    kept = round((sparsity.kept(weights) - dense) / area)
    if kept < len(fit):
        raise BudgetError(
            f"{sparsity} cannot be met with blocks of {pattern}: {len(refused)} layers they do not fit stay dense, "
            f"and each of {len(fit)} others keeps a block; the most is {1 - (dense + len(fit) * area) / weights:.4g}."
        )
    if kept == number:
        return {n: within.get(n, torch.ones_like(score, dtype=torch.bool)) for n, score in fit.items()}
    inside = {name: count > 0 for name, count in blocks(within).items()}
    share = Sparsity(1 - kept / number)
    chosen = choose(blocks(fit), share, allocation=allocation, within=inside, min_keep=-(-min_keep // area))
    masks = {name: patterns.block_mask(mask, pattern, dims.get(name, 1)) for name, mask in chosen.items()}
    return {name: mask & within[name] if name in within else mask for name, mask in masks.items()}
