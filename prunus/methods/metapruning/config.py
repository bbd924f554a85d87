"""The options of MetaPruning."""

from dataclasses import dataclass, replace
from typing import Literal

from prunus.errors import UserError
from prunus.graph import Graph
from prunus.methods import Units
from prunus.methods.metapruning.pruning_net import HIDDEN, Form, check_memory
from prunus.options import check_choices, no_preview, reject_unused
from prunus.search import Evolution, Greedy, Random, Sampling, Space, Strategy
from prunus.selection import Budget

Search = Literal["evolution", "greedy", "random"]
Order = Literal["taylor", "magnitude", "none"]
Weights = Literal["inherit", "shared", "hypernet"]
Start = Literal["given", "scratch"]
Winner = Literal["base", "provider", "anew"]


COUNTS = (
    "images",
    "calibration",
    "top",
    "generations",
    "population",
    "parents",
    "stride",
    "epochs",
    "hidden",
)


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """What they mean:

    weights      where those of the networks that are tried come from, see above. Of shared and hypernet:
    start          given: begin with the weights the network has; scratch: drawn anew. None: given; hypernet: scratch
    form           of hypernet: paper; residual: added to shared weights; factored: multiplied with them, far smaller
    hidden         of hypernet: numbers between its two layers, which set its size
    sampling       what is trained in a step: sandwich: the largest network, the least, and two between, which learn
                   from the largest; uniform: one of random widths; budget: one that just fits. None: sandwich;
                   hypernet: uniform
    epochs         of that training; None: as the task advises for tuning; from scratch a quarter of a training
    winner       whose weights the winner is recovered with: the base's, those it was tried with (provider), or drawn
                 anew, for which give --epochs and --lr of a training. None: base; shared: provider; hypernet: anew
    search       evolution: the best so far are mutated and crossed; greedy: from the whole network down, the step that
                 loses least first; random: what both have to beat
    order        which units of a layer stay: those with the best scores (taylor, magnitude), or none: the first.
                 None: taylor; none with start=scratch
    generations  of evolution: the paper has 20
    population   networks in a generation: the paper has 50. search=random looks at as many in all
    parents      so many of the best have children: the paper has 10
    mutants      children of one, so many a generation, and
    crossovers   of two, the paper's 25 each; None: two fifths of the population each. The others are drawn at random
    chance       of each width of a mutant to change
    stride       of greedy: how many of its widths a layer goes down in a step
    ratios       how many widths a layer may have, evenly from least_ratio of it to the whole; None: every one
    least_ratio  the narrowest of them, as a share
    round_to     widths are multiples of it; None: of 16, of less in narrow layers
    images       pictures networks are compared on, and as many again to compare the last few; of small sets 15 % each
    calibration  pictures to renew the statistics of norms with, for each network
    top          how many are compared once more
    strict_paper of hypernet: as the paper's code does it, for comparison; see above
    how          how the scores alone would choose (see select): that network is looked at first, beside the uniform one
    """

    weights: Weights = "inherit"
    start: Start | None = None
    form: Form = "paper"
    hidden: int = HIDDEN
    sampling: Sampling | None = None
    epochs: int | None = None
    winner: Winner | None = None
    search: Search = "evolution"
    order: Order | None = None
    generations: int = 8
    population: int = 25
    parents: int = 8
    mutants: int | None = None
    crossovers: int | None = None
    chance: float = 0.1
    stride: int = 2
    ratios: int | None = 31
    least_ratio: float = 0.1
    images: int = 5000
    calibration: int = 1000
    top: int = 5
    strict_paper: bool = False
    round_to: int | None = 1

    def __post_init__(self):
        check_choices(self)
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} should be 1 at least, but is {value}.")

    def preview(self) -> "Config":
        """There is none: what goes is found by the search."""
        raise no_preview("metapruning", "a search", "another method, such as --method taylor")

    def settled(self) -> "Config":
        """The same with every None that depends on another option filled in. Raises UserError if options conflict."""
        hypernet = self.weights == "hypernet"
        if self.strict_paper and (not hypernet or self.form != "paper"):
            raise UserError(
                "strict_paper=True goes with weights=hypernet and form=paper, which are the paper's."
            )
        usual = {"inherit": "base", "shared": "provider", "hypernet": "anew"}
        start = "given" if self.weights == "inherit" else self.start or ("scratch" if hypernet else "given")
        filled = replace(
            self,
            start=start,
            sampling=self.sampling or ("uniform" if hypernet else "sandwich"),
            winner=self.winner or usual[self.weights],
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
        """Raise UserError for options that the others, as the user gave them, leave nothing to act on."""
        of_training = ("start", "form", "hidden", "sampling", "epochs")
        of_children = ("parents", "mutants", "crossovers", "chance")
        reject_unused(
            self,
            [
                ("weights=inherit", self.weights == "inherit", of_training),
                ("weights=shared", self.weights == "shared", ("form", "hidden")),
                ("search=evolution", self.search == "evolution", ("stride",)),
                ("search=greedy", self.search == "greedy", ("generations", "population", *of_children)),
                ("search=random", self.search == "random", ("stride", *of_children)),
                ("order=none", self.settled().order == "none", ("how",)),
                ("strict_paper=True", self.strict_paper, ("floor",)),
            ],
        )

    def strategy(self) -> Strategy:
        """How the search goes. Raises UserError for numbers that do not go together."""
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

    def check(self, graph: Graph, limit: Budget) -> None:
        """Raise UserError for options that conflict or have no effect, or a PruningNet that does not fit in memory,
        BudgetError if no widths meet the limit."""
        self.reject_unused()
        space = self.settled().space(graph)
        if self.weights == "hypernet":
            check_memory(graph, space.names, self.form, self.hidden)
        super().check(graph, limit)

    def space(self, graph: Graph) -> Space:
        """The widths there are."""
        names = ("ratios", "least_ratio", "round_to", "floor", "cap", "freeze")
        return Space(graph, **{name: getattr(self, name) for name in names})
