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

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunus.errors import UserError, unknown
from prunus.graph import Graph, Member, call, skeleton

Scores = dict[str, Tensor]
Batches = Iterable[tuple[Any, Any]]  # (inputs as the model takes them: tensor, tuple or dict; targets)

WEIGHTS = ("produces", "consumes", "scales")
ALL = (*WEIGHTS, "shifts")
TINY = torch.finfo(torch.float32).tiny
Combine = Literal["sum", "mean", "max"]
Normalize = Literal["mean", "max", "none"]
COMBINE = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}
NORMALIZE = {"mean": torch.mean, "max": torch.amax, "none": torch.ones_like}


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
        square_UU = 0
        for member in _members(graph, axis, ("produces",), otherwise=ALL):
            unit = _tensor(model, member).movedim(member.dim, 0)[member.index].flatten(1)
            square_UU = square_UU + torch.cdist(unit, unit).square()
        scores[axis] = _normalized(square_UU.sqrt().sum(1), normalize)
    return scores


def random(graph: Graph, seed: int = 0) -> Scores:
    """Uniform in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(axis.size, generator=generator) for name, axis in graph.axes.items()}


def taylor(
    model: nn.Module,
    graph: Graph,
    loss: Callable[[Any, Any], Tensor],
    batches: Batches,
    *,
    roles: Sequence[str] = ("consumes",),
) -> Scores:
    """The mean over batches of (sum over weights of gradient * weight)^2, the network in eval mode.

    roles: the weights that consume an axis (all, where none do). To scale what they read is to scale them, so their
    sum is the derivative by a gate on the unit, as in the paper; producers before a norm say much less.
    loss(output, targets) -> scalar. Raises UserError if there is no batch, or a loss is not a number.
    """
    total, count = {}, 0
    with torch.inference_mode(False), torch.enable_grad():
        bare = skeleton.skeleton(model, real=True)
        weights = {n: p.requires_grad_() for n, p in bare.named_parameters() if p.is_floating_point()}
        for count, (inputs, targets) in enumerate(_on_device(bare, batches), 1):
            value = loss(call(bare, inputs), targets)
            if not value.isfinite():
                raise UserError(
                    f"taylor: the loss of batch {count} is {value.item()}; are model and data whole?"
                )
            gradients = torch.autograd.grad(
                value, list(weights.values()), allow_unused=True, materialize_grads=True
            )
            change = {
                name: weight.detach().float() * gradient.float()
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
            for axis in graph.axes:
                parts = [_gather(change[m.tensor], m) for m in _members(graph, axis, roles, otherwise=ALL)]
                total[axis] = total.get(axis, 0) + sum(parts).square()
    if not count:
        raise UserError("taylor: there is no batch to score with.")
    return {axis: squares / count for axis, squares in total.items()}


@torch.no_grad()
def activation(
    model: nn.Module,
    graph: Graph,
    batches: Batches,
    *,
    roles: Sequence[str] = ("consumes", "produces"),
    normalize: Normalize = "mean",
) -> Scores:
    """The mean |activation| of a unit over batches and positions, the network in eval mode.

    roles: where to look, in order of preference: "consumes" reads what enters the modules that consume an axis, after
    norms and nonlinearities, "produces" what leaves those that produce it. Axes that no module shows (their parameters
    are used by other code) are scored by magnitude, brought to the mean of the others; a warning names them.
    Raises UserError if there is no batch.
    """
    bare = skeleton.skeleton(model, real=True)
    watched = {(m.tensor, m.dim): m for axis in graph.axes for m in graph.members(axis) if m.role in roles}
    means = {place: _Mean(bare, member) for place, member in watched.items()}
    count = 0
    for inputs, _ in _on_device(bare, batches):
        call(bare, inputs)
        count += 1
    if not count:
        raise UserError("activation: there is no batch to score with.")
    scores = {}
    for axis in graph.axes:
        for role in reversed(roles):  # the most preferred last, to stay
            seen = [(m.index, means[m.tensor, m.dim]) for m in graph.members(axis) if m.role == role]
            parts = [(mean.sums / mean.count)[index].mean(1) for index, mean in seen if mean.count]
            if parts:
                scores[axis] = _normalized(torch.stack(parts).mean(0), normalize)
    return _completed(model, graph, scores, "activation: no module shows its values")


class _Mean:
    """Adds up |value| along a member's dimension, over all that enters (consumes) or leaves its module."""

    def __init__(self, bare: nn.Module, member: Member):
        self.sums, self.count = 0, 0
        self.entering = member.role == "consumes"
        weight = _tensor(bare, member)
        self.size = weight.shape[member.dim]
        self.dim = 1 - weight.dim()  # features stand last for a matrix, before the space for a convolution
        module = bare.get_submodule(member.tensor.rpartition(".")[0])
        module.register_forward_hook(self.see, with_kwargs=True)

    def see(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        value = next(iter((*args, *kwargs.values())), None) if self.entering else output
        if isinstance(value, Tensor) and value.dim() >= -self.dim and value.shape[self.dim] == self.size:
            along = value.movedim(self.dim, 0).reshape(self.size, -1)
            self.sums = self.sums + along.abs().sum(1, dtype=torch.float32)
            self.count += along.shape[1]


# ---------------------------------------------------------------------------------------- shared parts
def _named(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer; where the model has a parametrisation (weight norm), its result."""
    return functools.reduce(getattr, name.split("."), model).detach()


def _tensor(model: nn.Module, member: Member) -> Tensor:
    """A member's values in float32."""
    return _named(model, member.tensor).float()


def _members(graph: Graph, axis: str, roles: Sequence[str], otherwise: Sequence[str] = ()) -> list[Member]:
    """The members with one of the roles, or if none has, otherwise. Raises UserError if there is none at all."""
    found = [member for member in graph.members(axis) if member.role in roles]
    if not found and otherwise:
        return _members(graph, axis, otherwise)
    if not found:
        has = ", ".join(sorted({member.role for member in graph.members(axis)}))
        raise UserError(f"no weight of axis {axis} has a role among {tuple(roles)}; it has {has}.")
    return found


def _gather(values: Tensor, member: Member) -> Tensor:
    """(U,): the sum of `values`, shaped like the member's tensor, over all that belongs to each unit."""
    along = values.movedim(member.dim, 0).reshape(values.shape[member.dim], -1).sum(1)
    return along[member.index].sum(1)


def _powers(model: nn.Module, graph: Graph, p: float, roles: Sequence[str], combine: Combine) -> Scores:
    """Per unit sum |w|^p, combined over members."""
    if combine not in COMBINE:
        raise unknown("way to combine members", combine, COMBINE)

    @functools.cache
    def sums(tensor: str) -> tuple[Tensor, ...]:
        # every dimension of a weight from one reading of it, however many axes run along them
        values = _named(model, tensor).float()
        values = values.square() if p == 2 else values.abs() ** p
        matrix = values.flatten(2).sum(2) if values.dim() > 2 else values
        rest = (values.sum([d for d in range(values.dim()) if d != dim]) for dim in range(2, values.dim()))
        return (matrix,) if values.dim() == 1 else (matrix.sum(1), matrix.sum(0), *rest)

    powers = {}
    for axis in graph.axes:
        parts = [sums(m.tensor)[m.dim][m.index].sum(1) for m in _members(graph, axis, roles)]
        powers[axis] = COMBINE[combine](torch.stack(parts), 0)
    return powers


def _normalized(score: Tensor, how: str) -> Tensor:
    if how not in NORMALIZE:
        raise unknown("way to normalize scores", how, NORMALIZE)
    return score / NORMALIZE[how](score).clamp_min(TINY)


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


def _on_device(model: nn.Module, batches: Batches) -> Iterator[tuple[Any, Any]]:
    """The batches, where the model is."""
    device = next(model.parameters()).device
    for batch in batches:
        yield tree_map_only(Tensor, lambda tensor: tensor.to(device), tuple(batch))
