"""Widths as genes: the widths every axis may have, and conversions between genes, widths and a keep.

A gene is an index into the allowed widths of one axis, which rise and end with the whole axis. Users see networks as
widths by the names of axes; genes are internal to a search. Coupled dimensions are one axis of the graph, so genes
are independent. Source: MetaPruning (Liu et al., ICCV 2019, arXiv:1903.10258).

Shapes: C candidates, A axes in the order of `graph.axes`, G genes, one for each axis that has a choice.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from prunus.errors import UserError, unknown
from prunus.graph import Graph
from prunus.options import Count, Range, check_value
from prunus.selection import CAP, FLOOR, GRIDS, Bound, blocks, min_units

RATIOS = 31  # 0.10, 0.13, ... 1.00, the paper's
LEAST_RATIO = 0.1
NEAR = 1e-9  # rounding error: a product of floats may be this much below the whole number it stands for

Widths = Mapping[str, int]  # axis -> units
Ratios = Annotated[int, Range(2)]
LeastRatio = Annotated[float, Range(0, 1, below=True)]
Orders = Mapping[str, Sequence[int] | Tensor]  # axis -> its units, best first


class Space:
    """The widths that a search chooses from; `allowed` maps each axis to its widths, rising to the whole axis.

    The paper truncates and has no floor; floor=0 gives exactly its widths.

    Args:
        graph: The graph of the model.
        ratios: How many ratios r, evenly spaced from `least_ratio` to 1; an axis of size s may have
            max(least, floor(s r / d) d) units, where d is its block (`selection.blocks`). None: every multiple of d.
        least_ratio: The lowest ratio, from 0 to below 1.
        round_to: Widths are multiples of it in every tensor, or the whole axis; None: of 16, less in narrow tensors.
        floor: The fewest units of each axis, see `selection.min_units`.
        cap: The largest share of an axis that may be removed, see `selection.min_units`.
        freeze: Axes that stay whole.
        only: The axes that may shrink; see `selection.min_units`.

    Raises:
        UserError: `ratios` or `least_ratio` is out of range, or no axis has a choice.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        ratios: int | None = RATIOS,
        least_ratio: float = LEAST_RATIO,
        round_to: int | None = 1,
        floor: Bound = FLOOR,
        cap: Bound = CAP,
        freeze: Sequence[str] = (),
        only: Sequence[str] = (),
    ):
        check_value("ratios", ratios, Ratios | None)
        check_value("least_ratio", least_ratio, LeastRatio)
        check_value("round_to", round_to, Count | None)
        self.graph = graph
        self.floor, self.cap, self.freeze, self.only = floor, cap, freeze, only
        self.least = {name: units for name, (units, _) in min_units(graph, floor, cap, freeze, only).items()}
        steps = blocks(graph, round_to or GRIDS[0], halve=round_to is None).tolist()
        shares = None if ratios is None else ladder(ratios, least_ratio)
        self.allowed = {
            name: _allowed(axis.size, self.least[name], step, shares)
            for (name, axis), step in zip(graph.axes.items(), steps, strict=True)
        }
        self.names = [name for name, widths in self.allowed.items() if len(widths) > 1]
        if not self.names:
            raise UserError(
                "every axis is frozen or has one width only, so there is nothing to search for; freeze less, or give "
                "a lower floor or more ratios."
            )
        self.counts = np.array([len(self.allowed[name]) for name in self.names])  # (G,)
        self.columns = np.array(
            [list(graph.axes).index(name) for name in self.names]
        )  # (G,): indices of axes
        self.sizes = np.array([axis.size for axis in graph.axes.values()], dtype=np.float64)  # (A,)
        # (G, most widths): short rows are padded with infinity, which no width reaches
        self._table = np.full((len(self.names), self.counts.max()), np.inf)
        for row, name in zip(self._table, self.names, strict=True):
            row[: len(self.allowed[name])] = self.allowed[name]

    @property
    def whole(self) -> np.ndarray:
        """The genes (G,) of the network as it is."""
        return self.counts - 1

    def gene_widths(self, genes: np.ndarray) -> np.ndarray:
        """The widths (C, G) of genes (C, G), float64."""
        return self._table[np.arange(len(self.names)), genes]

    def batch(self, genes: np.ndarray) -> Tensor:
        """The widths (C, A) of all axes, float64, as a `selection.Price` takes them."""
        widths = np.repeat(self.sizes[None], len(genes), 0)
        widths[:, self.columns] = self.gene_widths(genes)
        return torch.from_numpy(widths)

    def below(self, widths: np.ndarray) -> np.ndarray:
        """The genes (C, G) of the largest allowed widths up to `widths` (C, G), or of the least if none is so small."""
        reached = (self._table <= widths[..., None] + NEAR).sum(-1)
        return np.maximum(reached - 1, 0)

    def widths(self, genes: np.ndarray) -> dict[str, int]:
        """The widths of a network.

        Args:
            genes: (G,), its genes.

        Returns:
            {axis: units} of all axes, plain JSON.
        """
        found = {name: widths[-1] for name, widths in self.allowed.items()}
        for name, gene in zip(self.names, genes.tolist(), strict=True):
            found[name] = self.allowed[name][gene]
        return found

    def genes(self, widths: Widths) -> np.ndarray:
        """The genes of a network.

        Args:
            widths: axis -> units; axes left out are whole.

        Returns:
            (G,), its genes.

        Raises:
            UserError: A name is not an axis, or a width is not allowed; the message names the nearest.
        """
        for name, units in widths.items():
            allowed = self._of(name)
            if units not in allowed:
                near = sorted(sorted(allowed, key=lambda each: abs(each - units))[:2])
                raise UserError(
                    f"axis {name} may not have {units} units in this search; nearest: {near}, whole: {allowed[-1]}."
                )
        places = [self.allowed[name].index(widths.get(name, self.allowed[name][-1])) for name in self.names]
        return np.array(places)

    def nearest_below(self, widths: Widths) -> np.ndarray:
        """The genes (G,) of the widest allowed network within any `widths`; axes left out are whole."""
        for name in widths:
            self._of(name)
        wanted = [widths.get(name, self.allowed[name][-1]) for name in self.names]
        return self.below(np.array(wanted, dtype=np.float64))

    def keep(self, widths: Widths, order: Orders | None = None) -> dict[str, list[int]]:
        """The keep of a network: the first units of each axis, as many as its width.

        Args:
            widths: axis -> units; axes left out are whole.
            order: axis -> its units, best first (see `best_first`); None: in their own order, as in the paper.

        Returns:
            {axis: sorted indices that stay}, as `shrink` takes it.

        Raises:
            UserError: The widths are not of this space, or an order is not a permutation of an axis.
        """
        self.genes(widths)
        kept = {}
        for name, allowed in self.allowed.items():
            size, units = allowed[-1], widths.get(name, allowed[-1])
            first = list(range(size)) if order is None else torch.as_tensor(order.get(name, [])).tolist()
            if len(first) != size or sorted(first) != list(range(size)):
                raise UserError(
                    f"order of axis {name}: expected each unit from 0 to {size - 1} once, got {first[:5]}."
                )
            kept[name] = sorted(first[:units])
        return kept

    def _of(self, name: str) -> tuple[int, ...]:
        if name not in self.allowed:
            raise unknown("axis", name, self.allowed)
        return self.allowed[name]


