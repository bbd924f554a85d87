"""Scores: one float per unit, higher means keep. Every function gives {axis name: float32 tensor (size,)}.

A member of an axis is a dimension of a parameter; its `index` (U, k) holds the k positions of each unit.
Whatever is measured per position is gathered per unit with it. The model stays as it is: its weights,
gradients, modes and buffers; frozen parameters count like others.

    magnitude    size of the weights                     Li et al., ICLR 2017, arXiv:1608.08710
    lamp         the same, comparable across axes        Lee et al., ICLR 2021, arXiv:2010.07611
    bn_scale     scale of the norms                      Liu et al., ICCV 2017, arXiv:1708.06519
    fpgm         distance to the other units             He et al., CVPR 2019, arXiv:1811.00250
    taylor       first-order change of the loss          Molchanov et al., CVPR 2019, arXiv:1906.10771
    activation   size of the activations                 as in Minitron, arXiv:2407.14679
    random       the control

Shapes: U units of an axis, k positions of a unit.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunus.errors import UserError
from prunus.graph import Graph
from prunus.scores.members import (
    ALL,
    TINY,
    WEIGHTS,
    Combine,
    Normalize,
    Scores,
    _gather,
    _members,
    _normalized,
    _powers,
    _tensor,
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
    """The L1 or L2 norm of the weights that go with a unit.

    roles: which members count; ("produces",) is the filter norm of Li et al., all weights the group norm of
    DepGraph (arXiv:2301.12900). combine: sum, mean or max over members of sum |w|^p, before the p-th root.
    normalize: by the mean or max of the axis, so that axes can be compared, or none.
    """
    powers = _powers(model, graph, p, roles, combine)
    return {axis: _normalized(power ** (1 / p), normalize) for axis, power in powers.items()}


def lamp(
    model: nn.Module, graph: Graph, *, roles: Sequence[str] = WEIGHTS, combine: Combine = "sum"
) -> Scores:
    """Squared norm over the sum of those in the axis that are no smaller: in (0, 1], the largest scores 1.

    Lee et al. score single weights within a layer; here units within an axis.
    """

    def one(square_U: Tensor) -> Tensor:
        falling, order = square_U.sort(descending=True, stable=True)
        return torch.empty_like(falling).scatter(0, order, falling / falling.cumsum(0).clamp_min(TINY))

    return {axis: one(power) for axis, power in _powers(model, graph, 2, roles, combine).items()}


def bn_scale(model: nn.Module, graph: Graph) -> Scores:
    """The mean |scale| over the norms on an axis.

    Axes without a norm are scored by magnitude, brought to the mean of the others; a warning names them.
    Raises UserError if no axis has a norm.
    """
    scores = {}
    for axis in graph.axes:
        means = [
            _gather(_tensor(model, member).abs(), member) / member.index.shape[1]
            for member in graph.members(axis)
            if member.role == "scales"
        ]
        if means:
            scores[axis] = torch.stack(means).mean(0)
    return _completed(model, graph, scores, "bn_scale: no norm")


def fpgm(model: nn.Module, graph: Graph, *, normalize: Normalize = "mean") -> Scores:
    """The sum of distances to all other units of the axis, as weights that produce it.

    The most replaceable unit, near the geometric median, scores least. He et al. compare the filters of one layer;
    where several parameters produce an axis, their filters are joined.
    """
    scores = {}
    for axis in graph.axes:
        square_UU = torch.zeros(())
        for member in _members(graph, axis, ("produces",), otherwise=ALL):
            unit = _tensor(model, member).movedim(member.dim, 0)[member.index].flatten(1)
            square_UU = square_UU + torch.cdist(unit, unit).square()
        scores[axis] = _normalized(square_UU.sqrt().sum(1), normalize)
    return scores


def random(graph: Graph, seed: int = 0) -> Scores:
    """Uniform in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(axis.size, generator=generator) for name, axis in graph.axes.items()}


def _completed(model: nn.Module, graph: Graph, scores: Scores, why: str) -> Scores:
    """`scores` in the order of the axes; what is missing from magnitude, scaled to the mean of the rest."""
    missing = [axis for axis in graph.axes if axis not in scores]
    if not missing:
        return scores
    if not scores:
        raise UserError(f"{why} on any axis of this model; score it by magnitude or taylor.")
    warnings.warn(f"{why} on {', '.join(missing)}; scored by magnitude there.", stacklevel=3)
    level = torch.stack([score.mean() for score in scores.values()]).mean()
    norms = magnitude(model, graph)
    return {axis: scores[axis] if axis in scores else norms[axis] * level for axis in graph.axes}
