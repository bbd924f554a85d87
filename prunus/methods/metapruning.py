"""Search for the widths: many networks within the budget are tried as they are, and the best is trained on.

Liu et al., MetaPruning: meta learning for automatic neural network channel pruning, ICCV 2019, arXiv:1903.10258. The
paper's search, an evolution over the widths of all layers in which nothing is trained, with a choice of where the
weights of the networks that are tried come from:

    inherit   the trained network's own, its best units first (EagleEye's way); nothing to train, so the first choice

Departs from the paper, whose faults its specification lists: networks that cost too much are mended, not drawn until
one fits; the uniform network and what the scores alone would choose are looked at first, so the winner is no worse than
they are on the pictures it was chosen on; norm statistics are pooled exactly over a thousand pictures; networks that
fall behind for certain are dropped early; the last few are compared once more on pictures that chose nothing. Both
sets of pictures are held out of train for whatever the method trains; a network trained before has seen them. The
search is kept in prune/search.jsonl, a line for each network, and a killed one goes on there.

    prunus run ... --method metapruning --budget macs=0.5
    prunus run ... --method metapruning --set search=greedy --set stride=1
    prunus run ... --method metapruning --budget latency_ms=0.5
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from prunus import scores
from prunus.budget import Metered
from prunus.candidates import Maker, Parts, labels_hash, parted, to_renew_with, tried_on
from prunus.charts import Bars, Chart, Lines, Points
from prunus.errors import UserError, unknown
from prunus.graph import Graph, trace
from prunus.methods import Pruned
from prunus.providers import Inherit
from prunus.search import Evolution, Greedy, Random, Ranks, Result, Room, Space, best_first, search
from prunus.search.strategies import Strategy
from prunus.selection import Budget, Price, Selection, select

Search = Literal["evolution", "greedy", "random"]
Order = Literal["taylor", "magnitude", "none"]
CHOICES = {"search": Search, "order": Order}
SCORED_BATCHES, SCORED_BATCH_SIZE = 32, 64  # pictures that the order of units is scored on


@dataclass(frozen=True, kw_only=True)
class Config(Selection):
    """What they mean:

    search       evolution: the best so far are mutated and crossed; greedy: from the whole network down, the step that
                 loses least first; random: what both have to beat
    order        which units of a layer stay: those with the best scores (taylor, magnitude), or none: the first
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
    how          how the scores alone would choose (see select): that network is looked at first, beside the uniform one
    """

    search: Search = "evolution"
    order: Order = "taylor"
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
    round_to: int | None = 1

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise unknown(name, str(getattr(self, name)), get_args(choices))
        for name in ("images", "calibration", "top", "generations", "population", "parents", "stride"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} should be 1 at least, but is {getattr(self, name)}.")

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
        self.strategy()
        self.space(graph)
        return super().select(graph, scores, budget)

    def space(self, graph: Graph) -> Space:
        """The widths there are."""
        names = ("ratios", "least_ratio", "round_to", "floor", "cap", "freeze")
        return Space(graph, **{name: getattr(self, name) for name in names})


def prune(task, budget: Budget, config: Config, run) -> Pruned:
    """Search, and keep the winner's units."""
    graph = trace(task.model, task.example)
    space, parts = config.space(graph), parted(task.data.train, config.images, run.seed)
    ranks = unit_scores(task, graph, parts, config, run)
    order = ranks and best_first(graph, ranks)
    provider = Inherit(task.model, space, order)
    price, measured = priced(space, budget, provider.keep)
    calibration = to_renew_with(parts.train, config.calibration, run.seed)
    maker = Maker(provider.network, calibration)
    found = search(
        space,
        budget,
        tried_on(task, maker, parts.search),
        how=config.strategy(),
        seed=run.seed,
        seeds=alone(graph, ranks, budget, price, config),
        price=price,
        confirm=tried_on(task, maker, parts.confirm),
        top=config.top,
        measured=measured,
        journal=run.folder("prune") / "search.jsonl",
        settings={
            "weights": tensors_hash(provider.tensors()),
            "pictures": labels_hash(parts.search, parts.confirm, calibration.split),
            "data": task.data.name,
            "config": asdict(config),
        },
        workers=Ranks() if dist.is_initialized() and dist.get_world_size() > 1 else None,
        progress=run.progress,
    )
    note(found, run)
    return Pruned(keep=provider.keep(found.winner.widths), charts=list(drawn(found, budget, space)))


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
    graph: Graph, ranks: dict[str, Tensor] | None, budget: Budget, price: Price | None, config: Config
) -> list[dict[str, int]]:
    """The widths that the scores alone would choose, to begin with."""
    if ranks is None:
        return []
    options = {name: getattr(config, name) for name in ("how", "round_to", "floor", "cap", "freeze")}
    return [graph.widths(select(graph, ranks, budget, price=price, **options))]


