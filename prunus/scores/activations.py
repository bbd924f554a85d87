"""Scores of units from their activations on data: activation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import UserError
from prunus.graph import Graph, Member, holder, make_skeleton, plain_model, read_tensor
from prunus.inputs import real_positions
from prunus.scores.members import Batches, Normalize, Scores, _answer, _normalize, _to_device
from prunus.scores.weights import _complete


@torch.no_grad()
def activation(
    model: nn.Module,
    graph: Graph,
    batches: Batches,
    *,
    roles: Sequence[str] = ("consumes", "produces"),
    normalize: Normalize = "mean",
) -> Scores:
    """Score units by their mean |activation| over batches and positions, with the network in eval mode.

    Positions that `attention_mask` marks as padding are left out.

    Axes whose parameters are used outside of their modules are scored by magnitude, scaled to the mean of the other
    axes; a warning names them. Source: as in Minitron, arXiv:2407.14679.

    Args:
        model: The traced model; it is not changed.
        graph: Its graph.
        batches: (inputs, targets) pairs; the targets are not used.
        roles: Where activations are read, in order of preference: "consumes", the inputs of the modules that read an
            axis (after norms and nonlinearities), or "produces", the outputs of the modules that write it.
        normalize: Divide the scores of an axis by their "mean" or "max", or do not ("none").

    Returns:
        {axis: float32 (size,)}; higher means keep.

    Raises:
        UserError: There is no batch, or one is no pair, or the model cannot be called with its inputs.
    """
    model = plain_model(model)
    bare = make_skeleton(model, real=True)
    watched = {(m.tensor, m.dim): m for axis in graph.axes for m in graph.members(axis) if m.role in roles}
    means = {place: _Mean(bare, member) for place, member in watched.items()}
    count = 0
    for inputs, _ in _to_device(bare, batches, "activation"):
        real = real_positions(inputs)
        for mean in means.values():
            mean.real = real
        _answer(bare, inputs, "activation")
        count += 1
    if not count:
        raise UserError("activation: expected at least one batch to score with, got none; give data.")
    scores = {}
    for axis in graph.axes:
        for role in reversed(roles):  # the most preferred last, so that it overwrites the others
            seen = [(m.index, means[m.tensor, m.dim]) for m in graph.members(axis) if m.role == role]
            parts = [(mean.sums / mean.count)[index].mean(1) for index, mean in seen if mean.count]
            if parts:
                scores[axis] = _normalize(torch.stack(parts).mean(0), normalize)
    return _complete(model, graph, scores, "activation: no module computes the activations")


class _Mean:
    """The sum of |value| along a member's dimension, over all inputs (consumes) or outputs of its module."""

    def __init__(self, bare: nn.Module, member: Member):
        self.sums, self.count = torch.zeros(()), 0
        self.real: Tensor | None = None  # (B, T), of the batch
        self.entering = member.role == "consumes"
        weight = read_tensor(bare, member.tensor)
        self.size = weight.shape[member.dim]
        self.dim = (
            1 - weight.dim()
        )  # features: last for a matrix, before the spatial dimensions for a convolution
        module = bare.get_submodule(holder(member.tensor))
        module.register_forward_hook(self.see, with_kwargs=True)

    def see(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        value = next(iter((*args, *kwargs.values())), None) if self.entering else output
        if isinstance(value, Tensor) and value.dim() >= -self.dim and value.shape[self.dim] == self.size:
            if self.real is not None and self.dim == -1 and value.shape[:2] == self.real.shape:
                value = value[self.real]
            along = value.movedim(self.dim, 0).reshape(self.size, -1)
            self.sums = self.sums + along.abs().sum(1, dtype=torch.float32)
            self.count += along.shape[1]
