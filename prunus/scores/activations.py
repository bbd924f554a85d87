"""Scores of units from what a layer gives on data: activation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import UserError
from prunus.graph import Graph, Member, call, make_skeleton
from prunus.scores.members import Batches, Normalize, Scores, _normalized, _on_device, _tensor
from prunus.scores.weights import _completed


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
    bare = make_skeleton(model, real=True)
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
        self.sums, self.count = torch.zeros(()), 0
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
