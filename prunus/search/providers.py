"""Providers: they build the network of any widths, with weights.

    Inherit     cuts the trained network's own weights (as EagleEye does: Li et al., ECCV 2020, arXiv:2007.02491)
    ClosedForm  cuts them too, but fits the layers behind a cut to what the network answered (ours)

Networks are plain small modules; their norm statistics still have to be renewed (see trial.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph import Graph, trace
from prunus.refit import Moments
from prunus.search.space import Orders, Space, Widths
from prunus.surgery import checked_tensors, clone, effective_tensors, fresh, resize, slice_tensor


class Inherit:
    """A provider that cuts the weights of a trained model.

    Source: EagleEye, Li et al., ECCV 2020, arXiv:2007.02491.

    Args:
        model: The trained model; it is not changed.
        space: The space of widths.
        order: axis -> its units, best first (see `best_first`); None: in their own order.
    """

    def __init__(self, model: nn.Module, space: Space, order: Orders | None = None):
        self.model, self.space, self.order = model, space, order

    def keep(self, widths: Widths) -> dict[str, list[int]]:
        """The units that stay, by axis."""
        return self.space.keep(widths, self.order)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that all networks' weights depend on, by name."""
        return effective_tensors(self.model)

    def network(self, widths: Widths) -> nn.Module:
        """Build the network of these widths, a module of its own."""
        graph = self.space.graph
        return resize(self.model, graph, self.keep(widths), checked_tensors(self.model, graph))


class ClosedForm(Inherit):
    """A provider that cuts the weights of a trained model, fitted for each cut by least squares.

    Source: ours; see `prunus.refit.Moments`.

    Args:
        model: The trained model; it is not changed.
        space: The space of widths.
        batches: Inputs as the model takes them, from which the moments are gathered, once.
        order: axis -> its units, best first; None: in their own order.
    """

    def __init__(self, model: nn.Module, space: Space, batches: Iterable[Any], order: Orders | None = None):
        super().__init__(model, space, order)
        self.moments = Moments(model, space.graph, batches)

    def network(self, widths: Widths) -> nn.Module:
        """Build the network of these widths, a module of its own."""
        graph, keep = self.space.graph, self.keep(widths)
        tensors = checked_tensors(self.model, graph) | self.moments.weights(keep)
        return resize(self.model, graph, keep, tensors)


def reinitialise(small: nn.Module, example: Tensor, names: Sequence[str], seed: int) -> nn.Module:
    """Reinitialise a small model, in place, as suits its own widths.

    Args:
        small: The model.
        example: An input of it.
        names: The axes whose weights get variance 1 / fan_in; axes it lacks are ignored.
        seed: The seed of the weights.

    Returns:
        `small`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        graph = trace(small, example)
        fresh.reinitialise(small, graph, [name for name in names if name in graph.axes])
    return small


@torch.no_grad()
def scatter(model: nn.Module, graph: Graph, keep: Mapping[str, Sequence[int]], small: nn.Module) -> nn.Module:
    """Scatter a small model's tensors into a copy of the full-size one; the inverse of cutting.

    Args:
        model: The full-size model; it is not changed.
        graph: Its graph.
        keep: axis -> indices that stayed in `small`.
        small: The small model.

    Returns:
        A copy of `model` which, cut to `keep`, equals `small`.
    """
    found = {}
    for name, part in effective_tensors(small).items():
        whole = effective_tensors(model)[name].detach().clone(memory_format=torch.contiguous_format)
        places = torch.arange(whole.numel(), device=whole.device).view(whole.shape)
        whole.view(-1)[slice_tensor(places, graph.layouts[name], keep).reshape(-1)] = (
            part.detach().reshape(-1).to(whole)
        )
        found[name] = whole
    return clone(model, found)
