"""Search for the widths: many networks within the budget are tried as they are, and the best is trained on.

Liu et al., MetaPruning: meta learning for automatic neural network channel pruning, ICCV 2019, arXiv:1903.10258. The
paper's search, an evolution over the widths of all layers in which nothing is trained, with a choice of where the
weights of the networks that are tried come from:

    inherit   the trained network's own, its best units first (EagleEye's way); nothing to train, so the first choice
    shared    one set of weights, trained for a while as networks of many widths at once (Slimmable networks' way)
    hypernet  the paper's PruningNet, which makes the weights of any widths; the winner is trained from scratch

Departs from the paper, whose faults its specification lists: networks that cost too much are mended, not drawn until
one fits; the uniform network and what the scores alone would choose are looked at first; norm statistics are pooled
exactly over a thousand pictures; networks that fall behind for certain are dropped early; the last few are compared
once more on pictures that chose nothing. strict_paper=True undoes all that. A weight's block is given the widths of
that weight alone, not of its whole residual block. Both sets of pictures are held out of train for whatever is trained
here; a network trained before has seen them. The search is kept in prune/search.jsonl, a line for each network, and a
killed one goes on there; with milliseconds it measures anew, so it may then propose others.

    prunus run ... --method metapruning --budget macs=0.5
    prunus run ... --method metapruning --set search=greedy --set stride=1
    prunus run ... --method metapruning --budget latency_ms=0.5
    prunus run ... --method metapruning --set weights=hypernet --set generations=20 --set population=50 \\
        --set parents=10 --base-epochs 0 --epochs 100 --lr 0.1 --distill-weight 0
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from prunus import scores
from prunus.errors import UserError
from prunus.graph import Graph, trace
from prunus.methods import Pruned
from prunus.options import check_choices, nothing_before, refuse_idle
from prunus.pruningnet import HIDDEN, Form, PruningNet, refuse_too_large
from prunus.recover import renew_norms
from prunus.search import (
    CHUNKS,
    Evolution,
    Greedy,
    Inherit,
    Maker,
    Orders,
    Parts,
    Random,
    Ranks,
    Result,
    Room,
    Sampling,
    Space,
    Stepping,
    Strategy,
    Supernet,
    Together,
    best_first,
    charts,
    drawn_anew,
    labels_hash,
    moving_norms,
    parted,
    put_back,
    search,
    tensors_hash,
    to_renew_with,
    tried_on,
)
from prunus.selection import Budget, Metered, Price, Selection, select
from prunus.train import distinct, fit

Search = Literal["evolution", "greedy", "random"]
Order = Literal["taylor", "magnitude", "none"]
Weights = Literal["inherit", "shared", "hypernet"]
Start = Literal["given", "scratch"]
Winner = Literal["base", "provider", "anew"]
QUARTER = (
    4  # part of the epochs of a training from scratch that a supernet from scratch gets, as in the paper
)
LEAST_GAIN = 0.02  # of the time predicted to be saved, at least so much is hoped for
SMOOTHING = 0.1  # of labels, for a PruningNet; the paper's
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
SCORED_BATCHES, SCORED_BATCH_SIZE = 32, 64  # pictures that the order of units is scored on


@dataclass(frozen=True, kw_only=True)
class Config(Selection):
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

    def at_once(self) -> "Config":
        """There is none: what goes is found by the search."""
        raise nothing_before("metapruning", "a search", "another method, such as --method taylor")

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

    def refuse_idle(self) -> None:
        """Raise UserError for options that the others, as the user gave them, leave nothing to act on."""
        of_training = ("start", "form", "hidden", "sampling", "epochs")
        of_children = ("parents", "mutants", "crossovers", "chance")
        refuse_idle(
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

    def select(self, graph: Graph, scores: Mapping[str, Tensor], budget: Budget) -> dict[str, list[int]]:
        """What the scores alone would choose; a run asks before it begins, so it sees to the other options, too."""
        self.refuse_idle()
        space = self.settled().space(graph)
        if self.weights == "hypernet":
            refuse_too_large(graph, space.names, self.form, self.hidden)
        return super().select(graph, scores, budget)

    def space(self, graph: Graph) -> Space:
        """The widths there are."""
        names = ("ratios", "least_ratio", "round_to", "floor", "cap", "freeze")
        return Space(graph, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Ready:
    """What a search begins with. ranks: scores of the units, order: the best of each axis first; None: as they stand.
    measured: see `search`. history: of the supernet's training, if there was one."""

    space: Space
    room: Room
    measured: Callable[[dict[str, int]], float] | None
    parts: Parts
    ranks: dict[str, Tensor] | None
    order: Orders | None
    provider: Inherit | Supernet
    maker: Maker
    history: list[dict]


