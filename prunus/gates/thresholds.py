"""What is left of a network if units below a threshold go: how many of each axis, at which cost.

The sizes of all units stand in one flat tensor, axis after axis, as gates do. An axis never counts fewer units than its
floor. Source: ours. Shapes: N units, G axes that may shrink here, A axes of the graph, C candidates.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prunus.graph import Graph
from prunus.selection import FREE, count_fitting

CANDIDATES = 256  # thresholds tried at once, at most


def soft_threshold(values: Tensor, amount: Tensor, least_size: Tensor) -> Tensor:
    """The argument of the least (v - values)^2 / 2 + amount |v|, elementwise; no smaller than `least_size`.

    The proximal operator of the L1 norm. least_size (ours): 0, or tiny for units that have to stay.
    """
    sizes = values.abs()
    return torch.copysign((sizes - amount).maximum(sizes.minimum(least_size)), values)


class Thresholds:
    """The units of some axes, in order, and what a network costs with those that are left.

    floors: axis -> the fewest units it keeps. price: widths (C, A) -> cost (C,).
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

    def counts(self, left: Tensor) -> Tensor:
        """(C, G): how many of the units (C, N) bool are left of each axis."""
        found = torch.zeros(len(left), len(self.floors), dtype=torch.long)
        return found.index_add_(1, self.owners, left.long()).maximum(self.floors)

    def shares(self, left: Tensor) -> Tensor:
        """(C,): what the network costs with the units (C, N) bool, as a share of before."""
        widths = self.sizes.repeat(len(left), 1)
        widths[:, self.columns] = self.counts(left).double()
        return self.price(widths) / self.before

    def at_share(self, sizes: Tensor, share: float) -> float:
        """The least threshold such that the network costs at most `share` with the units of a size (N,) above it."""
        candidates = torch.cat([sizes.new_zeros(1), sizes.sort().values])
        first, step = 0, len(candidates)  # the least one that fits is among the `step` from `first` on
        while step > 1:
            among = candidates[first : first + step]
            step = -(-step // CANDIDATES)
            tried = among[step - 1 :: step]
            fits = self.shares(sizes > tried[:, None]) <= share
            first += step * int((~fits).sum())
        return candidates[min(first, len(sizes))].item()

    def front(self, scores: Tensor, limit: float) -> Tensor:
        """(N,) bool: the units of the highest scores (N,), as many as the network can have for a cost of at most
        `limit`; the next one would be too much. Of equal scores the one further ahead counts as higher.

        As many of each axis as its floor come first, the best of it; they stay even where they cost too much already.
        """
        order = scores.argsort(descending=True, stable=True)
        floored = self._places(order) < self.floors[self.owners]
        base, beyond = self.sizes.clone(), order[~floored[order]]
        base[self.columns] = self.floors.double()
        queue = self.columns[self.owners[beyond]], torch.ones_like(beyond)
        taken = count_fitting(lambda widths: self.price(widths) <= limit, base, queue)
        return floored.index_fill(0, beyond[:taken], True)

    def unit_costs(self) -> Tensor:
        """(N,): what a unit costs, 1 on average; above 0 also where it is free (peak memory, away from the peak)."""
        each = self.before - self.price(self.sizes - torch.eye(len(self.sizes)))
        each = each.clamp_min(FREE * self.before)[self.columns][self.owners]
        return (each / each.mean()).float()

    def ranks(self, sizes: Tensor) -> Tensor:
        """(N,): the place of each unit in its axis by falling size (N,), the largest 0."""
        return self._places(sizes.argsort(descending=True, stable=True))

    def _places(self, order: Tensor) -> Tensor:
        """(N,): the place of each unit in its axis, if all units stand in this order (N,)."""
        order = order[self.owners[order].argsort(stable=True)]  # axis after axis, falling within each
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order)) - self.starts
        return ranks
