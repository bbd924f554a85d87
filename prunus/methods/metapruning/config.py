"""The options of MetaPruning."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from prunus.errors import UserError
from prunus.graph import Graph
from prunus.methods import Units, check_loss, epochs_left, half_of
from prunus.methods.metapruning.pruning_net import HIDDEN, Form, check_memory
from prunus.options import Count, no_preview, reject_unused
from prunus.search import (
    Chance,
    Children,
    Evolution,
    Greedy,
    LeastRatio,
    Random,
    Ratios,
    Sampling,
    Space,
    Strategy,
    split_training,
)
from prunus.selection import Budget, How, Sparsity
from prunus.tasks import Task

Search = Literal["evolution", "greedy", "random"]
Order = Literal["taylor", "magnitude", "none"]
Weights = Literal["inherit", "closed_form", "shared", "hypernet"]
UNTRAINED = ("inherit", "closed_form")
Start = Literal["given", "scratch"]
Winner = Literal["base", "provider", "anew"]


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """The options of MetaPruning.

    Args:
        weights: The source of the weights of the networks that are evaluated: "inherit", "closed_form", "shared" or
            "hypernet"; see above.
        start: For shared and hypernet: "given": start from the weights of the network; "scratch": reinitialise them.
            None: "given", with hypernet "scratch".
        form: For hypernet: "paper"; "residual": added to shared weights; "factored": multiplied with them, far
            smaller.
        hidden: For hypernet: the features between its two layers, which determine its size.
        sampling: The networks trained in a step: "sandwich": the largest, the smallest, and two between, which learn
            from the largest; "uniform": one of random widths; "budget": one that just fits the budget. None:
            "sandwich", with hypernet "uniform".
        epochs: Epochs of that training; None: as the task advises for tuning, from scratch a quarter of a training.
        winner: The weights that the winner is recovered with: "base": the base's; "provider": those it was evaluated
            with; "anew": reinitialised, for which give --epochs and --lr of a training. None: "base", with shared
            "provider", with hypernet "anew".
        search: "evolution": the best networks so far are mutated and crossed; "greedy": from the whole network down,
            the step that loses least first; "random": the control that both have to beat.
        order: Which units of a layer stay: those with the best scores ("taylor", "magnitude"), or the first ("none").
            None: "taylor", with start=scratch "none".
        generations: Generations of the evolution; the paper has 20.
        population: Networks in a generation; the paper has 50. search=random evaluates as many in all.
        parents: How many of the best networks have children; the paper has 10.
        mutants: Children of one network in each generation; the paper has 25. None: two fifths of the population.
        crossovers: Children of two networks, as `mutants`. The rest of the population is random.
        chance: The probability that a width of a mutant changes.
        stride: For greedy: by how many of its widths a layer shrinks in a step.
        ratios: How many widths a layer may have, evenly spaced from least_ratio to the whole; None: all.
        least_ratio: The narrowest width, as a share of the layer.
        round_to: The number of which widths become multiples; None: 16, less in narrow layers.
        images: The number of images that networks are compared on, and of others for the final comparison; at most
            15 % of the training set each.
        calibration: The number of images that recalibrate the norms of each network.
        top: How many networks the final comparison evaluates.
        strict_paper: For hypernet: follow the paper's code, for comparison; see above.
        how: How the scores alone choose (see select): that network is evaluated first, beside the uniform one and the
            one they choose with how=global. Taylor's scores are changes of the loss, so their costs count.
    """

    no_steps = "it searches for the widths of the whole network"
    searches_widths = True
    weights: Weights = "inherit"
    start: Start | None = None
    form: Form = "paper"
    hidden: Count = HIDDEN
    sampling: Sampling | None = None
    epochs: Count | None = None
    winner: Winner | None = None
    search: Search = "evolution"
    order: Order | None = None
    generations: Count = 8
    population: Count = 25
    parents: Count = 8
    mutants: Children | None = None
    crossovers: Children | None = None
    chance: Chance = 0.1
    stride: Count = 2
    ratios: Ratios | None = 31
    least_ratio: LeastRatio = 0.1
    images: Count = 5000
    calibration: Count = 1000
    top: Count = 5
    strict_paper: bool = False
    round_to: Count | None = 1
    how: How = "per_cost"

    def fixed_in_search(self) -> tuple[str, ...] | None:
        """Return the number of epochs, an option here, and what has no use in a supernet: an average, a teacher. None
        if no supernet is trained."""
        fixed = ("epochs", "ema_decay", "distill_weight", "distill_temperature")
        return None if self.weights in UNTRAINED else fixed

    def preview(self) -> "Config":
        """Raise UserError, because units are chosen by the search."""
        raise no_preview("metapruning", "a search", "another method, such as --method taylor")

    def share_training(self, task: Task, epochs: float) -> tuple["Config", float]:
        """Give a supernet half of the epochs, unless the options say how many; other searches train nothing."""
        if self.weights in UNTRAINED:
            return self, epochs
        searched = self.epochs or half_of(epochs)
        what = f"metapruning with weights={self.weights} and epochs={searched:g}"
        return replace(self, epochs=searched), epochs_left(what, searched, epochs)

    def resolved(self) -> "Config":
        """Return the options with a value for each None that depends on others; UserError if options conflict."""
        hypernet = self.weights == "hypernet"
        if self.strict_paper and (not hypernet or self.form != "paper"):
            raise UserError(
                "strict_paper=True goes with weights=hypernet and form=paper, which are the paper's."
            )
        default = {"inherit": "base", "closed_form": "provider", "shared": "provider", "hypernet": "anew"}
        start = "given" if self.weights in UNTRAINED else self.start or ("scratch" if hypernet else "given")
        filled = replace(
            self,
            start=start,
            sampling=self.sampling or ("uniform" if hypernet else "sandwich"),
            winner=self.winner or default[self.weights],
            order=self.order or ("taylor" if start == "given" else "none"),
            floor=0 if self.strict_paper else self.floor,
        )
        if filled.start == "scratch" and filled.order != "none":
            raise UserError(
                "start=scratch leaves no weights that could be scored: give order=none, or start=given."
            )
        filled.strategy()
        return filled

    def reject_unused(self) -> None:
        """Raise UserError for options that have no effect given the others."""
        of_training = ("start", "form", "hidden", "sampling", "epochs")
        of_children = ("parents", "mutants", "crossovers", "chance")
        reject_unused(
            self,
            [
                (f"weights={self.weights}", self.weights in UNTRAINED, of_training),
                ("weights=shared", self.weights == "shared", ("form", "hidden")),
                ("search=evolution", self.search == "evolution", ("stride",)),
                ("search=greedy", self.search == "greedy", ("generations", "population", *of_children)),
                ("search=random", self.search == "random", ("stride", *of_children)),
                ("order=none", self.resolved().order == "none", ("how",)),
                ("strict_paper=True", self.strict_paper, ("floor",)),
            ],
        )

    def strategy(self) -> Strategy:
        """Return the strategy of the search; UserError if its numbers do not fit together."""
        if self.search == "greedy":
            return Greedy(stride=self.stride)
        if self.search == "random":
            return Random(networks=self.generations * self.population, batch=self.population)
        part = self.population * 2 // 5
        return Evolution(
            generations=self.generations,
            population=self.population,
            parents=self.parents,
            mutants=part if self.mutants is None else self.mutants,
            crossovers=part if self.crossovers is None else self.crossovers,
            chance=self.chance,
        )

    def check_together(self, limit: Budget | Sparsity) -> None:
        """Raise UserError if options conflict or have no effect, or milliseconds are limited beside another cost."""
        self.reject_unused()
        self.resolved()
        if "latency_ms" in limit.limits and len(limit.limits) > 1:
            raise UserError(
                f"metapruning measures whole searches by one cost, but {limit} limits several; give latency_ms alone, "
                "costs without it, or another method."
            )

    def check(self, graph: Graph, limit: Budget | Sparsity) -> None:
        """Raise UserError if options conflict or have no effect, or if the PruningNet does not fit into memory,
        BudgetError if no widths meet the limit."""
        self.check_together(limit)
        space = self.resolved().space(graph)
        if self.weights == "hypernet":
            check_memory(graph, space.names, self.form, self.hidden)
        super().check(graph, limit)

    def check_task(self, task: Task) -> None:
        """Raise UserError if examples cannot be held out of the training set, or chosen from it, to search with, or if
        the order of units or the training of a supernet needs a loss in evaluation mode, and the task has none."""
        if self.weights != "inherit":
            check_loss(task, f"weights={self.weights}", "weights=inherit with order=magnitude")
        if self.resolved().order == "taylor":
            check_loss(task, "order=taylor", "order=magnitude")
        split_training(task.data.train, self.images, 0).train.take(np.arange(1))

    def space(self, graph: Graph) -> Space:
        """Return the space of widths."""
        names = ("ratios", "least_ratio", "round_to", "floor", "cap", "freeze", "only")
        return Space(graph, **{name: getattr(self, name) for name in names})
