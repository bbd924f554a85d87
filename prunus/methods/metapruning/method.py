"""Search for the widths: evaluate many networks within the budget without training them, and recover the best.

Liu et al., MetaPruning: meta learning for automatic neural network channel pruning, ICCV 2019, arXiv:1903.10258. The
paper's search, an evolution over the widths of all layers in which nothing is trained. The weights of the evaluated
networks come from one of four sources:

    inherit      the trained network's weights, its best units first, as in EagleEye; no training, the default
    closed_form  the same, but layers behind a cut are fitted by least squares to the trained network's answers (ours)
    shared       one set of weights, trained as networks of many widths at once, as in slimmable networks
    hypernet     the paper's PruningNet, which generates weights of any widths; the winner is trained from scratch

Departs from the paper: networks that cost too much are changed to fit, whereas the paper samples until one fits; the
uniform network and the one that the scores alone choose are evaluated first; norm statistics are computed exactly over
a thousand images; networks that certainly fall behind are dropped early; the last few are compared again on images
that no choice was made on. strict_paper=True undoes all of this. The block of a weight reads the widths of that weight
alone, not of its whole residual block. Both sets of images are held out of all training here; a network trained
before has seen them. The search is stored in prune/search.jsonl, a line for each network, and a killed search continues
from it; with milliseconds it measures again, so it may then propose other networks.

    prunus run ... --method metapruning --budget macs=0.5
    prunus run ... --method metapruning --set search=greedy --set stride=1
    prunus run ... --method metapruning --budget latency_ms=0.5
    prunus run ... --method metapruning --set weights=hypernet --set generations=20 --set population=50 \\
        --set parents=10 --base-epochs 0 --epochs 100 --lr 0.1 --distill-weight 0
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from prunus import scores
from prunus.graph import Graph
from prunus.methods import Pruned, Run
from prunus.methods.metapruning.config import UNTRAINED, Config
from prunus.methods.metapruning.pruning_net import PruningNet
from prunus.recover import renew_norms
from prunus.search import (
    CHUNKS,
    Builder,
    ClosedForm,
    Feasible,
    Inherit,
    Orders,
    Ranks,
    Result,
    SearchSplits,
    Space,
    StepCounter,
    Supernet,
    SupernetTask,
    best_first,
    calibration_set,
    charts,
    labels_hash,
    moving_norms,
    reinitialise,
    scatter,
    scorer,
    search,
    split_training,
    tensors_hash,
)
from prunus.selection import Budget, Metered, Price
from prunus.tasks import Task
from prunus.train import fit, named_tensors

QUARTER = (
    4  # a supernet from scratch gets a quarter of the epochs of a training from scratch, as in the paper
)
LEAST_GAIN = 0.02  # of the predicted saving in time, the least that is assumed
SMOOTHING = 0.1  # label smoothing for a PruningNet, as in the paper
SCORED_BATCHES, SCORED_BATCH_SIZE = 32, 64  # the images on which the order of units is scored


@dataclass(frozen=True)
class Inputs:
    """The inputs of a search.

    Args:
        space: The space of widths.
        room: The part of the space that the budget allows.
        measured: The measured cost of widths, see `search`; None for closed forms.
        parts: The training images in three parts.
        ranks: axis -> scores (size,); None: the order of units is theirs in the network.
        order: axis -> units, the best first; None as for `ranks`.
        provider: The source of weights.
        maker: Builds networks for evaluation.
        history: The rows of the supernet's training, if there was one.
    """

    space: Space
    room: Feasible
    measured: Callable[[dict[str, int]], float] | None
    parts: SearchSplits
    ranks: dict[str, Tensor] | None
    order: Orders | None
    provider: Inherit | Supernet
    maker: Builder
    history: list[dict[str, Any]]


def prepare(task: Task, budget: Budget, config: Config, run: Run) -> Inputs:
    """Prepare a search: train the weights if needed, and hold out images.

    config: resolved. Raises BudgetError if no network is within the budget.
    """
    graph = task.graph
    space, parts = config.space(graph), split_training(task.data.train, config.images, run.seed)
    ranks = score_units(task, graph, parts, config, run)
    order = ranks and best_first(graph, ranks)
    room, measured = priced(space, budget, order)
    calibration = calibration_set(parts.train, config.calibration, run.seed)
    renew = moving_norms if config.strict_paper else renew_norms
    history: list[dict[str, Any]] = []
    if config.weights in UNTRAINED:
        provider = Inherit(task.model, space, order)
        if config.weights == "closed_form":
            inputs = [x for x, _ in calibration.between(0, len(calibration))]
            provider = ClosedForm(task.model, space, inputs, order)
        maker = Builder(provider.network, calibration, renew)
    else:
        provider = make_supernet(task, room, order, config, run.seed)
        maker = Builder(provider.network, calibration, renew)
        history = train_supernet(provider, SupernetTask(task, parts.train, maker), config, run)
    return Inputs(space, room, measured, parts, ranks, order, provider, maker, history)


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Search, and keep the units of the best network.

    Args:
        task: The task, with the model to prune.
        budget: The limit.
        config: The options.
        run: The run, which gives seed, folder, progress and log.

    Returns:
        The kept units, the winner's weights unless they are the base's, and charts.

    Raises:
        UserError: Options conflict.
        BudgetError: No network is within the budget.
    """
    config = config.resolved()
    at = prepare(task, budget, config, run)
    space, maker, parts = at.space, at.maker, at.parts
    found = search(
        space,
        budget,
        scorer(task, maker, parts.search),
        how=config.strategy(),
        seed=run.seed,
        seeds=seed_widths(space.graph, at.ranks, budget, at.room.price, config),
        strict_paper=config.strict_paper,
        price=at.room.price,
        chunks=() if config.strict_paper else CHUNKS,
        confirm=None if config.strict_paper else scorer(task, maker, parts.confirm),
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
        weights=winner_weights(task, space, keep, maker, found, config, run.seed),
        charts=[
            *charts.training_charts(at.history, task.metric.key),
            *charts.search_charts(found, budget, space, score),
        ],
    )


