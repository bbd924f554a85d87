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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from prunus import scores
from prunus.graph import Graph
from prunus.methods import Pruned, Run
from prunus.methods.metapruning.config import Config
from prunus.methods.metapruning.pruning_net import PruningNet
from prunus.recover import renew_norms
from prunus.search import (
    CHUNKS,
    Feasible,
    Inherit,
    Maker,
    Orders,
    Parts,
    Ranks,
    Result,
    Space,
    Stepping,
    Supernet,
    Together,
    best_first,
    charts,
    labels_hash,
    moving_norms,
    parted,
    reinitialise,
    scatter,
    search,
    tensors_hash,
    to_renew_with,
    tried_on,
)
from prunus.selection import Budget, Metered, Price
from prunus.tasks import Task
from prunus.train import fit, named_tensors

QUARTER = (
    4  # part of the epochs of a training from scratch that a supernet from scratch gets, as in the paper
)
LEAST_GAIN = 0.02  # of the time predicted to be saved, at least so much is hoped for
SMOOTHING = 0.1  # of labels, for a PruningNet; the paper's


SCORED_BATCHES, SCORED_BATCH_SIZE = 32, 64  # pictures that the order of units is scored on


@dataclass(frozen=True)
class Ready:
    """What a search begins with. ranks: scores of the units, order: the best of each axis first; None: as they stand.
    measured: see `search`. history: of the supernet's training, if there was one."""

    space: Space
    room: Feasible
    measured: Callable[[dict[str, int]], float] | None
    parts: Parts
    ranks: dict[str, Tensor] | None
    order: Orders | None
    provider: Inherit | Supernet
    maker: Maker
    history: list[dict]


def ready(task: Task, budget: Budget, config: Config, run: Run) -> Ready:
    """Weights for all networks of a room, trained if they have to be, and what networks are tried on.

    config: settled. Raises BudgetError if no network is within the budget.
    """
    graph = task.graph
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


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
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
    charts.log_search(found, run)
    keep = at.provider.keep(found.winner.widths)
    score = task.metric.key if task.metric.higher_is_better else f"minus {task.metric.key}"
    return Pruned(
        keep=keep,
        weights=handed_on(task, space, keep, maker, found, config, run.seed),
        charts=[
            *charts.training_charts(at.history, task.metric.key),
            *charts.search_charts(found, budget, space, score),
        ],
    )


def supernet(task: Task, room: Feasible, order: Orders | None, config: Config, seed: int) -> Supernet:
    """Weights for all networks, not trained yet."""
    graph, names = room.space.graph, room.space.names
    net, maker = copy.deepcopy(task.model), None
    if config.start == "scratch":
        reinitialise(net, task.example, names, seed)
    if config.weights == "hypernet":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            maker = PruningNet(graph, names, form=config.form, hidden=config.hidden)
    return Supernet(net, room, order=order, maker=maker, sampling=config.sampling, seed=seed)


def trained(net: Supernet, task: Together, config: Config, run: Run) -> list[dict]:
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
    task: Task, space: Space, keep: dict, maker: Maker, found: Result, config: Config, seed: int
) -> dict[str, Tensor] | None:
    """The weights the winner is recovered with, as those of the whole model; None: the base's."""
    if config.winner == "base":
        return None
    small = maker(found.winner.widths)
    if config.winner == "anew":
        reinitialise(small, task.example, space.names, seed)
    return named_tensors(scatter(task.model, space.graph, keep, small))


def unit_scores(task: Task, graph: Graph, parts: Parts, config: Config, run: Run) -> dict[str, Tensor] | None:
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
    return [graph.widths(config.select(graph, ranks, budget, price=price))]


def admitted(
    space: Space, budget: Budget, order: Orders | None
) -> tuple[Feasible, Callable[[dict[str, int]], float] | None]:
    """The part of the space that the budget allows, and what its networks cost as measured, where there is no closed
    form: what is predicted is first corrected by what uniform networks are measured to take."""
    if not isinstance(budget, Metered):
        return Feasible(space, budget), None

    def uniform(price: Price) -> dict[str, list[int]]:
        return space.keep(space.widths(Feasible(space, budget, price=price).uniform()), order)

    meter = budget.meter
    figures = meter.figures(meter.select(budget, uniform))  # the same in all processes
    before = figures["original_ms"]
    # By the corrected price that network is just within the limit, so that the search begins with one that holds.
    predicted, saved = 1 - figures["predicted_ms"] / before, 1 - budget.limit(before) / before
    gain = max(saved / predicted, LEAST_GAIN) * (1 + 1e-6) if predicted > 0 else 1.0
    whole = meter.price(space.batch(space.whole[None]))

    def price(widths: Tensor) -> Tensor:
        return before * (1 - gain * (1 - meter.price(widths) / whole))

    meter = meter.local_copy()  # one process measures for all

    def measured(widths: dict[str, int]) -> float:
        figures = meter.figures(space.keep(widths, order))
        share = figures["measured_ms"] / figures["original_ms"]
        return share * before if budget.is_fraction else figures["measured_ms"]

    return Feasible(space, budget, price=price), measured
