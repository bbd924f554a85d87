"""Networks within a budget: their costs, and how new ones are made.

Networks that are sampled, mutated or crossed seldom meet a budget: one random network in two thousand, or none. So
each is mended: all its widths are scaled by the largest factor that fits, then single widths rise by one step until
the cost is just below the limit, where the best networks are. The number of steps is bounded.
Source: ours; strict rejection and the operators are MetaPruning's (Liu et al., ICCV 2019, arXiv:1903.10258).

Shapes: C candidates, P parents, A axes, G genes.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from prunus.search.space import Space, Widths
from prunus.selection import Budget, Price, price_of, select

WINDOW = (
    0.97  # of the limit: quality rises with cost, so networks far below the limit are not worth evaluating
)
HALVINGS = 24  # of the range of the factor: finer than widths
ROUNDS = 10  # of sampling, before a generation stays incomplete
STRICT_ROUNDS, STRICT_SAMPLES = 100, 10_000  # a million networks
NUMBERS = 1 << 22  # widths in one query of costs
FINE = 31  # widths of an axis; with more, a mutation's step is longer

Sampler = Callable[[int, np.random.Generator], np.ndarray]  # sampler(count, rng) -> genes (C, G)


class Feasible:
    """The part of a space that a budget allows.

    `before` and `limit` are costs in the budget's unit; `sampled` counts all networks that were sampled, `missing`
    those that could not be found.

    Args:
        space: The space.
        budget: The budget.
        price: price(widths (C, A)) -> cost (C,); None: `selection.price_of`.
        strict: Reject networks that cost too much, and do not mend any, as in the paper.

    Raises:
        BudgetError: The budget is above the original's cost, or below the least that can be reached.
    """

    def __init__(self, space: Space, budget: Budget, *, price: Price | None = None, strict: bool = False):
        self.space, self.strict = space, strict
        self.price = price or price_of(space.graph, budget)
        self.before = self.costs(space.whole[None]).item()
        self.limit = budget.limit(self.before)
        self.least = self.costs(np.zeros_like(space.whole)[None]).item()
        if self.least > self.limit:
            self._refuse(budget)
        self.missing = self.sampled = 0
        self._seen: set[bytes] = set()

    def costs(self, genes: np.ndarray) -> np.ndarray:
        """The costs (C,) of networks with genes (C, G)."""
        with torch.no_grad():
            return self.price(self.space.batch(genes)).double().cpu().numpy()

    def uniform(self) -> np.ndarray:
        """The genes (G,) of the network with the same share of every axis, the largest that the budget allows.

        Widths are discrete, so the same share may leave some of the budget unused; the narrowest axes then get one
        step more.
        """
        scaled = self._scale(self.space.whole[None])

        def narrowest(genes: np.ndarray) -> np.ndarray:
            return -self.space.gene_widths(genes) / self.space.sizes[self.space.columns]

        return self._raise_widths(scaled, narrowest)[0]

    def mend(self, genes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change networks (C, G) so that their costs are in the window, or as near below the limit as steps allow."""
        genes, costs = genes.copy(), self.costs(genes)
        outside = (costs > self.limit) | (costs < WINDOW * self.limit)
        if outside.any():
            scaled = self._scale(genes[outside])
            genes[outside] = self._raise_widths(scaled, lambda each: rng.random(each.shape))
        return genes

    def sample_new(self, sampler: Sampler, count: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Sample `count` networks (G,) within the budget that were not returned before; fewer if few remain."""
        found: list[np.ndarray] = []
        for _ in range(ROUNDS):
            found += self._claim_new(self._admit(sampler(count, rng), rng), count - len(found))
            if len(found) == count:
                break
        return found

    def sample_random(self, count: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Sample `count` new networks (G,) within the budget, each width independently."""
        sampler = partial(sample, self.space.counts)
        found = [] if self.strict else self.sample_new(sampler, count, rng)
        for _ in range(STRICT_ROUNDS if self.strict else 0):
            if len(found) == count:
                break
            found += self._claim_new(self._admit(sampler(STRICT_SAMPLES, rng), rng), count - len(found))
        self.missing += count - len(found)
        return found

    def claim(self, genes: np.ndarray) -> bool:
        """Whether a network (G,) is new; it is recorded, so that it is new only once."""
        key = genes.tobytes()
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _admit(self, genes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.sampled += len(genes)
        return genes[self.costs(genes) <= self.limit] if self.strict else self.mend(genes, rng)

    def _claim_new(self, genes: np.ndarray, most: int) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for row in genes:
            if len(found) < most and self.claim(row):
                found.append(row)
        return found

    def _scale(self, genes: np.ndarray) -> np.ndarray:
        """Scale all widths of each network (C, G) by the largest factor that fits."""
        widths = self.space.gene_widths(genes)
        low = np.zeros(len(genes))
        high = 2 * (self.space.sizes[self.space.columns] / widths).max(1)  # half of it makes all axes whole
        best = np.zeros_like(genes)  # the least network, which fits
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            trial = self.space.below(widths * middle[:, None])
            fits = self.costs(trial) <= self.limit
            best[fits] = trial[fits]
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        return best

    def _raise_widths(self, genes: np.ndarray, wish: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Raise one gene after another of each network (C, G) by a step, until its cost is in the window.

        Among the steps that fit, the one with the highest `wish` (C, G) is taken; a network that no step fits stays.
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
        """Let `select` raise the error that says which rules prevent the budget; the least widths act as floors."""
        space = self.space
        lowest = {name: widths[0] for name, widths in space.allowed.items() if widths[0] > space.least[name]}
        rules = space.floor if isinstance(space.floor, dict) else {"*": space.floor}
        zeros = {name: torch.zeros(axis.size) for name, axis in space.graph.axes.items()}
        floor = {**rules, **lowest}
        select(
            space.graph,
            zeros,
            budget,
            price=self.price,
            round_to=1,
            floor=floor,
            cap=space.cap,
            freeze=space.freeze,
            only=space.only,
        )
        raise AssertionError("the least that may be kept is above the limit")


# ---------------------------------------------------------------------------------- operators
def sample(counts: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sample genes uniformly.

    Args:
        counts: (G,), how many widths each gene has.
        count: C, how many networks.
        rng: The generator.

    Returns:
        (C, G), genes.
    """
    return rng.integers(0, counts, size=(count, len(counts)))


def mutate(
    parents: np.ndarray, counts: np.ndarray, chance: float, steps: float, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Make `count` children (C, G), each of one of the parents (P, G), with every gene changed with a `chance`.

    At least one gene of each changes. In a share `steps` of the children genes move by 1 to 3 steps up or down; in
    the others, as in the paper, to any other width.
    """
    children = parents[rng.integers(len(parents), size=count)]
    changes = rng.random(children.shape) < chance
    changes[np.arange(count), rng.integers(children.shape[1], size=count)] |= ~changes.any(1)
    anywhere = (children + rng.integers(1, counts, size=children.shape)) % counts
    far = rng.integers(1, 4, size=children.shape) * np.maximum(1, (counts - 1) // (FINE - 1))
    far *= rng.choice([-1, 1], size=children.shape)
    turned = (children + far < 0) | (children + far >= counts)  # at the end of the range, step the other way
    near = np.clip(np.where(turned, children - far, children + far), 0, counts - 1)
    stepping = rng.random(count) < steps
    return np.where(changes, np.where(stepping[:, None], near, anywhere), children)


def cross(parents: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Make `count` children (C, G), each gene from either of two different parents (P, G) with equal chance."""
    first = rng.integers(len(parents), size=count)
    second = (first + rng.integers(1, len(parents), size=count)) % len(parents)
    return np.where(rng.random((count, parents.shape[1])) < 0.5, parents[first], parents[second])


def nearest(feasible: Feasible, widths: Widths, rng: np.random.Generator) -> np.ndarray:
    """The genes (G,) of given widths, such as those that `select` found, mended to the budget."""
    return feasible.mend(feasible.space.nearest_below(widths)[None], rng)[0]