def make_supernet(task: Task, room: Feasible, order: Orders | None, config: Config, seed: int) -> Supernet:
    """Make weights for all networks, not trained yet."""
    graph, names = room.space.graph, room.space.names
    net, maker = copy.deepcopy(task.model), None
    assert config.sampling is not None  # resolved
    if config.start == "scratch":
        reinitialise(net, task.example, names, seed)
    if config.weights == "hypernet":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            maker = PruningNet(graph, names, form=config.form, hidden=config.hidden)
    return Supernet(net, room, order=order, maker=maker, sampling=config.sampling, seed=seed)


def train_supernet(net: Supernet, task: SupernetTask, config: Config, run: Run) -> list[dict[str, Any]]:
    """Train the supernet, or continue a killed training; returns a row for each epoch."""
    purpose, part = ("scratch", QUARTER) if config.start == "scratch" else ("tune", 1)
    epochs = config.epochs or math.ceil(task.task.recipe(purpose).epochs / part)
    smoothing = {"label_smoothing": SMOOTHING} if config.weights == "hypernet" else {}
    recipe = task.task.search_recipe(purpose, epochs=epochs, ema_decay=0.0, **smoothing)
    history = fit(
        net,
        task,
        recipe,
        folder=run.folder("prune") / "supernet",
        seed=run.seed,
        along=StepCounter(net),
        progress=run.progress,
        label="training the supernet",
    )
    for row in history:
        run.log("epoch", stage="prune", **row)
    return history


def winner_weights(
    task: Task,
    space: Space,
    keep: dict[str, list[int]],
    maker: Builder,
    found: Result,
    config: Config,
    seed: int,
) -> dict[str, Tensor] | None:
    """Return the weights that the winner is recovered with, as weights of the whole model; None: the base's."""
    if config.winner == "base":
        return None
    small = maker(found.winner.widths)
    if config.winner == "anew":
        reinitialise(small, task.example, space.names, seed)
    return named_tensors(scatter(task.model, space.graph, keep, small))


def score_units(
    task: Task, graph: Graph, parts: SearchSplits, config: Config, run: Run
) -> dict[str, Tensor] | None:
    """Return the scores that decide which units of an axis stay; None: the first stay."""
    if config.order == "none":
        return None
    if config.order == "magnitude":
        return scores.magnitude(task.model, graph)
    chosen = calibration_set(parts.train, SCORED_BATCHES * SCORED_BATCH_SIZE, run.seed).split
    with run.progress("scoring units", chosen.steps(SCORED_BATCH_SIZE)) as step:

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in chosen.batches(SCORED_BATCH_SIZE):
                yield batch
                step(1)

        return scores.taylor(task.model, graph, task.loss, batches())


def seed_widths(
    graph: Graph, ranks: dict[str, Tensor] | None, budget: Budget, price: Price, config: Config
) -> list[dict[str, int]]:
    """Return the widths that the scores alone choose, to begin the search with."""
    if ranks is None or config.strict_paper:
        return []
    return [graph.widths(config.select(graph, ranks, budget, price=price))]


def priced(
    space: Space, budget: Budget, order: Orders | None
) -> tuple[Feasible, Callable[[dict[str, int]], float] | None]:
    """Return the part of the space that the budget allows, and the function that measures a network's cost.

    The function is None for costs with a closed form. Predicted milliseconds are corrected by those measured of uniform
    networks.
    """
    if not isinstance(budget, Metered):
        return Feasible(space, budget), None

    def uniform(price: Price) -> dict[str, list[int]]:
        return space.keep(space.widths(Feasible(space, budget, price=price).uniform()), order)

    meter = budget.meter
    figures = meter.figures(meter.select(budget, uniform))  # the same in all processes
    before = figures["original_ms"]
    # By the corrected price that network is just within the limit, so the search begins with one that meets the budget.
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
