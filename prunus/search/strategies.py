"""Which networks are looked at next.

    evolution   from the best so far, by mutation and crossover (MetaPruning, Liu et al., ICCV 2019, arXiv:1903.10258)
    greedy      from the whole network down, each time by the step that loses least for what it saves (AutoSlim, Yu and
                Huang, 2019, arXiv:1903.11728); passes every budget on its way
    random      what any search has to beat (Li et al., Revisiting Random Channel Pruning, CVPR 2022)

A strategy is a generator: it is sent the scores of one batch and yields the next, and knows nothing of data, files or
processes. What it draws depends on the seed and the number of the batch alone.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from prunus.errors import UserError
from prunus.search.journal import Candidate, Proposal, ranked
from prunus.search.proposals import Room, crossed, mutated

RIVAL = 10  # the place in the ranking that a network must be able to reach, or it is dropped from the race
STEPS = 0.5  # of the mutants: they move by single steps, the others anywhere


@dataclass(frozen=True)
class Batch:
    """What to look at next. rival: whoever falls behind it for certain need not be looked at further."""

    proposals: list[Proposal]
    rival: Candidate | None = None


Batches = Generator[Batch, list[Candidate], list[Candidate]]  # returns the way it went, if it is a way


class Strategy(Protocol):
    """Decides what is looked at."""

    def batches(self, room: Room, first: list[Proposal], seed: int) -> Batches:
        """Yields batches, the first with the proposals `first`; is sent their candidates, in the same order."""

    def evaluations(self, room: Room) -> int:
        """About how many there will be."""


def proposals(room: Room, genes: Sequence[np.ndarray], origin: str, generation: int) -> list[Proposal]:
    """Networks of genes (G,), with what they cost."""
    if not len(genes):
        return []
    costs = room.costs(np.stack(genes)).tolist()
    return [
        Proposal(widths=room.space.widths(row), cost=cost, origin=origin, generation=generation)
        for row, cost in zip(genes, costs, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """The paper's numbers. Of each later generation so many are mutants and crossovers of the best, the rest random.

    parents: how many of the best ever seen. chance: of a gene to mutate.
    """

    generations: int = 20
    population: int = 50
    parents: int = 10
    mutants: int = 25
    crossovers: int = 25
    chance: float = 0.1

    def __post_init__(self):
        if min(self.generations, self.population, self.parents) < 1 or min(self.mutants, self.crossovers) < 0:
            raise UserError(f"a search needs one generation, one network in it and one parent: {self}.")
        if self.mutants + self.crossovers > self.population:
            raise UserError(
                f"{self.mutants} mutants and {self.crossovers} crossovers are more than {self.population}."
            )
        if not 0 < self.chance <= 1:
            raise UserError(f"chance {self.chance}: expected a share above 0, at most 1.")

    def evaluations(self, room: Room) -> int:
        """As many as the paper's, if the space has them."""
        return self.generations * self.population

    def batches(self, room: Room, first: list[Proposal], seed: int) -> Batches:
        """A generation each; ends early when nothing new can be found."""
        seen: list[Candidate] = []
        for generation in range(self.generations):
            rng = np.random.default_rng([seed, generation])
            best = ranked(seen)[: self.parents]
            made = list(first) if generation == 0 else self.children(room, best, generation, rng)
            made += proposals(room, room.random(self.population - len(made), rng), "random", generation)
            if not made:
                break
            seen += yield Batch(made, best[-1] if len(best) == self.parents else None)
        return []

    def children(
        self, room: Room, best: list[Candidate], generation: int, rng: np.random.Generator
    ) -> list[Proposal]:
        """Mutants and crossovers of the best."""
        if not best:
            return []
        parents = np.stack([room.space.genes(each.widths) for each in best])
        steps = 0.0 if room.strict else STEPS

        def mutants(count: int, rng: np.random.Generator) -> np.ndarray:
            return mutated(parents, room.space.counts, self.chance, steps, count, rng)

        made = proposals(room, room.fresh(mutants, self.mutants, rng), "mutation", generation)
        if len(parents) > 1:
            crosses = room.fresh(partial(crossed, parents), self.crossovers, rng)
            made += proposals(room, crosses, "crossover", generation)
        return made


@dataclass(frozen=True, kw_only=True)
class Random:
    """As many networks within the budget, in batches; after the first, those far behind the best are dropped early."""

    networks: int = 1000
    batch: int = 50

    def __post_init__(self):
        if min(self.networks, self.batch) < 1:
            raise UserError(f"a random search needs one network, and one in a batch: {self}.")

    def evaluations(self, room: Room) -> int:
        """If the space has them."""
        return self.networks

    def batches(self, room: Room, first: list[Proposal], seed: int) -> Batches:
        """Ends early when nothing new can be found."""
        seen: list[Candidate] = []
        number = 0
        while len(seen) < self.networks:
            made, rng = list(first) if number == 0 else [], np.random.default_rng([seed, number])
            count = min(self.batch, self.networks - len(seen)) - len(made)
            made += proposals(room, room.random(max(0, count), rng), "random", number)
            if not made:
                break
            best = ranked(seen)[:RIVAL]
            seen += yield Batch(made, best[-1] if len(best) == RIVAL else None)
            number += 1
        return []


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """stride: how many widths of its ladder an axis goes down in one step.

    Nothing is drawn, so the seed plays no part. A step that loses nothing is taken before any that does, that which
    saves most first.
    """

    stride: int = 1

    def __post_init__(self):
        if self.stride < 1:
            raise UserError(f"stride {self.stride}: expected a whole number from 1.")

    def evaluations(self, room: Room) -> int:
        """As if it went straight to the uniform network."""
        steps = (room.space.whole - room.uniform()) / self.stride
        return int(steps.sum() * len(steps)) + 1

    def batches(self, room: Room, first: list[Proposal], seed: int) -> Batches:
        """Everything that is one step down; returns the networks it went through, from the whole one on."""
        here = room.space.whole
        found = yield Batch([*proposals(room, [here], "greedy", 0), *first])
        path = [found[0]]
        while path[-1].cost > room.limit:
            down = [here - step for step in np.diag(np.minimum(here, self.stride)) if step.any()]
            found = yield Batch(proposals(room, down, "greedy", len(path)))
            best = min(range(len(found)), key=lambda i: self.dearness(path[-1], found[i], room.before))
            here, path = down[best], [*path, found[best]]
        return path

    @staticmethod
    def dearness(whole: Candidate, less: Candidate, before: float) -> float:
        """What a step loses for what it saves; below zero, by what it saves, where nothing is lost."""
        loss, saved = whole.score - less.score, max((whole.cost - less.cost) / before, 1e-9)
        return loss / saved if loss > 0 else -saved
