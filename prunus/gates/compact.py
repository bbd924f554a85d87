"""Cut a model to fewer units in place, while it is being trained; and bring it back to full size.

Parameters stay the same objects and take smaller data, so an optimiser, a scheduler or a wrapper that holds them goes
on; what the optimiser remembers of them is cut with the same indices. Units are named as in the graph of the model
at full size, whatever is left of it. Source: ours.
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
from prunus.graph import Graph, Keep, Layout, axes, make_skeleton, set_attributes, skeleton
from prunus.surgery import copies, lists_of


class Compacted:
    """A model that is cut in place while it is being trained. kept: what it has been cut to, axis -> units."""

    def __init__(self, model: nn.Module, graph: Graph):
        self.model, self.graph = model, graph
        self.like = make_skeleton(model)
        self.kept: dict[str, list[int]] = {}

    def left(self, axis: str) -> Tensor:
        """The units of an axis that are still there, int64, ascending."""
        return torch.tensor(self.kept.get(axis, range(self.graph.axes[axis].size)))

    def cut(self, keep: Keep, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Cut to `keep`, gates and the optimiser's state along with the weights; see `cut`."""
        keep = {**self.kept, **self.graph.check_keep(keep)}
        if all(units == self.left(name).tolist() for name, units in keep.items()):
            return
        cut(self.model, self.graph, self.kept, keep, like=self.like, optimizer=optimizer)
        self.kept = keep

    @torch.no_grad()
    def full(self) -> nn.Module:
        """A copy of the original's shapes with the weights of now: zeros, in buffers ones, where units are gone."""
        full = copies.clone(self.model, expanded(self.graph, self.kept, copies.effective(self.model)))
        set_attributes(full, self.graph.attributes, self.graph.widths())
        copies.describe(self.model, full)
        return full


def can_be_cut(model: nn.Module) -> bool:
    """Whether weights can become smaller during training: not behind weight_norm and the like, nor in several
    processes, whose wrapper knows their sizes."""
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
    """Cut `model`, in place, from the units in `before` to those in `after`, which are among them; gates follow.

    like: the model at full size, or its skeleton, from which layers' statements of their sizes follow.
    optimizer: its state is cut too, where it has the parameter's dimensions, or 1 in their place. Gradients are
    dropped.
    Raises UserError if a unit of `after` is gone already, a weight stands behind another parametrisation
    (weight_norm), whose own tensors cannot be cut, or the optimiser's state does not follow; then nothing is changed.
    """
    before, after = graph.check_keep(before), graph.check_keep({**before, **after})
    for name, units in before.items():
        gone = sorted(set(after[name]) - set(units))
        if gone:
            raise UserError(f"axis {name} has lost units {gone[:5]} already; they cannot be kept.")
    states = optimizer.state if optimizer else {}
    smaller = []
    for name, tensor in _behind(model, graph).items():
        layouts = graph.layouts[name]
        new = _recut(tensor.data, layouts, before, after)
        if new.shape != tensor.shape:
            state = {
                key: _recut(
                    value, _layouts_of_state(value, tensor, layouts, f"{key} of {name}"), before, after
                )
                for key, value in states.get(tensor, {}).items()
                if isinstance(value, Tensor) and value.numel() > 1
            }
            smaller.append((tensor, new, state))
    for tensor, new, state in smaller:
        _exchange(tensor, new)
        if state:
            states[tensor].update(state)
    gates.replace_places(model, graph, after)
    set_attributes(model, graph.attributes, graph.widths(after))
    copies.describe(like, model)


def _behind(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """The tensors that hold the values, by the graph's names: a step's parameter for what it computes."""
    own = skeleton.named_tensors(model)
    found = {name: tensor for name, tensor in own.items() if name in graph.layouts}
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for attribute, held in lists_of(module).items():
                name = f"{path}.{attribute}" if path else attribute
                if name in graph.layouts:
                    steps = cast(parametrize.ParametrizationList, held)
                    others = [type(step).__name__ for step in steps if type(step) is not Gate]
                    if others:
                        raise UserError(
                            f"{name} stands behind {', '.join(others)}, which cannot be cut while it is trained; make "
                            "it plain first (torch's remove_parametrizations)."
                        )
                    found[name] = steps.original
    return found


def _layouts_of_state(value: Tensor, parameter: Tensor, layouts: list[Layout], what: str) -> list[Layout]:
    """The layout of each dimension of an optimiser's tensor: that of the parameter, or 1 where it holds but one."""
    sizes = list(zip(value.shape, parameter.shape, strict=False))
    if value.dim() != parameter.dim() or any(own not in (1, size) for own, size in sizes):
        raise UserError(
            f"the optimiser's {what} has shape {tuple(value.shape)}, which does not follow the parameter's "
            f"{tuple(parameter.shape)}; take another optimiser, or do not cut while it is in use (compact=False)."
        )
    return [1 if n == 1 else layout for n, layout in zip(value.shape, layouts, strict=True)]


def _exchange(tensor: Tensor, new: Tensor) -> None:
    """Let `tensor` hold the data `new`, of another shape.

    Autograd would go on expecting gradients of the old shape as long as a loss of before is alive, as it is in most
    loops until the next one is there; it forgets where the type changes.
    """
    tensor.grad = None
    if tensor.requires_grad:
        tensor.data = new.new_empty(0, dtype=torch.float32 if new.dtype == torch.float16 else torch.float16)
    tensor.data = new


def _recut(tensor: Tensor, layouts: list[Layout], before: Keep, after: Keep) -> Tensor:
    """`tensor` as of `before` cut to `after`, laid out in memory as it was; itself where nothing goes."""
    new = tensor
    for dim, layout in enumerate(layouts):
        old, left = axes.positions(layout, before), axes.positions(layout, after)
        if len(left) < len(old):
            new = new.index_select(dim, torch.searchsorted(old, left).to(tensor.device))
    return new if new is tensor else new.contiguous(memory_format=copies.memory_format(tensor, new))


def expanded(graph: Graph, keep: Keep, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` of the model as of `keep` at full size: zeros in parameters and ones in buffers where units are gone.

    Ones, for buffers are divided by; nothing that is kept reads them.
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
