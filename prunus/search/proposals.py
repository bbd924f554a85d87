"""Networks within a budget: what they cost, and how to come by new ones.

What is drawn, mutated or crossed seldom meets a budget: of random networks one in two thousand, or none at all. So each
is mended: all its widths are scaled by one factor, the largest that fits, and then single widths rise by a step until
the cost is just below the limit, where the best networks are. Everything is counted, nothing waits for luck.
Source: ours; strict rejection and the operators are MetaPruning's (Liu et al., ICCV 2019, arXiv:1903.10258).

Shapes: C candidates, P parents, A axes, G genes.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from prunus.search.space import Space, Widths
from prunus.selection import Budget, Price, price_of, select

WINDOW = 0.97  # of the limit: quality rises with cost, so what is far below it is not worth a look
HALVINGS = 24  # of the range a factor lies in: finer than widths
ROUNDS = 10  # of drawing, until what is missing of a generation stays missing
STRICT_ROUNDS, STRICT_DRAWS = 100, 10_000  # a million networks
NUMBERS = 1 << 22  # of widths in one query
FINE = 31  # widths of an axis: of one with more, a step is longer

Draw = Callable[[int, np.random.Generator], np.ndarray]  # how many -> genes (C, G)


class Room:
    """A space, and the part of it that a budget allows.

    before, limit: costs in the budget's unit. price: what widths cost, if not by `selection.price_of`. strict: reject
    what costs too much, and mend nothing. missing, drawn: networks that could not be found, and all that were drawn.
    Raises BudgetError: the budget is above the original, or below the least that can be reached.
    """

    def __init__(self, space: Space, budget: Budget, *, price: Price | None = None, strict: bool = False):
        self.space, self.strict = space, strict
        self.price = price or price_of(space.graph, budget)
        self.before = self.costs(space.whole[None]).item()
        self.limit = budget.limit(self.before)
        self.least = self.costs(np.zeros_like(space.whole)[None]).item()
        if self.least > self.limit:
            self._refuse(budget)
        self.missing = self.drawn = 0
        self._seen: set[bytes] = set()

    def costs(self, genes: np.ndarray) -> np.ndarray:
        """What networks cost (C,), of their genes (C, G)."""
        with torch.no_grad():
            return self.price(self.space.batch(genes)).double().cpu().numpy()

    def uniform(self) -> np.ndarray:
        """The genes (G,) of the network with the same share of every axis, as much as the budget allows.

        The widths are a ladder, so the same share may leave much over: then the narrowest axes get a step more.
        """
        scaled = self._scaled(self.space.whole[None])

        def narrowest(genes: np.ndarray) -> np.ndarray:
            return -self.space.chosen(genes) / self.space.sizes[self.space.columns]

        return self._raised(scaled, narrowest)[0]

    def mended(self, genes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Networks (C, G) whose costs lie in the window, or as near below the limit as single steps come."""
        genes, costs = genes.copy(), self.costs(genes)
        outside = (costs > self.limit) | (costs < WINDOW * self.limit)
        if outside.any():
            scaled = self._scaled(genes[outside])
            genes[outside] = self._raised(scaled, lambda each: rng.random(each.shape))
        return genes

    def fresh(self, draw: Draw, count: int, rng: np.random.Generator) -> list[np.ndarray]:
        """`count` networks (G,) within the budget that were never given before; fewer where few are left."""
        found: list[np.ndarray] = []
        for _ in range(ROUNDS):
            found += self._unseen(self._admitted(draw(count, rng), rng), count - len(found))
            if len(found) == count:
                break
        return found

    def random(self, count: int, rng: np.random.Generator) -> list[np.ndarray]:
        """As `fresh`, of networks each of whose widths is drawn by itself."""
        draw = partial(drawn, self.space.counts)
        found = [] if self.strict else self.fresh(draw, count, rng)
        for _ in range(STRICT_ROUNDS if self.strict else 0):
            if len(found) == count:
                break
            found += self._unseen(self._admitted(draw(STRICT_DRAWS, rng), rng), count - len(found))
        self.missing += count - len(found)
        return found

    def claim(self, genes: np.ndarray) -> bool:
        """Whether a network (G,) was not given before; from now on it was."""
        key = genes.tobytes()
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _admitted(self, genes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.drawn += len(genes)
        return genes[self.costs(genes) <= self.limit] if self.strict else self.mended(genes, rng)

    def _unseen(self, genes: np.ndarray, most: int) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for row in genes:
            if len(found) < most and self.claim(row):
                found.append(row)
        return found

    def _scaled(self, genes: np.ndarray) -> np.ndarray:
        """Each network (C, G) times the largest factor that fits."""
        widths = self.space.chosen(genes)
        low = np.zeros(len(genes))
        high = 2 * (self.space.sizes[self.space.columns] / widths).max(1)  # with the half of it all are whole
        best = np.zeros_like(genes)  # the least, which fits
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            trial = self.space.below(widths * middle[:, None])
            fits = self.costs(trial) <= self.limit
            best[fits] = trial[fits]
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        return best

    def _raised(self, genes: np.ndarray, wish: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Networks (C, G), each with one gene after another a step higher until its cost lies in the window.

        Of the steps that fit, the one with the highest `wish` (C, G) is made. What no step fits stays as it is.
        """
        part = max(1, NUMBERS // (len(self.space.names) * len(self.space.sizes)))
        parts = [genes[start : start + part].copy() for start in range(0, len(genes), part)]
        steps = np.eye(len(self.space.names), dtype=genes.dtype)
        for some in parts:
            low = np.flatnonzero(self.costs(some) < WINDOW * self.limit)
            while len(low):
                here = some[low]
                fits = here < self.space.whole  # (C, G): where a step is possible, then where it fits
                costs = np.full(here.shape, np.inf)
                costs[fits] = self.costs((here[:, None] + steps)[fits])
                fits &= costs <= self.limit
                best = np.where(fits, wish(here), -np.inf).argmax(1)
                chosen = np.arange(len(low)), best
                some[low, best] += fits[chosen]
                low = low[fits[chosen] & (costs[chosen] < WINDOW * self.limit)]
        return np.concatenate(parts)

    def _refuse(self, budget: Budget) -> None:
        """Let the selection say what holds the budget up; what the ladder of widths leaves is a floor to it."""
        space = self.space
        lowest = {name: widths[0] for name, widths in space.allowed.items() if widths[0] > space.least[name]}
        rules = space.floor if isinstance(space.floor, dict) else {"*": space.floor}
        zeros = {name: torch.zeros(axis.size) for name, axis in space.graph.axes.items()}
        limits = {"floor": rules | lowest, "cap": space.cap, "freeze": space.freeze}
        select(space.graph, zeros, budget, price=self.price, round_to=1, **limits)
        raise AssertionError("the least that may be kept is above the limit")


# ---------------------------------------------------------------------------------- operators
def drawn(counts: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Genes (C, G), each of its `counts` (G,) as likely as the others."""
    return rng.integers(0, counts, size=(count, len(counts)))


def mutated(
    parents: np.ndarray, counts: np.ndarray, chance: float, steps: float, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Children (C, G) of parents (P, G), each of one, each gene changed with a `chance`, one at the least.

    A share `steps` of the children moves by 1 to 3 steps up or down; the others, the paper's, to any other width.
    """
    children = parents[rng.integers(len(parents), size=count)]
    changes = rng.random(children.shape) < chance
    changes[np.arange(count), rng.integers(children.shape[1], size=count)] |= ~changes.any(1)
    anywhere = (children + rng.integers(1, counts, size=children.shape)) % counts
    far = rng.integers(1, 4, size=children.shape) * np.maximum(1, (counts - 1) // (FINE - 1))
    far *= rng.choice([-1, 1], size=children.shape)
    turned = (children + far < 0) | (children + far >= counts)  # there is no way on at the end
    near = np.clip(np.where(turned, children - far, children + far), 0, counts - 1)
    stepping = rng.random(count) < steps
    return np.where(changes, np.where(stepping[:, None], near, anywhere), children)


def crossed(parents: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Children (C, G), each gene from either of two different parents (P, G) with equal chance."""
    first = rng.integers(len(parents), size=count)
    second = (first + rng.integers(1, len(parents), size=count)) % len(parents)
    return np.where(rng.random((count, parents.shape[1])) < 0.5, parents[first], parents[second])


def nearest(room: Room, widths: Widths, rng: np.random.Generator) -> np.ndarray:
    """The genes (G,) of a network of the user's own, such as one that `select` found, mended to the budget."""
    return room.mended(room.space.nearest_below(widths)[None], rng)[0]
