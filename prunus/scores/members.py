"""The weights that belong to a unit, and how their scores are combined and normalised."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.errors import UserError, one_line, unknown
from prunus.graph import Graph, Member, read_tensor
from prunus.inputs import call, in_words, model_device, move, plain

Scores = dict[str, Tensor]
Batches = Iterable[tuple[Any, Any]]  # (inputs as the model takes them: tensor, tuple or dict; targets)

WEIGHTS = ("produces", "consumes", "scales")
ALL = (*WEIGHTS, "shifts")
TINY = torch.finfo(torch.float32).tiny
Combine = Literal["sum", "mean", "max"]
Normalize = Literal["mean", "max", "none"]
COMBINE = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}
NORMALIZE = {"mean": torch.mean, "max": torch.amax, "none": torch.ones_like}


def _read_tensor(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer as float32 (see `_as_float`); where the model has a parametrisation, its result."""
    return _as_float(read_tensor(model, name))


def _as_float(tensor: Tensor) -> Tensor:
    """A tensor as float32, without gradients; complex numbers as pairs along a last dimension of their own."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).float()


def _values(model: nn.Module, member: Member) -> Tensor:
    """The tensor of a member, as float32."""
    return _read_tensor(model, member.tensor)


def _members(graph: Graph, axis: str, roles: Sequence[str], otherwise: Sequence[str] = ()) -> list[Member]:
    """The members with one of `roles`, or if there are none, those with a role in `otherwise`; UserError if none."""
    found = [member for member in graph.members(axis) if member.role in roles]
    if not found and otherwise:
        return _members(graph, axis, otherwise)
    if not found:
        has = ", ".join(sorted({member.role for member in graph.members(axis)}))
        raise UserError(f"axis {axis}: expected a weight with a role in {tuple(roles)}; its roles are {has}.")
    return found


def _gather(values: Tensor, member: Member) -> Tensor:
    """Per unit (U,) the sum of `values`, which have the shape of the member's tensor, over the unit's entries."""
    along = values.movedim(member.dim, 0).reshape(values.shape[member.dim], -1).sum(1)
    return along[member.index].sum(1)


def _powers(model: nn.Module, graph: Graph, p: float, roles: Sequence[str], combine: Combine) -> Scores:
    """Per unit the sum of |w|^p, combined over members."""
    if combine not in COMBINE:
        raise unknown("way to combine members", combine, COMBINE)

    members = {axis: _members(graph, axis, roles) for axis in graph.axes}
    met = {(member.tensor, member.dim) for found in members.values() for member in found}

    @functools.cache
    def sums(tensor: str) -> dict[int, Tensor]:
        # the sums along the dimensions of a weight from one pass over it, however many axes run along them
        values = _read_tensor(model, tensor)
        values = values.square() if p == 2 else values.abs() ** p
        if values.dim() == 1:
            return {0: values}
        matrix = values.flatten(2).sum(2) if values.dim() > 2 else values
        rest = [dim for dim in range(2, values.dim()) if (tensor, dim) in met]
        others = {dim: [d for d in range(values.dim()) if d != dim] for dim in rest}
        return {0: matrix.sum(1), 1: matrix.sum(0)} | {dim: values.sum(others[dim]) for dim in rest}

    powers = {}
    for axis, found in members.items():
        parts = [sums(m.tensor)[m.dim][m.index].sum(1) for m in found]
        powers[axis] = COMBINE[combine](torch.stack(parts), 0)
    return powers


def _normalize(score: Tensor, how: str) -> Tensor:
    if how not in NORMALIZE:
        raise unknown("way to normalize scores", how, NORMALIZE)
    return score / NORMALIZE[how](score).clamp_min(TINY)


def _to_device(model: nn.Module, batches: Batches, what: str) -> Iterator[tuple[Any, Any]]:
    """The batches, on the model's device; UserError for what is no pair, which would be read as another one."""
    device = model_device(model)
    if isinstance(batches, (Tensor, str, Mapping)) or not isinstance(batches, Iterable):
        raise UserError(
            f"{what}: expected an iterable of (inputs, targets) pairs, such as a list, got {in_words(batches)}; give "
            "one batch as [(inputs, targets)]."
        )
    for number, batch in enumerate(batches, 1):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise UserError(
                f"{what}: expected a pair (inputs, targets) as batch {number}, got {in_words(batch)}. Of inputs alone "
                "make pairs: [(inputs, None) for inputs in batches]."
            )
        inputs, targets = batch
        yield move((plain(inputs), targets), device)


def _answer(bare: nn.Module, inputs: Any, what: str) -> Any:
    """The output of a model for a batch; UserError if the model cannot be called with it."""
    try:
        return call(bare, inputs)
    except Exception as error:  # whatever a model raises about inputs
        raise UserError(
            f"{what}: the model cannot be called with the batch {in_words(inputs)}: {one_line(error)}. Give pairs "
            "(inputs, targets), with inputs as the model takes them: a tensor, a tuple by position, or a dict by "
            "keyword."
        ) from error


def _checked_loss(value: Any, what: str) -> Tensor:
    """What a loss returned, if it is one number that depends on weights; UserError otherwise."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UserError(f"{what}: loss should return a tensor of one number, but returned {in_words(value)}.")
    if not value.requires_grad:
        raise UserError(f"{what}: what loss returned does not depend on the model's weights; is it detached?")
    return value
