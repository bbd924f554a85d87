"""Where the weights of a search's networks come from: a provider makes the network of any widths.

    Inherit     cuts the trained network's own weights (as EagleEye does: Li et al., ECCV 2020, arXiv:2007.02491)

Networks come as ordinary small modules, made once; their norms are to be renewed (see candidates.py).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunus.graph import Graph, trace
from prunus.search.space import Orders, Space, Widths
from prunus.surgery import checked_tensors, clone, effective_tensors, fresh, resize, slice_tensor


class Inherit:
    """Cuts the weights of `model`, which stays as it is. order: which units of an axis stay, the best first (see
    `search.best_first`); None: the first."""

    def __init__(self, model: nn.Module, space: Space, order: Orders | None = None):
        self.model, self.space, self.order = model, space, order

    def keep(self, widths: Widths) -> dict[str, list[int]]:
        """The units that stay."""
        return self.space.keep(widths, self.order)

    def tensors(self) -> dict[str, Tensor]:
        """All that the weights of networks depend on, by name."""
        return effective_tensors(self.model)

    def network(self, widths: Widths) -> nn.Module:
        """A module of these widths, of its own."""
        graph = self.space.graph
        return resize(self.model, graph, self.keep(widths), checked_tensors(self.model, graph))


def drawn_anew(small: nn.Module, example: Tensor, names: Sequence[str], seed: int) -> nn.Module:
    """`small` without its training, in place: its weights drawn anew, for its own widths."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        graph = trace(small, example)
        fresh.reinitialise(small, graph, [name for name in names if name in graph.axes])
    return small


@torch.no_grad()
def put_back(
    model: nn.Module, graph: Graph, keep: Mapping[str, Sequence[int]], small: nn.Module
) -> nn.Module:
    """A copy of `model` which, cut by `keep`, is `small`: its tensors in their places, the rest as it was."""
    found = {}
    for name, part in effective_tensors(small).items():
        whole = effective_tensors(model)[name].detach().clone(memory_format=torch.contiguous_format)
        places = torch.arange(whole.numel(), device=whole.device).view(whole.shape)
        whole.view(-1)[slice_tensor(places, graph.layouts[name], keep).reshape(-1)] = (
            part.detach().reshape(-1).to(whole)
        )
        found[name] = whole
    return clone(model, found)
