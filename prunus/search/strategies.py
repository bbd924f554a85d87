"""Strategies: which networks are evaluated next.

    evolution   mutation and crossover of the best so far (MetaPruning, Liu et al., ICCV 2019, arXiv:1903.10258)
    greedy      from the whole network down, each time by the step with the least loss per saved cost (AutoSlim, Yu and
                Huang, 2019, arXiv:1903.11728); passes every budget on its way
    random      the baseline of every search (Li et al., Revisiting Random Channel Pruning, CVPR 2022)

A strategy is a generator: it is sent the scores of one batch and yields the next; it knows nothing of data, files or
processes. Its samples depend only on the seed and the number of the batch.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Protocol

import numpy as np

from prunus.errors import UserError
from prunus.options import Checked, Count, Range
from prunus.search.journal import Candidate, Proposal, rank
from prunus.search.proposals import Feasible, cross, mutate

RIVAL = 10  # the rank that a network must be able to reach, otherwise it is dropped from the race
STEPS = 0.5  # share of the mutants that move by single steps; the others move anywhere
Children = Annotated[int, Range(0)]
Chance = Annotated[float, Range(0, 1, above=True)]


@dataclass(frozen=True)
class Batch:
    """The networks to evaluate next.

    Args:
        proposals: The networks.
        rival: A network that is certain to be worse than this one is dropped early.
    """

    proposals: list[Proposal]
    rival: Candidate | None = None


Batches = Generator[Batch, list[Candidate], list[Candidate]]  # returns greedy's path; otherwise nothing


class Strategy(Protocol):
    """The contract of a strategy: it decides which networks are evaluated."""

    def batches(self, feasible: Feasible, first: list[Proposal], seed: int) -> Batches:
        """Yield batches, the first with the proposals `first`; each is answered by its candidates, in order.

        Args:
            feasible: The networks within the budget.
            first: Networks that are evaluated first.
            seed: The seed of all samples.

        Yields:
            Batches; the generator returns the path of networks it went through, if there is one.
        """
        ...

    def evaluations(self, feasible: Feasible) -> int:
        """About how many evaluations there will be."""
        ...


def propose(feasible: Feasible, genes: Sequence[np.ndarray], origin: str, generation: int) -> list[Proposal]:
    """Proposals of networks with genes (G,), with their costs."""
    if not len(genes):
        return []
    costs = feasible.costs(np.stack(genes)).tolist()
    return [
        Proposal(widths=feasible.space.widths(row), cost=cost, origin=origin, generation=generation)
        for row, cost in zip(genes, costs, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Evolution(Checked):
    """Evolution over widths, with the paper's numbers as defaults; the first generation is random.

    Source: MetaPruning, Liu et al., ICCV 2019, arXiv:1903.10258.

    Args:
        generations: How many generations.
        population: Networks in each.
        parents: How many of the best networks so far have children.
        mutants: Mutants of the parents in each later generation.
        crossovers: Crossovers of the parents in each later generation; the rest is random.
        chance: Probability that a gene of a mutant changes.

    Raises:
        UserError: A number is out of range, or there are more children than the population.
    """

    generations: Count = 20
    population: Count = 50
    parents: Count = 10
    mutants: Children = 25
    crossovers: Children = 25
    chance: Chance = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.mutants + self.crossovers > self.population:
            raise UserError(
                f"{self.mutants} mutants and {self.crossovers} crossovers are more than the population of "
                f"{self.population}; give fewer, or a larger population."
            )

    def evaluations(self, feasible: Feasible) -> int:
        """All generations, if the space has that many networks."""
        return self.generations * self.population

    def batches(self, feasible: Feasible, first: list[Proposal], seed: int) -> Batches:
        """Yield a generation each; end early if no new network can be found."""
        seen: list[Candidate] = []
        for generation in range(self.generations):
            rng = np.random.default_rng([seed, generation])
            best = rank(seen)[: self.parents]
            made = list(first) if generation == 0 else self.children(feasible, best, generation, rng)
            rest = max(0, self.population - len(made))
            made += propose(feasible, feasible.sample_random(rest, rng), "random", generation)
            if not made:
                break
            seen += yield Batch(made, best[-1] if len(best) == self.parents else None)
        return []

    def children(
        self, feasible: Feasible, best: list[Candidate], generation: int, rng: np.random.Generator
    ) -> list[Proposal]:
        """Make mutants and crossovers of the best."""
        if not best:
            return []
        parents = np.stack([feasible.space.genes(each.widths) for each in best])
        steps = 0.0 if feasible.strict else STEPS

        def mutants(count: int, rng: np.random.Generator) -> np.ndarray:
            return mutate(parents, feasible.space.counts, self.chance, steps, count, rng)

        made = propose(feasible, feasible.sample_new(mutants, self.mutants, rng), "mutation", generation)
        if len(parents) > 1:
            crosses = feasible.sample_new(partial(cross, parents), self.crossovers, rng)
            made += propose(feasible, crosses, "crossover", generation)
        return made


@dataclass(frozen=True, kw_only=True)
class Random(Checked):
    """Random networks within the budget, in batches; from the second on, networks far worse than the best are dropped.

    Source: Li et al., Revisiting Random Channel Pruning, CVPR 2022.

    Args:
        networks: How many networks.
        batch: Networks in a batch.

    Raises:
        UserError: A number is below 1.
    """

    networks: Count = 1000
    batch: Count = 50

    def evaluations(self, feasible: Feasible) -> int:
        """All networks, if the space has that many."""
        return self.networks

    def batches(self, feasible: Feasible, first: list[Proposal], seed: int) -> Batches:
        """Yield batches of random networks; end early if no new one can be found."""
        seen: list[Candidate] = []
        number = 0
        while len(seen) < self.networks:
            made, rng = list(first) if number == 0 else [], np.random.default_rng([seed, number])
            count = min(self.batch, self.networks - len(seen)) - len(made)
            made += propose(feasible, feasible.sample_random(max(0, count), rng), "random", number)
            if not made:
                break
            best = rank(seen)[:RIVAL]
            seen += yield Batch(made, best[-1] if len(best) == RIVAL else None)
            number += 1
        return []


@dataclass(frozen=True, kw_only=True)
class Greedy(Checked):
    """Greedy descent from the whole network; a step narrows one axis.

    Steps that lose nothing are taken before all others, the one that saves most first. Nothing is sampled, so the seed
    has no effect. Source: AutoSlim, Yu and Huang, 2019, arXiv:1903.11728.

    Args:
        stride: By how many of its allowed widths a step narrows an axis.

    Raises:
        UserError: `stride` is below 1.
    """

    stride: Count = 1

    def evaluations(self, feasible: Feasible) -> int:
        """About as many as on a straight path to the uniform network."""
        steps = (feasible.space.whole - feasible.uniform()) / self.stride
        return int(steps.sum() * len(steps)) + 1

    def batches(self, feasible: Feasible, first: list[Proposal], seed: int) -> Batches:
        """Yield all networks one step down; return the path, from the whole network on."""
        here = feasible.space.whole
        found = yield Batch([*propose(feasible, [here], "greedy", 0), *first])
        path = [found[0]]
        while path[-1].cost > feasible.limit:
            down = [here - step for step in np.diag(np.minimum(here, self.stride)) if step.any()]
            found = yield Batch(propose(feasible, down, "greedy", len(path)))
            best = min(
                range(len(found)), key=lambda i: self.loss_per_saving(path[-1], found[i], feasible.before)
            )
            here, path = down[best], [*path, found[best]]
        return path

    @staticmethod
    def loss_per_saving(whole: Candidate, less: Candidate, before: float) -> float:
        """The loss of score per saved share of cost; if nothing is lost, minus the saved share."""
        loss, saved = whole.score - less.score, max((whole.cost - less.cost) / before, 1e-9)
        return loss / saved if loss > 0 else -saved
