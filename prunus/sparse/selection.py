"""The weights that stay: masks from scores and a sparsity.

Sparsity is the share of the scored weights that is zero afterwards; the number that stays is exact to one
weight. The allocation decides how many stay in each layer:

    uniform       the same share everywhere
    uniform_plus  the same, but a first convolution stays dense and the last linear layer keeps a fifth at least
                  (Gale et al., arXiv:1902.09574)
    erk           shares proportional to (inputs + outputs + kernel) / weights
                  (Evci et al., RigL, ICML 2020, arXiv:1911.11134)
    paper         each layer is pruned at its rate in the Lookahead paper (arXiv:2002.04809), see RATES
    pooled        one threshold for all scores as they are: global magnitude; also of SNIP, GraSP and SynFlow
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
from prunus.sparse.allocation import Allocation, allocate
from prunus.sparse.ranking import check_scores, top
from prunus.sparse.scores import maskable


def eligible(graph: Graph, freeze: Sequence[str] = ()) -> list[str]:
    """List the parameters that may be pruned weight by weight.

    Args:
        graph: The graph of the model.
        freeze: Shell patterns of parameters or of modules that hold them (`layer1*`, `head`, `conv1.weight`),
            which are left out.

    Returns:
        The names of the parameters, in the order of the model.

    Raises:
        UserError: A pattern matches no parameter, or none is left.
    """
    if isinstance(freeze, str):
        raise UserError(f"freeze: expected a list of patterns, got the text {freeze!r}.")
    frozen: set[str] = set()
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
    """Choose the masks that keep the highest scores; of equal ones those of lower flat index.

    Args:
        scores: The scores by parameter name, finite and not negative, of every weight that may be pruned.
        sparsity: The share that is zero afterwards; round((1 - sparsity) * number of scores) weights stay.
        allocation: The rule that decides how many stay in each layer, see above.
        counts: The number that stays in each layer, in place of an allocation.
        pattern: "2:4" keeps 2 of each 4, which is sparsity 0.5 for any allocation; "4x4" keeps whole blocks.
            Layers that it does not fit get no mask (`unfit` names them) and count as kept, so that blocks
            reach the sparsity to half a block.
        dims: The dimension of each weight's inputs, for patterns; see `contracted`.
        within: Masks so far; weights that they prune stay pruned.
        min_keep: The fewest that each layer keeps, as far as it has them.

    Returns:
        A bool tensor of the scores' shape for each parameter, True stays.

    Raises:
        UserError: Scores are not finite or negative, masks are of other weights, or the pattern fits no
            layer.
        BudgetError: The sparsity cannot be met.
    """
    sparsity = sparsity if isinstance(sparsity, Sparsity) else Sparsity(sparsity)
    within = within or {}
    _check_within(within, scores)
    if pattern is not None:
        return _choose_by_pattern(
            scores, sparsity, allocation, patterns.parse(pattern), dims or {}, within, min_keep
        )
    if counts is None:
        counts = allocate(scores, sparsity, allocation, within=within, min_keep=min_keep)
    elif counts.keys() != scores.keys():
        raise UserError(
            f"counts are for {', '.join(counts)}, scores for {', '.join(scores)}; expected the same."
        )
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


def _choose_by_pattern(
    scores: Mapping[str, Tensor],
    sparsity: Sparsity,
    allocation: Allocation,
    pattern: patterns.Pattern,
    dims: Mapping[str, int],
    within: Mapping[str, Tensor],
    min_keep: int,
) -> dict[str, Tensor]:
    """Choose masks for a pattern, see `choose`."""
    refused = patterns.unfit({name: score.shape for name, score in scores.items()}, pattern, dims)
    fit = {name: score for name, score in scores.items() if name not in refused}
    if not fit:
        whys = "; ".join(f"{name} {why}" for name, why in list(refused.items())[:3])
        raise UserError(f"pattern {pattern} fits no layer: {whys}. Take another pattern, or none.")
    for name, score in fit.items():
        check_scores(score, name)
    if isinstance(pattern, patterns.NofM):
        if abs(sparsity.value - pattern.share) > 1e-9:
            raise UserError(
                f"pattern {pattern} gives sparsity {pattern.share:g}, not {sparsity.value:g}; ask for that."
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
