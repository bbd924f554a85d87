"""The units above a threshold: how many each axis has, and what the network costs with them.

The sizes of all units are one flat tensor, axis after axis, as gates are. An axis never counts fewer units than its
floor. Source: ours. Shapes: N units, G axes that may shrink here, A axes of the graph, C candidates.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prunus.graph import Graph
from prunus.selection import FREE, count_fitting

CANDIDATES = 256  # thresholds evaluated in one batch, at most


def soft_threshold(values: Tensor, amount: Tensor, least_size: Tensor) -> Tensor:
    """Shrink values towards zero: the proximal operator of the L1 norm, argmin_v (v - values)^2 / 2 + amount |v|.

    Args:
        values: (N,).
        amount: (N,), how much each shrinks, not negative.
        least_size: (N,), the least absolute value: 0, or tiny for units that have to stay (ours).

    Returns:
        (N,), the shrunk values, with the signs of `values`.
    """
    sizes = values.abs()
    return torch.copysign((sizes - amount).maximum(sizes.minimum(least_size)), values)


class Thresholds:
    """The units of some axes, in order, and what a network costs with some of them.

    Args:
        graph: The graph of the model.
        floors: axis -> the fewest units it keeps.
        price: price(widths (C, A)) -> cost (C,).
    """

    def __init__(self, graph: Graph, floors: Mapping[str, int], price: Callable[[Tensor], Tensor]):
        names = list(graph.axes)
        lengths = torch.tensor([graph.axes[name].size for name in floors])
        self.price = price
        self.floors = torch.tensor(list(floors.values()))
        self.owners = torch.arange(len(lengths)).repeat_interleave(lengths)  # (N,): the axis of each unit
        self.starts = (lengths.cumsum(0) - lengths)[self.owners]
        self.columns = torch.tensor([names.index(name) for name in floors])
        self.sizes = torch.tensor([axis.size for axis in graph.axes.values()], dtype=torch.float64)
        self.before = price(self.sizes[None]).item()

    def counts(self, kept: Tensor) -> Tensor:
        """(C, G): how many of the units (C, N) bool each axis has."""
        found = torch.zeros(len(kept), len(self.floors), dtype=torch.long)
        return found.index_add_(1, self.owners, kept.long()).maximum(self.floors)

    def shares(self, kept: Tensor) -> Tensor:
        """(C,): the cost of the network with the units (C, N) bool, as a share of the original's."""
        widths = self.sizes.repeat(len(kept), 1)
        widths[:, self.columns] = self.counts(kept).double()
        return self.price(widths) / self.before

    def threshold_at(self, sizes: Tensor, share: float) -> float:
        """The lowest threshold such that the network with the units of larger size (N,) costs at most `share`."""
        candidates = torch.cat([sizes.new_zeros(1), sizes.sort().values])
        first, step = 0, len(candidates)  # the lowest one that fits is among the `step` from `first` on
        while step > 1:
            among = candidates[first : first + step]
            step = -(-step // CANDIDATES)
            tried = among[step - 1 :: step]
            fits = self.shares(sizes > tried[:, None]) <= share
            first += step * int((~fits).sum())
        return candidates[min(first, len(sizes))].item()

    def keep_best(self, scores: Tensor, limit: float) -> Tensor:
        """(N,) bool: the units of the highest scores (N,), as many as fit into a cost of at most `limit`.

        The best units of each axis, as many as its floor, come first, even if they already cost too much. Among
        equal scores the earlier unit counts as higher.
        """
        order = scores.argsort(descending=True, stable=True)
        floored = self._places(order) < self.floors[self.owners]
        base, beyond = self.sizes.clone(), order[~floored[order]]
        base[self.columns] = self.floors.double()
        queue = self.columns[self.owners[beyond]], torch.ones_like(beyond)
        taken = count_fitting(lambda widths: self.price(widths) <= limit, base, queue)
        return floored.index_fill(0, beyond[:taken], True)

    def unit_costs(self) -> Tensor:
        """(N,): the cost of each unit, 1 on average; above 0 even if it is free (peak memory, away from the peak)."""
        each = self.before - self.price(self.sizes - torch.eye(len(self.sizes)))
        each = each.clamp_min(FREE * self.before)[self.columns][self.owners]
        return (each / each.mean()).float()

    def ranks(self, sizes: Tensor) -> Tensor:
        """(N,): the rank of each unit in its axis by falling size (N,); the largest has rank 0."""
        return self._places(sizes.argsort(descending=True, stable=True))

    def _places(self, order: Tensor) -> Tensor:
        """(N,): the rank of each unit in its axis, given an order (N,) of all units."""
        order = order[self.owners[order].argsort(stable=True)]  # axis after axis, falling within each
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order)) - self.starts
        return ranks