def ready(task, budget: Budget, config: Config, run) -> Ready:
    """Weights for all networks of a room, trained if they have to be, and what networks are tried on.

    config: settled. Raises BudgetError if no network is within the budget.
    """
    graph = trace(task.model, task.example)
    space, parts = config.space(graph), parted(task.data.train, config.images, run.seed)
    ranks = unit_scores(task, graph, parts, config, run)
    order = ranks and best_first(graph, ranks)
    room, measured = admitted(space, budget, order)
    calibration = to_renew_with(parts.train, config.calibration, run.seed)
    renew = moving_norms if config.strict_paper else renew_norms
    history = []
    if config.weights == "inherit":
        provider = Inherit(task.model, space, order)
        maker = Maker(provider.network, calibration, renew)
    else:
        provider = supernet(task, room, order, config, run.seed)
        maker = Maker(provider.network, calibration, renew)
        history = trained(provider, Together(task, parts.train, maker), config, run)
    return Ready(space, room, measured, parts, ranks, order, provider, maker, history)


def prune(task, budget: Budget, config: Config, run) -> Pruned:
    """Get weights for all networks, search, and keep the winner's units."""
    config = config.settled()
    at = ready(task, budget, config, run)
    space, maker, parts = at.space, at.maker, at.parts
    found = search(
        space,
        budget,
        tried_on(task, maker, parts.search),
        how=config.strategy(),
        seed=run.seed,
        seeds=alone(space.graph, at.ranks, budget, at.room.price, config),
        strict_paper=config.strict_paper,
        price=at.room.price,
        chunks=() if config.strict_paper else CHUNKS,
        confirm=None if config.strict_paper else tried_on(task, maker, parts.confirm),
        top=config.top,
        measured=at.measured,
        journal=run.folder("prune") / "search.jsonl",
        settings={
            "weights": tensors_hash(at.provider.tensors()),
            "pictures": labels_hash(parts.search, parts.confirm, maker.calibration.split),
            "data": task.data.name,
            "config": asdict(config),
        },
        workers=Ranks() if dist.is_initialized() and dist.get_world_size() > 1 else None,
        progress=run.progress,
    )
    charts.note(found, run)
    keep = at.provider.keep(found.winner.widths)
    score = task.metric if task.higher_is_better else f"minus {task.metric}"
    return Pruned(
        keep=keep,
        weights=handed_on(task, space, keep, maker, found, config, run.seed),
        charts=[*charts.learned(at.history, task.metric), *charts.drawn(found, budget, space, score)],
    )


def supernet(task, room: Room, order: Orders | None, config: Config, seed: int) -> Supernet:
    """Weights for all networks, not trained yet."""
    graph, names = room.space.graph, room.space.names
    net, maker = copy.deepcopy(task.model), None
    if config.start == "scratch":
        drawn_anew(net, task.example, names, seed)
    if config.weights == "hypernet":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            maker = PruningNet(graph, names, form=config.form, hidden=config.hidden)
    return Supernet(net, room, order=order, maker=maker, sampling=config.sampling, seed=seed)


