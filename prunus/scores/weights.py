"""Scores of units from weights. Every function returns {axis name: float32 tensor (size,)}; higher means keep.

A member of an axis is a dimension of a parameter; its `index` (U, k) holds the k positions of each unit. Scores per
position are summed per unit with it. The model is not changed: weights, gradients, modes and buffers stay the same.
Frozen parameters count like others.

    magnitude    size of the weights                     Li et al., ICLR 2017, arXiv:1608.08710
    lamp         the same, comparable across axes        Lee et al., ICLR 2021, arXiv:2010.07611
    bn_scale     scale of the norms                      Liu et al., ICCV 2017, arXiv:1708.06519
    fpgm         distance to the other units             He et al., CVPR 2019, arXiv:1811.00250
    random       a control

Shapes: U units of an axis, k positions of a unit.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunus.errors import UserError
from prunus.graph import Graph, plain_model
from prunus.scores.members import (
    ALL,
    TINY,
    WEIGHTS,
    Combine,
    Normalize,
    Scores,
    _gather,
    _members,
    _normalize,
    _powers,
    _values,
)


def magnitude(
    model: nn.Module,
    graph: Graph,
    *,
    p: float = 2,
    roles: Sequence[str] = WEIGHTS,
    combine: Combine = "sum",
    normalize: Normalize = "mean",
) -> Scores:
    """Score units by the L1 or L2 norm of the weights that belong to them.

    Source: Li et al., ICLR 2017, arXiv:1608.08710 (filter norms, roles=("produces",)); with all weights, the group
    norm of DepGraph (arXiv:2301.12900).

    Args:
        model: The traced model.
        graph: Its graph.
        p: The order of the norm.
        roles: The roles of the members that count.
        combine: "sum", "mean" or "max" over members of sum |w|^p, before the p-th root.
        normalize: Divide the scores of an axis by their "mean" or "max", so that axes can be compared, or do not
            ("none").

    Returns:
        {axis: float32 (size,)}; higher means keep.

    Raises:
        UserError: `combine` or `normalize` is unknown, or no weight of an axis has one of the roles.
    """
    powers = _powers(plain_model(model), graph, p, roles, combine)
    return {axis: _normalize(power ** (1 / p), normalize) for axis, power in powers.items()}


def lamp(
    model: nn.Module, graph: Graph, *, roles: Sequence[str] = WEIGHTS, combine: Combine = "sum"
) -> Scores:
    """Score units by their squared norm over the sum of the squared norms in the axis that are no smaller.

    Source: Lee et al., ICLR 2021, arXiv:2010.07611, who score single weights within a layer; here units within an
    axis.

    Args:
        model: The traced model.
        graph: Its graph.
        roles: The roles of the members that count.
        combine: "sum", "mean" or "max" over members of sum |w|^2.

    Returns:
        {axis: float32 (size,)} in (0, 1]; the largest unit of an axis scores 1.

    Raises:
        UserError: `combine` is unknown, or no weight of an axis has one of the roles.
    """

    def lamp_of(square_U: Tensor) -> Tensor:
        falling, order = square_U.sort(descending=True, stable=True)
        return torch.empty_like(falling).scatter(0, order, falling / falling.cumsum(0).clamp_min(TINY))

    return {
        axis: lamp_of(power) for axis, power in _powers(plain_model(model), graph, 2, roles, combine).items()
    }


def bn_scale(model: nn.Module, graph: Graph) -> Scores:
    """Score units by the mean |scale| over the norms on their axis.

    Axes without a norm are scored by magnitude, scaled to the mean of the other axes; a warning names them.
    Source: Liu et al., ICCV 2017, arXiv:1708.06519.

    Args:
        model: The traced model.
        graph: Its graph.

    Returns:
        {axis: float32 (size,)}; higher means keep.

    Raises:
        UserError: No axis has a norm.
    """
    model = plain_model(model)
    scores = {}
    for axis in graph.axes:
        means = [
            _gather(_values(model, member).abs(), member) / member.index.shape[1]
            for member in graph.members(axis)
            if member.role == "scales"
        ]
        if means:
            scores[axis] = torch.stack(means).mean(0)
    return _complete(model, graph, scores, "bn_scale: no norm")


def fpgm(model: nn.Module, graph: Graph, *, normalize: Normalize = "mean") -> Scores:
    """Score units by the sum of the distances of their weights to those of all other units of the axis.

    The most replaceable unit, near the geometric median, scores lowest. Source: He et al., CVPR 2019,
    arXiv:1811.00250, who compare the filters of one layer; if several parameters write to an axis, their filters are
    joined.

    Args:
        model: The traced model.
        graph: Its graph.
        normalize: Divide the scores of an axis by their "mean" or "max", or do not ("none").

    Returns:
        {axis: float32 (size,)}; higher means keep.

    Raises:
        UserError: `normalize` is unknown.
    """
    model = plain_model(model)
    scores = {}
    for axis in graph.axes:
        square_UU = torch.zeros(())
        for member in _members(graph, axis, ("produces",), otherwise=ALL):
            unit = _values(model, member).movedim(member.dim, 0)[member.index].flatten(1)
            square_UU = square_UU + torch.cdist(unit, unit).square()
        scores[axis] = _normalize(square_UU.sqrt().sum(1), normalize)
    return scores


def random(graph: Graph, seed: int = 0) -> Scores:
    """Score units uniformly at random in [0, 1), as a control.

    Args:
        graph: The graph of the traced model.
        seed: The seed of the scores.

    Returns:
        {axis: float32 (size,)}.
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(axis.size, generator=generator) for name, axis in graph.axes.items()}


def _complete(model: nn.Module, graph: Graph, scores: Scores, why: str) -> Scores:
    """`scores` in the order of the axes; missing axes get magnitudes, scaled to the mean of the others."""
    missing = [axis for axis in graph.axes if axis not in scores]
    if not missing:
        return scores
    if not scores:
        raise UserError(f"{why} on any axis of this model; score it by magnitude or taylor instead.")
    warnings.warn(f"{why} on {', '.join(missing)}; scored by magnitude instead.", stacklevel=3)
    level = torch.stack([score.mean() for score in scores.values()]).mean()
    norms = magnitude(model, graph)
    return {axis: scores[axis] if axis in scores else norms[axis] * level for axis in graph.axes}