def best_first(graph: Graph, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Order the units of every axis by falling score, equal ones by rising index, as `select` takes them.

    Args:
        graph: The graph of the model.
        scores: axis -> (size,).

    Returns:
        {axis: int64 (size,)}, its units, best first.

    Raises:
        UserError: Scores are missing, NaN or infinite.
    """
    order = {}
    for name, axis in graph.axes.items():
        score = scores.get(name, torch.empty(0)).detach().double().cpu()
        if score.shape != (axis.size,) or not score.isfinite().all():
            finite = int(score.isfinite().sum())
            raise UserError(
                f"scores of axis {name}: expected {axis.size} finite numbers, got {finite} of {len(score)}."
            )
        order[name] = score.sort(descending=True, stable=True).indices
    return order


def ladder(count: int, least_ratio: float = LEAST_RATIO) -> list[Fraction]:
    """`count` evenly spaced exact ratios from the least to 1; for the paper's 31, (10 + 3 k) / 100."""
    first = Fraction(str(least_ratio))
    return [first + (1 - first) * Fraction(k, count - 1) for k in range(count)]


def _allowed(size: int, units: int, step: int, shares: Sequence[Fraction] | None) -> tuple[int, ...]:
    """The allowed widths of an axis that keeps at least `units`, in blocks of `step`."""
    low = min(-(-units // step) * step, size)
    if shares is None:
        return (*range(low, size, step), size)
    found = {max(low, size * share.numerator // share.denominator // step * step) for share in shares}
    return tuple(sorted({min(width, size) for width in found} | {size}))