def trained(net: Supernet, task: Together, config: Config, run) -> list[dict]:
    """Train the supernet; goes on where a killed run was."""
    recipe = task.task.recipe("tune" if config.start == "given" else "scratch")
    part = QUARTER if config.start == "scratch" else 1
    epochs = config.epochs or math.ceil(recipe.epochs / part)
    warmup = recipe.warmup_epochs * min(1, epochs / recipe.epochs)
    recipe = replace(recipe, epochs=epochs, warmup_epochs=warmup, ema_decay=0.0)
    if config.weights == "hypernet":
        recipe = replace(recipe, label_smoothing=SMOOTHING)
    where = {
        "folder": run.folder("prune") / "supernet",
        "progress": run.progress,
        "label": "training the supernet",
    }
    history = fit(net, task, recipe, seed=run.seed, along=Stepping(net), **where)
    for row in history:
        run.log("epoch", stage="prune", **row)
    return history


def handed_on(
    task, space: Space, keep: dict, maker: Maker, found: Result, config: Config, seed: int
) -> dict[str, Tensor] | None:
    """The weights the winner is recovered with, as those of the whole model; None: the base's."""
    if config.winner == "base":
        return None
    small = maker(found.winner.widths)
    if config.winner == "anew":
        drawn_anew(small, task.example, space.names, seed)
    return distinct(put_back(task.model, space.graph, keep, small))


def unit_scores(task, graph: Graph, parts: Parts, config: Config, run) -> dict[str, Tensor] | None:
    """What decides which units of an axis stay; None: their places."""
    if config.order == "none":
        return None
    if config.order == "magnitude":
        return scores.magnitude(task.model, graph)
    chosen = to_renew_with(parts.train, SCORED_BATCHES * SCORED_BATCH_SIZE, run.seed).split
    with run.progress("scoring units", chosen.steps(SCORED_BATCH_SIZE)) as step:

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in chosen.batches(SCORED_BATCH_SIZE):
                yield batch
                step(1)

        return scores.taylor(task.model, graph, task.loss, batches())


def alone(
    graph: Graph, ranks: dict[str, Tensor] | None, budget: Budget, price: Price, config: Config
) -> list[dict[str, int]]:
    """The widths that the scores alone would choose, to begin with."""
    if ranks is None or config.strict_paper:
        return []
    options = {name: getattr(config, name) for name in ("how", "round_to", "floor", "cap", "freeze")}
    return [graph.widths(select(graph, ranks, budget, price=price, **options))]


def admitted(
    space: Space, budget: Budget, order: Orders | None
) -> tuple[Room, Callable[[dict[str, int]], float] | None]:
    """The part of the space that the budget allows, and what its networks cost as measured, where there is no closed
    form: what is predicted is first corrected by what uniform networks are measured to take."""
    if not isinstance(budget, Metered):
        return Room(space, budget), None

    def uniform(price: Price) -> dict[str, list[int]]:
        return space.keep(space.widths(Room(space, budget, price=price).uniform()), order)

    meter = budget.meter
    figures = meter.figures(meter.settle(budget, uniform))  # the same in all processes
    before = figures["original_ms"]
    # By the corrected price that network is just within the limit, so that the search begins with one that holds.
    predicted, saved = 1 - figures["predicted_ms"] / before, 1 - budget.limit(before) / before
    gain = max(saved / predicted, LEAST_GAIN) * (1 + 1e-6) if predicted > 0 else 1.0
    whole = meter.price(space.batch(space.whole[None]))

    def price(widths: Tensor) -> Tensor:
        return before * (1 - gain * (1 - meter.price(widths) / whole))

    meter = meter.alone()  # one process measures for all

    def measured(widths: dict[str, int]) -> float:
        figures = meter.figures(space.keep(widths, order))
        share = figures["measured_ms"] / figures["original_ms"]
        return share * before if budget.is_fraction else figures["measured_ms"]

    return Room(space, budget, price=price), measured
