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

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from prunus.errors import BudgetError, UserError, unknown
from prunus.graph import Graph
from prunus.selection import Sparsity, holders, short
from prunus.sparse import patterns
from prunus.sparse.ranking import alive, as_numpy, checked, counts_above, lamp_of_sorted, top
from prunus.sparse.scores import maskable

Allocation = Literal["uniform", "uniform_plus", "erk", "pooled", "global", "lamp", "paper"]
RATES = {  # what a round of the Lookahead paper takes of a layer: kind of network -> layer -> share of its survivors
    "linear": {"linear": 0.5, "last": 0.25},
    "convolutional": {"conv": 0.15, "linear": 0.2, "last": 0.1},
}
LAST_KEEPS = 0.2  # of the last linear layer, under uniform_plus


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


def counts(
    shapes: Mapping[str, torch.Size],
    sparsity: float | Sparsity,
    allocation: Allocation = "uniform",
    *,
    room: Mapping[str, int] | None = None,
    min_keep: int = 1,
) -> dict[str, int]:
    """How many weights stay in each layer, for the allocations that need only shapes; their sum is exact.

    shapes: of the weights, in the order of the layers. room: the most each may keep (what is not pruned yet).
    min_keep: the fewest each may keep, as far as there is room. Raises BudgetError where these cannot be met.
    """
    if allocation not in ("uniform", "uniform_plus", "erk", "paper"):
        raise unknown("allocation by shapes", allocation, ["uniform", "uniform_plus", "erk", "paper"])
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    high = {name: room[name] if room else size for name, size in sizes.items()}
    low = {name: min(min_keep, most) for name, most in high.items()}
    total = _total(sparsity, sizes, low, high)
    factor, power = dict.fromkeys(shapes, 1.0), dict.fromkeys(shapes, 1.0)
    if allocation == "erk":
        factor = {name: sum(shape) / shape.numel() for name, shape in shapes.items()}
    elif allocation == "paper":
        power = {name: -math.log1p(-rate) for name, rate in _rates(shapes).items()}
    elif allocation == "uniform_plus":
        low = _uniform_plus(shapes, low, high)
        _total(sparsity, sizes, low, high)

    def ideal(log_x: float) -> dict[str, float]:
        """size * factor * x^power within bounds: rises with x for every layer."""
        return {
            name: min(
                max(size * math.exp(math.log(factor[name]) + power[name] * log_x), low[name]), high[name]
            )
            for name, size in sizes.items()
        }

    below, above = (
        -700.0,
        60.0,
    )  # of log x: from nothing of a layer to all of it, whatever its factor and power
    for _ in range(80):
        middle = (below + above) / 2
        below, above = (below, middle) if sum(ideal(middle).values()) > total else (middle, above)
    return _rounded(ideal((below + above) / 2), high, total)


def allocated(
    scores: Mapping[str, Tensor],
    sparsity: float | Sparsity,
    allocation: Allocation = "uniform",
    *,
    within: Mapping[str, Tensor] | None = None,
    min_keep: int = 1,
) -> dict[str, int]:
    """How many weights stay in each layer, for every allocation; their sum is exact. See `choose`."""
    if allocation not in get_args(Allocation):
        raise unknown("allocation", allocation, get_args(Allocation))
    sizes = {name: score.numel() for name, score in scores.items()}
    room = {name: alive(size, (within or {}).get(name)) for name, size in sizes.items()}
    if allocation not in ("pooled", "global", "lamp"):
        shapes = {name: score.shape for name, score in scores.items()}
        return counts(shapes, sparsity, allocation, room=room, min_keep=min_keep)
    low = {name: min(min_keep, most) for name, most in room.items()}
    total = _total(sparsity, sizes, low, room)
    queues = []
    for name, score in scores.items():
        flat = checked(score, name)
        if within is not None and name in within:
            flat = flat[within[name].reshape(-1).to(flat.device)]
        rising = np.sort(as_numpy(flat))
        if allocation == "lamp":
            queue = lamp_of_sorted(rising)
        else:
            norm = (
                float(torch.linalg.vector_norm(flat, dtype=torch.float64)) if allocation == "global" else 1.0
            )
            queue = (rising / np.float32(norm or 1)).astype(np.float32, copy=False)
        queue[len(queue) - low[name] :] = np.inf
        queues.append(queue)
    return dict(zip(scores, counts_above(queues, total), strict=True))


def _total(
    sparsity: float | Sparsity, sizes: Mapping[str, int], low: Mapping[str, int], high: Mapping[str, int]
) -> int:
    """How many weights stay in all; known to be possible."""
    sparsity = sparsity if isinstance(sparsity, Sparsity) else Sparsity(sparsity)
    weights, fewest, most = (sum(numbers.values()) for numbers in (sizes, low, high))
    if not weights:
        raise UserError("there are no weights to prune.")
    kept = sparsity.kept(weights)
    if kept < fewest:
        raise BudgetError(
            f"{sparsity} would leave {kept} of {weights} weights, but {fewest} must stay (in {len(sizes)} layers); "
            f"the most is {math.floor((1 - fewest / weights) * 1e6) / 1e6:g}."
        )
    if kept > most:
        raise BudgetError(
            f"{sparsity} would leave {short(kept)} of {short(weights)} weights, but only {short(most)} may stay: "
            "the others are pruned already. Ask for more sparsity."
        )
    return kept


def _uniform_plus(
    shapes: Mapping[str, torch.Size], low: Mapping[str, int], high: Mapping[str, int]
) -> dict[str, int]:
    """The fewest each layer keeps under uniform_plus."""
    first = next(iter(shapes))
    last = next((name for name in reversed(list(shapes)) if len(shapes[name]) == 2), None)
    low = dict(low)
    if len(shapes[first]) > 2:
        low[first] = high[first]
    if last is not None:
        low[last] = min(high[last], max(low[last], math.ceil(LAST_KEEPS * shapes[last].numel())))
    return low


def _rates(shapes: Mapping[str, torch.Size]) -> dict[str, float]:
    """The share of its survivors that each layer loses in a round of the paper."""
    is_linear = all(len(shape) == 2 for shape in shapes.values())
    rates = RATES["linear" if is_linear else "convolutional"]
    kinds = {name: "linear" if len(shape) == 2 else "conv" for name, shape in shapes.items()}
    kinds[list(shapes)[-1]] = "last"
    return {name: rates[kind] for name, kind in kinds.items()}


def _rounded(ideal: Mapping[str, float], high: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers nearest to `ideal` that sum to `total`: the largest remainders are rounded up."""
    floors = {name: math.floor(number) for name, number in ideal.items()}
    rest = total - sum(floors.values())
    for name in sorted(ideal, key=lambda name: floors[name] - ideal[name]):
        if rest > 0 and floors[name] < high[name]:
            floors[name] += 1
            rest -= 1
    assert rest == 0, f"{rest} weights were not placed"
    return floors


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
