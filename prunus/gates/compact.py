"""Cut a model to fewer units in place, while it is trained, and expand it to full size again.

Parameters stay the same objects but hold smaller data, so an optimiser, scheduler or wrapper that has them still
works; the optimiser's state is cut with the same indices. Units keep their indices in the graph of the full-size
model. Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus.errors import UserError
from prunus.gates import at_once, gates
from prunus.gates.gates import Gate
from prunus.graph import Graph, Keep, Layout, axes, full_name, make_skeleton, set_attributes, skeleton
from prunus.surgery import copies, effective_tensors, lists_of, stated


class Compacted:
    """A model that is cut in place while it is trained. `kept` holds the units it has been cut to, by axis.

    Args:
        model: The traced model, at full size.
        graph: Its graph.
    """

    def __init__(self, model: nn.Module, graph: Graph):
        self.model, self.graph = model, graph
        self.like = make_skeleton(model)
        self.kept: dict[str, list[int]] = {}

    def remaining(self, axis: str) -> Tensor:
        """The units of an axis that the model still has, int64, ascending."""
        return torch.tensor(self.kept.get(axis, range(self.graph.axes[axis].size)))

    def cut(self, keep: Keep, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Cut weights, gates and the optimiser's state to `keep`; see `cut`."""
        keep = {**self.kept, **self.graph.check_keep(keep)}
        if all(units == self.remaining(name).tolist() for name, units in keep.items()):
            return
        cut(self.model, self.graph, self.kept, keep, like=self.like, optimizer=optimizer)
        self.kept = keep

    @torch.no_grad()
    def full(self) -> nn.Module:
        """A copy at full size with the present weights: zeros (ones in buffers) for units that were removed."""
        full = copies.clone(self.model, expand(self.graph, self.kept, effective_tensors(self.model)))
        set_attributes(full, self.graph.integers(widths := self.graph.widths()), widths)
        stated.update_stated_sizes(self.model, full)
        return full


def can_be_cut(model: nn.Module) -> bool:
    """Whether weights can become smaller during training.

    Args:
        model: A model without gates.

    Returns:
        False if a weight is parametrised (weight_norm), or in several processes, whose wrapper fixes the sizes.
    """
    return not at_once.several_processes() and not any(map(parametrize.is_parametrized, model.modules()))


@torch.no_grad()
def cut(
    model: nn.Module,
    graph: Graph,
    before: Keep,
    after: Keep,
    *,
    like: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Cut `model`, in place, from the units in `before` to a subset of them; gates follow, gradients are dropped.

    Args:
        model: The model, already cut to `before`.
        graph: The graph of the full-size model.
        before: axis -> units that the model has.
        after: axis -> units that stay.
        like: The full-size model or its skeleton, for the sizes that layers state about themselves.
        optimizer: Its state is cut too, in the dimensions in which it has the parameter's size, not 1.

    Raises:
        UserError: A unit of `after` was removed before, a weight has another parametrisation (weight_norm), whose
            tensors cannot be cut, or the optimiser's state has other shapes; then nothing is changed.
    """
    before, after = graph.check_keep(before), graph.check_keep({**before, **after})
    for name, units in before.items():
        gone = sorted(set(after[name]) - set(units))
        if gone:
            raise UserError(
                f"axis {name} has lost units {gone[:5]} already, so they cannot be kept; keep only units it still has."
            )
    states = optimizer.state if optimizer else {}
    smaller = []
    for name, tensor in _stored_tensors(model, graph).items():
        layouts = graph.layouts[name]
        new = _cut_further(tensor.data, layouts, before, after)
        if new.shape != tensor.shape:
            state = {
                key: _cut_further(
                    value, _layouts_of_state(value, tensor, layouts, f"{key} of {name}"), before, after
                )
                for key, value in states.get(tensor, {}).items()
                if isinstance(value, Tensor) and value.numel() > 1
            }
            smaller.append((tensor, new, state))
    for tensor, new, state in smaller:
        _replace_data(tensor, new)
        if state:
            states[tensor].update(state)
    gates.update_places(model, graph, after)
    set_attributes(model, graph.integers(widths := graph.widths(after)), widths)
    stated.update_stated_sizes(like, model)


def _stored_tensors(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """The tensors that are stored, by the graph's names: for a gated weight the parameter before its gate."""
    own = skeleton.named_tensors(model)
    found = {name: tensor for name, tensor in own.items() if name in graph.layouts}
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for attribute, held in lists_of(module).items():
                name = full_name(path, attribute)
                if name in graph.layouts:
                    steps = cast(parametrize.ParametrizationList, held)
                    others = [type(step).__name__ for step in steps if type(step) is not Gate]
                    if others:
                        raise UserError(
                            f"{name} is parametrised by {', '.join(others)}, which cannot be cut while it is trained; "
                            "make it plain first (torch's remove_parametrizations)."
                        )
                    found[name] = steps.original
    return found


def _layouts_of_state(value: Tensor, parameter: Tensor, layouts: list[Layout], what: str) -> list[Layout]:
    """The layout of each dimension of an optimiser's tensor: the parameter's, or 1 if its size is 1."""
    sizes = list(zip(value.shape, parameter.shape, strict=False))
    if value.dim() != parameter.dim() or any(own not in (1, size) for own, size in sizes):
        raise UserError(
            f"the optimiser's {what} has shape {tuple(value.shape)}, expected the parameter's "
            f"{tuple(parameter.shape)} (or 1 in some dimensions); take another optimiser, or do not cut while it is "
            "in use (compact=False)."
        )
    return [1 if n == 1 else layout for n, layout in zip(value.shape, layouts, strict=True)]


def _replace_data(tensor: Tensor, new: Tensor) -> None:
    """Make `tensor` hold the data `new`, of another shape.

    Autograd expects gradients of the old shape as long as an earlier loss exists, as it does in most loops until the
    next one is computed; changing the dtype in between resets that.
    """
    tensor.grad = None
    if tensor.requires_grad:
        tensor.data = new.new_empty(0, dtype=torch.float32 if new.dtype == torch.float16 else torch.float16)
    tensor.data = new


def _cut_further(tensor: Tensor, layouts: list[Layout], before: Keep, after: Keep) -> Tensor:
    """`tensor`, cut to `before`, cut further to `after`, in the same memory format; itself if nothing is removed."""
    new = tensor
    for dim, layout in enumerate(layouts):
        old, left = axes.positions(layout, before), axes.positions(layout, after)
        if len(left) < len(old):
            new = new.index_select(dim, torch.searchsorted(old, left).to(tensor.device))
    return new if new is tensor else new.contiguous(memory_format=copies.memory_format(tensor, new))


def expand(graph: Graph, keep: Keep, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model cut to `keep` at full size: zeros in parameters, ones in buffers for removed units.

    Ones, because buffers (variances) are divided by; no kept unit reads them.
    """
    full = {}
    for name, tensor in tensors.items():
        for dim, layout in enumerate(graph.layouts[name]):
            length, at = axes.size(layout), axes.positions(layout, keep).to(tensor.device)
            if len(at) < length:
                shape = [length if d == dim else n for d, n in enumerate(tensor.shape)]
                empty = tensor.new_full(shape, 0 if name in graph.parameters else 1)
                tensor = empty.index_copy(dim, at, tensor.detach())
        full[name] = tensor.detach()
    return full