def priced(
    space: Space, budget: Budget, keep: Callable
) -> tuple[Price | None, Callable[[dict[str, int]], float] | None]:
    """What widths cost as predicted, and as measured, where a budget has no closed form.

    The prediction is first corrected by what uniform networks are measured to take.
    """
    if not isinstance(budget, Metered):
        return None, None
    prices: list[Price] = []

    def uniform(price: Price) -> dict[str, list[int]]:
        prices.append(price)
        room = Room(space, budget, price=price)
        return keep(space.widths(room.uniform()))

    budget.meter.settle(budget, uniform)
    price, meter = prices[-1], budget.meter.alone()
    before = price(space.batch(space.whole[None])).item()

    def measured(widths: dict[str, int]) -> float:
        figures = meter.figures(keep(widths))
        share = figures["measured_ms"] / figures["original_ms"]
        return share * before if budget.is_fraction else figures["measured_ms"]

    return price, measured


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """Differs for other values, names or shapes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def note(found: Result, run) -> None:
    """The search in the log."""
    for generation in found.history:
        run.log("generation", **asdict(generation))
    uniform = found.uniform and found.uniform.score
    run.log(
        "searched",
        networks=len(found.candidates),
        missing=found.missing,
        winner=found.winner.plain(),
        best_score=found.best.score,
        uniform_score=uniform,
    )


def drawn(found: Result, budget: Budget, space: Space) -> Iterator[Chart]:
    """The search in pictures: every network, how it went on, what came of it."""
    groups: dict[str, list] = {}
    for each in found.candidates:
        label = f"{each.origin}, generation {each.generation}, {each.images} pictures"
        group = each.origin if each.complete else "dropped early"
        groups.setdefault(group, []).append((each.cost / found.before, each.score, label))
    yield Points(
        title="Networks that were tried",
        note="Each as it was, nothing trained. The line runs through the best for their cost within the budget.",
        x_label=f"{budget.name}, share of before",
        y_label="score on the pictures searched on",
        groups=groups,
        front=[(each.cost / found.before, each.score) for each in found.front],
    )
    yield Lines(
        title="How the search went on",
        note="The mean is over all networks of a generation, also those dropped early. Dashed: the uniform network.",
        x_label="generation",
        y_label="score",
        series={
            "best so far": [(each.number, each.best) for each in found.history],
            "mean": [(each.number, each.mean) for each in found.history],
        },
        references={
            "uniform": [(each.number, found.uniform.score) for each in found.history] if found.uniform else []
        },
    )
    networks = {"winner": found.winner} | ({"uniform": found.uniform} if found.uniform else {})
    sizes = {name: space.graph.axes[name].size for name in space.names}
    yield Bars(
        title="Widths of the winner",
        note="The share of each axis that stays, beside the uniform network's.",
        labels=list(sizes),
        value_label="share kept",
        series={
            name: [network.widths[axis] / size for axis, size in sizes.items()]
            for name, network in networks.items()
        },
    )
