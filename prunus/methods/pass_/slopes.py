"""The gradients that masks pass on to the scores, although the threshold between them has none.

Slopes are zeros with the gradient of the scores; a mask plus its slope is the mask. Source: ours.
Shapes: N units on G axes.
"""

import torch
from torch import Tensor


def at_equal_cost(slopes: Tensor, costs: Tensor) -> Tensor:
    """Lower slopes together so that their cost is nothing: a score that rises pushes others out.

    So a unit is charged the gradient that the same cost has on average, and one to which the loss does not respond
    falls, whatever its weights are.

    Args:
        slopes: (N,).
        costs: (N,), the cost of each unit; 0 for those that always stay, which are not charged and not moved.

    Returns:
        (N,).
    """
    return (slopes - (costs @ slopes) / costs.sum()) * (costs > 0)


def at_equal_counts(slopes: Tensor, owners: Tensor, axes: int) -> Tensor:
    """Lower the slopes of each axis together, so that as many of its units stay.

    Args:
        slopes: (N,).
        owners: (N,), the axis of each unit.
        axes: G.

    Returns:
        (N,).
    """
    sums = slopes.new_zeros(axes).index_add(0, owners, slopes)
    return slopes - (sums / torch.bincount(owners, minlength=axes))[owners]


def distances(found: Tensor, kept: Tensor, owners: Tensor | None, axes: int) -> Tensor:
    """The distances of scores from the threshold, the best score that is not kept.

    Args:
        found: (N,), the scores.
        kept: (N,), bool.
        owners: (N,), the axis of each unit, if each has a threshold of its own; None: one for all.
        axes: G.

    Returns:
        (N,); infinite if all are kept.
    """
    out = found.masked_fill(kept, -torch.inf)  # not the lowest kept score: floors keep low scores, too
    if owners is None:
        return (found - out.max()).abs()
    best = out.new_full((axes,), -torch.inf).scatter_reduce(0, owners, out, "amax")
    return (found - best[owners]).abs()
