"""Widths as genes: which widths every axis may have, and the ways between genes, widths and a keep.

A gene is an index into the widths one axis may have, which rise and end with the whole axis. Networks go in and out
by the names of their axes, never by position; genes stay within a search. Axes that coupling joins are one axis in
the graph, so one gene is one independent width. Source: MetaPruning (Liu et al., ICCV 2019, arXiv:1903.10258).

Shapes: C candidates, A axes in the order of `graph.axes`, G genes, one for each axis that has a choice.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from prunus.errors import UserError, unknown
from prunus.graph import Graph
from prunus.selection import CAP, FLOOR, GRIDS, Bound, blocks, min_units

RATIOS = 31  # 0.10, 0.13, ... 1.00, the paper's
LEAST_RATIO = 0.1
NEAR = 1e-9  # products of floats may lie so far below the whole number they stand for

Widths = Mapping[str, int]  # axis -> units
Orders = Mapping[str, Sequence[int] | Tensor]  # axis -> its units, best first


class Space:
    """The widths a search chooses from. allowed: axis -> widths, rising, the last the whole axis.

    ratios: so many from `least_ratio` to 1, evenly; an axis of size s may have max(least, floor(s r / d) d) units, in
    whole numbers, d being its block (`selection.blocks`). None: every multiple of its block.
    round_to: widths are multiples of it in every tensor, or the whole axis. None: of 16, of less in narrow tensors.
    floor, cap, freeze: see `selection.min_units`. The paper truncates and has no floor: floor=0 gives its exact widths.
    Raises UserError if nothing is left to choose.
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
    ):
        if ratios is not None and (not isinstance(ratios, int) or ratios < 2):
            raise UserError(f"ratios {ratios!r}: expected a whole number from 2, or None for every width.")
        if not 0 <= least_ratio < 1:
            raise UserError(f"least_ratio {least_ratio!r}: expected a share from 0 to below 1.")
        self.graph = graph
        self.floor, self.cap, self.freeze = floor, cap, freeze
        self.least = {name: units for name, (units, _) in min_units(graph, floor, cap, freeze).items()}
        steps = blocks(graph, round_to or GRIDS[0], halve=round_to is None).tolist()
        shares = None if ratios is None else ladder(ratios, least_ratio)
        self.allowed = {
            name: _allowed(axis.size, self.least[name], step, shares)
            for (name, axis), step in zip(graph.axes.items(), steps, strict=True)
        }
        self.names = [name for name, widths in self.allowed.items() if len(widths) > 1]
        if not self.names:
            raise UserError("every axis is frozen, or has one width only: there is nothing to search for.")
        self.counts = np.array([len(self.allowed[name]) for name in self.names])  # (G,)
        self.columns = np.array([list(graph.axes).index(name) for name in self.names])  # (G,): their axes
        self.sizes = np.array([axis.size for axis in graph.axes.values()], dtype=np.float64)  # (A,)
        # (G, most): rows are filled up with what no width reaches
        self._table = np.full((len(self.names), self.counts.max()), np.inf)
        for row, name in zip(self._table, self.names, strict=True):
            row[: len(self.allowed[name])] = self.allowed[name]

    @property
    def whole(self) -> np.ndarray:
        """The genes (G,) of the network as it is."""
        return self.counts - 1

    def chosen(self, genes: np.ndarray) -> np.ndarray:
        """The widths (C, G) that genes (C, G) stand for, float64."""
        return self._table[np.arange(len(self.names)), genes]

    def batch(self, genes: np.ndarray) -> Tensor:
        """The widths (C, A) of all axes, float64, as `selection.Price` takes them."""
        widths = np.repeat(self.sizes[None], len(genes), 0)
        widths[:, self.columns] = self.chosen(genes)
        return torch.from_numpy(widths)

    def below(self, widths: np.ndarray) -> np.ndarray:
        """The genes (C, G) of the widest allowed that are no wider than `widths` (C, G); of the least where none is."""
        reached = (self._table <= widths[..., None] + NEAR).sum(-1)
        return np.maximum(reached - 1, 0)

    def widths(self, genes: np.ndarray) -> dict[str, int]:
        """Every axis' units by name, of one network's genes (G,). Plain data, to be stored as JSON."""
        found = {name: widths[-1] for name, widths in self.allowed.items()}
        for name, gene in zip(self.names, genes.tolist(), strict=True):
            found[name] = self.allowed[name][gene]
        return found

    def genes(self, widths: Widths) -> np.ndarray:
        """The genes (G,) of widths by name; axes left out are whole.

        Raises UserError for a name that is no axis, and a width the axis may not have, naming the nearest.
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
        """The genes (G,) of the widest network within `widths`, which may be any; axes left out are whole."""
        for name in widths:
            self._of(name)
        wanted = [widths.get(name, self.allowed[name][-1]) for name in self.names]
        return self.below(np.array(wanted, dtype=np.float64))

    def keep(self, widths: Widths, order: Orders | None = None) -> dict[str, list[int]]:
        """The units that stay, sorted, as `surgery.shrink` takes them: the first of each axis, as many as its width.

        order: axis -> its units, best first (see `best_first`); None: as they stand, the paper's way. Raises UserError
        if the widths are not of this search or an order does not fit.
        """
        self.genes(widths)
        kept = {}
        for name, allowed in self.allowed.items():
            size, units = allowed[-1], widths.get(name, allowed[-1])
            first = list(range(size)) if order is None else torch.as_tensor(order.get(name, [])).tolist()
            if len(first) != size or sorted(first) != list(range(size)):
                raise UserError(f"order of axis {name}: expected each unit from 0 to {size - 1} once.")
            kept[name] = sorted(first[:units])
        return kept

    def _of(self, name: str) -> tuple[int, ...]:
        if name not in self.allowed:
            raise unknown("axis", name, self.allowed)
        return self.allowed[name]


def best_first(graph: Graph, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The units of every axis by falling score, equal ones by rising unit, as `select` takes them.

    scores: axis -> (size,). Raises UserError if some are missing, NaN or infinite.
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
    """`count` ratios from the least to 1, evenly and exact: (10 + 3 k) / 100 for the paper's 31."""
    first = Fraction(str(least_ratio))
    return [first + (1 - first) * Fraction(k, count - 1) for k in range(count)]


def _allowed(size: int, units: int, step: int, shares: Sequence[Fraction] | None) -> tuple[int, ...]:
    """The widths of an axis that keeps `units` at least, in blocks of `step`."""
    low = min(-(-units // step) * step, size)
    if shares is None:
        return (*range(low, size, step), size)
    found = {max(low, size * share.numerator // share.denominator // step * step) for share in shares}
    return tuple(sorted({min(width, size) for width in found} | {size}))
