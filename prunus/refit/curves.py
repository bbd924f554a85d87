"""Sensitivity curves: how much of what reads an axis is left unexplained, by the number of units that it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

TIE = 1e-9  # of a score for each place in the order, so that equal scores keep the order; float32 does not see it


@dataclass(frozen=True)
class Curve:
    """The curve of one axis, with the other axes whole.

    Args:
        order: The units; the one that stays longest first.
        losses: (size + 1,), float64: for the first 0, 1, ... units of the order the shares (0 to 1) of their output
            that the products which read the axis leave unexplained, summed over these products; or the same of the
            model's answer, if it was measured (see `in_answers`).
        products: The number of these products; 1 for the answer.
    """

    order: list[int]
    losses: Tensor
    products: int

    def unexplained(self, units: int) -> float:
        """The share of the outputs left unexplained with a number of units, as the mean over the products."""
        return float(self.losses[units]) / self.products

    def scores(self, worths: Tensor | None = None) -> Tensor:
        """Compute a score for each unit, higher means keep; the first k units of the order have the k highest.

        Args:
            worths: Numbers (size,) of which the first unit of the order gets the highest, and so on; None: what each
                unit takes off the loss under the curve's largest convex minorant, so that the first k units leave out
                the sum of the other scores.

        Returns:
            (size,), float64.
        """
        falling = (
            _convex(self.losses).diff().neg()
            if worths is None
            else worths.double().cpu().sort(descending=True)[0]
        )
        scores = torch.empty_like(falling)
        scores[self.order] = falling * (1 - TIE * torch.arange(len(falling)))
        return scores


@dataclass(frozen=True)
class Curves:
    """The sensitivity curves of a model.

    Args:
        axes: The curves, by axis.
        left: The axes without one, with the reason.
    """

    axes: dict[str, Curve] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def scores(self, worths: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Compute the scores of the units of each axis that has a curve.

        Args:
            worths: What the units are worth, by axis, see `Curve.scores`; None: what they take off the losses.

        Returns:
            axis -> (size,), float64; higher means keep.
        """
        return {name: curve.scores(worths[name] if worths else None) for name, curve in self.axes.items()}


def _convex(losses: Tensor) -> Tensor:
    """The largest convex function that is nowhere above `losses` (n,)."""
    values, hull = losses.tolist(), [0]
    for new in range(1, len(values)):
        while len(hull) > 1:
            a, b = hull[-2:]
            if (values[b] - values[a]) * (new - b) <= (values[new] - values[b]) * (b - a):
                break
            hull.pop()
        hull.append(new)
    found = losses.clone()
    for a, b in pairwise(hull):
        found[a : b + 1] = torch.linspace(values[a], values[b], b - a + 1, dtype=losses.dtype)
    return found
