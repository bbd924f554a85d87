"""The variables of a choice: the units of each axis by itself, or the share that all axes of a tie keep.

A tie of axes is one variable. It is counted in parts: with 4 parts, and axes of 4 heads and of 32 features, a part is a
head and 8 features. Its scores are those of the axes' units together, the best of each axis first. Without ties, a part
is a unit of an axis.
Shapes: A axes, V variables, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, lcm

import torch
from torch import Tensor

from prunus.errors import BudgetError
from prunus.graph import Graph
from prunus.selection.fill import GRIDS, Price, _Limits, blocks

MOST_TRIES = 64  # of widths near those chosen that a config may not take

Ordered = Mapping[str, tuple[Tensor, Tensor]]  # axis -> its scores, falling, and the units that have them


@dataclass(frozen=True)
class Shares:
    """The variables of a choice.

    Args:
        graph: The graph of the model.
        names: For each variable the axes that it stands for.
        units: axis -> its units in one part of its variable.
        parts: The parts (V,) of each variable.
        held: axis -> the reason why it stays whole.
    """

    graph: Graph
    names: tuple[tuple[str, ...], ...]
    units: Mapping[str, int]
    parts: Tensor
    held: Mapping[str, str]

    @classmethod
    def of(cls, graph: Graph, uniform: bool) -> Shares:
        """Make the variables for a graph: its ties if `uniform`, otherwise each axis by itself."""
        ties = graph.ties if uniform else None
        tied = {name: tie for tie in ties.tied for name in tie.axes} if ties else {}
        names = list(dict.fromkeys(tied[name].axes if name in tied else (name,) for name in graph.axes))
        units = {
            name: axis.size // tied[name].parts if name in tied else 1 for name, axis in graph.axes.items()
        }
        parts = torch.tensor([graph.axes[first].size // units[first] for first, *_ in names])
        return cls(graph, tuple(names), units, parts.double(), ties.held if ties else {})

    def widths(self, parts: Tensor) -> Tensor:
        """The units (C, A) of all axes at some parts (C, V)."""
        if len(self.names) == len(self.units):
            return parts
        place = {name: i for i, names in enumerate(self.names) for name in names}
        each = torch.tensor(list(self.units.values()), dtype=parts.dtype, device=parts.device)
        return parts[:, [place[name] for name in self.graph.axes]] * each

    def by_axis(self, parts: Tensor) -> dict[str, int]:
        """The units of each axis at some parts (V,)."""
        return dict(zip(self.graph.axes, map(int, self.widths(parts[None])[0].tolist()), strict=True))

    def most(self, ordered: Ordered) -> Tensor:
        """The most parts (V,) of the units that may be chosen."""
        return torch.tensor(
            [min(len(ordered[n][1]) // self.units[n] for n in names) for names in self.names]
        ).double()

    def fewest(self, bounds: Mapping[str, tuple[int, str]]) -> tuple[Tensor, list[tuple[str, str]]]:
        """The fewest parts (V,) that keep the fewest units of each axis; each with the axis that needs it, and why."""
        least = []
        for names in self.names:
            found = [(-(-bounds[name][0] // self.units[name]), name, bounds[name][1]) for name in names]
            least.append(max(found, key=lambda each: each[0]))
        return torch.tensor([number for number, _, _ in least]), [(name, why) for _, name, why in least]

    def bounded(self, bounds: Mapping[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
        """The bounds by axis, in which the axes that are held stay whole."""
        return {
            name: (self.graph.axes[name].size, self.held[name]) if name in self.held else bound
            for name, bound in bounds.items()
        }

    def steps(self, by_axis: Tensor) -> Tensor:
        """The parts (V,) in whose multiples all axes change by multiples of their own steps (A,)."""
        step = dict(zip(self.graph.axes, by_axis.tolist(), strict=True))
        return torch.tensor(
            [lcm(*(step[n] // gcd(step[n], self.units[n]) for n in names)) for names in self.names]
        )

    def stops(
        self, widths: Mapping[str, Sequence[int]], fewest: Tensor, most: Tensor, least: Tensor
    ) -> list[Tensor]:
        """For each variable the parts at which it may stop, rising.

        Args:
            widths: axis -> the units that it may keep; any, for an axis that is not named.
            fewest: The fewest parts (V,).
            most: The most (V,), which are allowed anyway where they are the whole variable.
            least: The parts (V,) of which all numbers are multiples.

        Returns:
            Long tensors, none of them empty: where nothing else fits, a variable stays at the most.
        """
        found = []
        for i, names in enumerate(self.names):
            low, high, step = int(fewest[i]), int(most[i]), int(least[i])
            allowed = set(range(-(-low // step) * step, high + 1, step))
            for name in names:
                if name in widths:
                    allowed &= {n // self.units[name] for n in widths[name] if n % self.units[name] == 0}
            allowed |= {high} if high == int(self.parts[i]) or not allowed else set()
            found.append(torch.tensor(sorted(allowed)))
        return found

    def limits(
        self,
        price: Price,
        limit: float,
        fewest: Tensor,
        most: Tensor,
        round_to: int | None,
        widths: Mapping[str, Sequence[int]] | None,
    ) -> _Limits:
        """Find the range of the parts; its base may cost more than the limit.

        Args:
            price: price(parts (C, V)) -> costs (C,).
            limit: The most that they may cost.
            fewest: The fewest parts (V,).
            most: The most (V,).
            round_to: The number of which widths are multiples; None: the first of `GRIDS` with which the base is cheap
                enough.
            widths: axis -> the units that it may keep; None: any.

        Returns:
            The range.
        """
        least = self.steps(torch.tensor(list(self.graph.multiples.values())))
        if widths is not None:
            stops = self.stops(widths, fewest, most, least)
            base, top = (torch.stack([stop[i] for stop in stops]).double() for i in (0, -1))
            return _Limits(price, limit, base, top, least, least, stops)

        def on_grid(grid: int) -> _Limits:
            steps = self.steps(blocks(self.graph, grid, halve=round_to is None))
            base = torch.minimum(-(fewest // -steps) * steps, most)  # rounded up to whole blocks
            # a part of an axis ends with a whole block, too; only an axis that stays whole may have another width
            top = torch.where(most == self.parts, most, (most // steps * steps).maximum(base))
            return _Limits(price, limit, base, top, steps, least)

        first, *finer = (round_to,) if round_to else GRIDS
        found = on_grid(first)
        for grid in finer:
            if found.costs(found.base) <= limit:
                break
            found = on_grid(grid)
        return found

    def scores(self, ordered: Ordered) -> tuple[list[Tensor], list[Tensor]]:
        """For each variable the means of the scores in each part, and their sums; both fall."""
        means: list[Tensor] = []
        sums: list[Tensor] = []
        for names in self.names:
            if len(names) == 1 and self.units[names[0]] == 1:
                total = count = ordered[names[0]][0]
            else:
                each = [ordered[n][0] for n in names]
                parts = min(len(s) // self.units[n] for n, s in zip(names, each, strict=True))
                rows = [s[: parts * self.units[n]].view(parts, -1) for n, s in zip(names, each, strict=True)]
                joined = torch.cat(rows, 1)
                total, count = joined.sum(1), joined.mean(1)
            means.append(count)
            sums.append(total)
        return means, sums

    def sayable(self, parts: Tensor, least: Tensor, steps: Tensor) -> Tensor:
        """The parts (V,) nearest below some that the config of the model can say together.

        Args:
            parts: The parts chosen.
            least: The fewest of each.
            steps: The parts by which each should change.

        Returns:
            The parts, of which at most one is smaller.

        Raises:
            BudgetError: None near them is taken.
        """
        wrong = self.graph.misfits(self.by_axis(parts)) if self.held or self._has_ties else []
        if not wrong:
            return parts
        for step in dict.fromkeys((None, 1)):
            for i in self.parts.argsort(descending=True).tolist():
                each = float(steps[i]) if step is None else float(step)
                for number in range(1, MOST_TRIES + 1):
                    trial = parts.clone()
                    trial[i] -= number * each
                    if trial[i] < least[i]:
                        break
                    if not self.graph.misfits(self.by_axis(trial)):
                        return trial
        raise BudgetError(
            f"uniform=True: the model's config cannot say widths near those chosen: {wrong[0]} would be another when "
            "it is made again. Give another budget or round_to, or leave uniform out and save with prunus.save."
        )

    @property
    def _has_ties(self) -> bool:
        return len(self.names) < len(self.units)
