"""Set the single weights to zero that change the layers around them least.

Park et al., Lookahead: a far-sighted alternative of magnitude-based pruning, ICLR 2020, arXiv:2002.04809. A weight
counts by how much the product of its layer with the ones before and behind changes without it: its size, times
the norms of what feeds it and of what reads it. How many stay in each layer: LAMP by default, Lee et al., ICLR
2021, arXiv:2010.07611, which takes any score.

Departs: neighbours are read off the traced graph, so branches, sums, concatenations and attention count. Score and
allocation are chosen independently; the paper takes from each layer at a rate of its own (allocation=paper) and scores
once or in order; schedules that train between prunings are options.

Zeros make a file smaller, seldom a model faster: `prunus bench` measures it, docs/sparsity.md says when to remove
units instead. Units through which nothing passes are removed for real.

    prunus run ... --method lookahead --sparsity 0.9
    prunus run ... --method lookahead --sparsity 0.99 --set order=backward
    prunus run ... --method lookahead --sparsity 0.95 --set schedule=gradual --set epochs=20
    prunus run ... --method lookahead --sparsity 0.5 --set pattern=2:4
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.errors import UserError
from prunus.graph import Graph, trace
from prunus.methods import Pruned, shown_batches
from prunus.selection import Sparsity
from prunus.sparse import Allocation, choose, eligible, masks, patterns, permutation, top
from prunus.sparse import gradients as gradient_scores
from prunus.sparse import scores as weight_scores
from prunus.train import Along, Recipe, distinct, fit, in_mode, share_buffers

# fmt: off
Score = Literal[
    "lookahead", "before", "behind", "activity", "magnitude", "wanda", "snip", "grasp", "synflow", "random"
]
# fmt: on
USUAL = 0.8
SIDES = {"lookahead": "both", "before": "before", "behind": "behind", "activity": "both"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What they mean:

    score       lookahead, or with one neighbour alone (before, behind), or weighted with how often units are
                active; magnitude, wanda, snip, grasp, synflow, random: others' scores, to compare with
    order       score all layers in the dense network (once), or one after the other in what is left of it
    allocation  how the zeros spread over the layers: see prunus/sparse/selection.py
    norms       fold: batch norms scale what passes; trailing: also the one behind the next layer; off
    conv        norm: kernels count by their sums of squares, as in the paper; exact: with their overlap
    depthwise   layer: they are pruned and looked at like others; transparent: neighbours look through them
    pattern     N:M such as 2:4, which sets the sparsity, of all layers alike, or blocks such as 1x4
    permute     with N:M: first bring units into the order that loses least; the network stays the same
    schedule    one_shot: prune once, recovery retrains. iterative: the same share of what is left in each of
                `rounds`, with `epochs` of training between them. gradual: every `every` steps of a training
                of `epochs`, much at first
    epochs      of the schedule's trainings; None: as the task advises for tuning
    freeze      patterns of layers that stay dense; they do not count
    batches     of `batch_size` training examples, for scores that look at data
    """

    score: Score = "lookahead"
    order: Literal["once", "forward", "backward"] = "once"
    allocation: Allocation = "lamp"
    norms: Literal["fold", "trailing", "off"] = "fold"
    conv: Literal["norm", "exact"] = "norm"
    depthwise: Literal["layer", "transparent"] = "layer"
    pattern: str | None = None
    permute: bool = False
    schedule: Literal["one_shot", "iterative", "gradual"] = "one_shot"
    rounds: int = 5
    epochs: int | None = None
    every: int = 50
    freeze: tuple[str, ...] = ()
    batches: int = 8
    batch_size: int = 64

    @property
    def usual(self) -> Sparsity:
        """What is taken where no sparsity was asked for: the pattern's own, else 80 %."""
        return Sparsity(patterns.share(self.pattern) or USUAL)

    def at_once(self) -> "Config":
        """The same without training."""
        return replace(self, schedule="one_shot")

    def check(self, graph: Graph, wanted: Sparsity) -> None:
        """Raise UserError for what cannot be done, before anything is trained."""
        for name in ("rounds", "epochs", "every", "batches", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} should be at least 1, but is {value}.")
        share = patterns.share(self.pattern)
        if share is not None and abs(wanted.value - share) > 1e-9:
            raise UserError(
                f"pattern={self.pattern} sets {100 * share:g} % of the weights to zero, but a sparsity of "
                f"{wanted.value:g} was asked for; give --sparsity {share:g}, or a pattern of blocks such as 1x4."
            )
        if share is not None and self.schedule != "one_shot":
            raise UserError(f"pattern={self.pattern} is one sparsity and goes with schedule=one_shot only.")
        if self.permute and share is None:
            raise UserError(
                f"permute=True goes with a pattern of N:M such as 2:4, but pattern={self.pattern}."
            )
        ordered = self.score in ("lookahead", "activity") and not self.pattern and self.conv == "norm"
        if self.order != "once" and not ordered:
            raise UserError(
                f"order={self.order} goes with score=lookahead or activity, conv=norm and no pattern, but here are "
                f"score={self.score}, conv={self.conv}, pattern={self.pattern}; leave order=once."
            )
        scores = weight_scores.random(graph)
        self.choose(graph, {name: scores[name] for name in eligible(graph, self.freeze)}, wanted)

    def choose(
        self,
        graph: Graph,
        scores: dict[str, Tensor],
        wanted: Sparsity,
        within: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Masks of the best-scored weights, of those in `within`; layers the pattern does not fit stay whole."""
        found = choose(
            scores,
            wanted,
            allocation=self.allocation,
            pattern=self.pattern,
            dims=patterns.contracted(graph),
            within=within,
        )
        return {n: found.get(n, torch.ones_like(score, dtype=torch.bool)) for n, score in scores.items()}

    def left_dense(self, graph: Graph) -> dict[str, str]:
        """The weights that the pattern does not fit, and why."""
        if self.pattern is None:
            return {}
        shapes = {name: graph.shapes[name] for name in eligible(graph, self.freeze)}
        return patterns.unfit(shapes, self.pattern, patterns.contracted(graph))


@dataclass(frozen=True)
class Judge:
    """Chooses masks for a model as it is now, as often as a schedule asks."""

    config: Config
    graph: Graph
    task: Any
    run: Any

    def masks(self, model: nn.Module, wanted: Sparsity) -> dict[str, Tensor]:
        """For the best weights of `model`; those that a held one has lost stay lost."""
        config = self.config
        with in_mode(model, False):
            scores = self.scores(model, wanted)
            scores = {name: scores[name] for name in eligible(self.graph, config.freeze)}
            within = masks.held(model) or None
            found = config.choose(self.graph, scores, wanted, within)
            return found if config.order == "once" else self.in_order(model, masks.survivors(found), within)

    def in_order(
        self, model: nn.Module, counts: dict[str, int], within: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """So many weights of each layer, chosen layer after layer."""

        def best(name: str, scores: Tensor) -> Tensor:
            if name not in counts:
                return torch.ones_like(scores, dtype=torch.bool)
            return top(scores, counts[name], within and within[name], name=name)

        found = weight_scores.sequential(model, self.graph, best, self.config.order, **self.options(model))
        return {name: found[name] for name in counts}

    def scores(self, model: nn.Module, wanted: Sparsity) -> dict[str, Tensor]:
        """What the configuration asks for, by weight."""
        score, graph = self.config.score, self.graph
        if score in SIDES:
            options = self.options(model) | {"sides": SIDES[score], "conv": self.config.conv}
            return weight_scores.lookahead(model, graph, **options)
        if score == "magnitude":
            return weight_scores.magnitude(model, graph)
        if score == "random":
            return weight_scores.random(graph, self.run.seed)
        if score == "synflow":
            names = eligible(graph, self.config.freeze)
            return gradient_scores.synflow(model, graph, 1 - wanted.value, names=names)
        if score == "wanda":
            return weight_scores.wanda(model, graph, self.examples(model))
        by_gradient = {"snip": gradient_scores.snip, "grasp": gradient_scores.grasp}[score]
        return by_gradient(model, graph, self.task.loss, self.examples(model))

    def options(self, model: nn.Module) -> dict:
        """Of lookahead, in any order."""
        seen = self.config.score == "activity"
        active = weight_scores.active(model, self.graph, self.examples(model)) if seen else None
        return {"norms": self.config.norms, "depthwise": self.config.depthwise, "activity": active}

    def examples(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches to score with, where the model is."""
        device = next(model.parameters()).device
        for x, y in shown_batches(self.task, self.run, self.config.batches, self.config.batch_size):
            yield x.to(device), y.to(device)

    def recipe(self) -> Recipe:
        """How the schedules train: as the task advises for tuning."""
        recipe = self.task.recipe("tune")
        return replace(recipe, epochs=self.config.epochs) if self.config.epochs else recipe

    def fit(self, model: nn.Module, name: str, along: Along | None = None) -> None:
        """Train `model` on, held as it is; a checkpoint in a folder of that name is gone on from."""
        history = fit(
            model,
            self.task,
            self.recipe(),
            folder=self.run.folder("prune") / name,
            seed=self.run.seed,
            along=along,
            progress=self.run.progress,
            label=f"training, {name.replace('_', ' ')}",
        )
        for row in history:
            self.run.log("epoch", stage="prune", of=name, **row)


def prune(task, sparsity: Sparsity, config: Config, run) -> Pruned:
    """Masks of the weights whose loss changes the layers around them most; and weights, if the schedule trains."""
    judge = Judge(config, trace(task.model, task.example), task, run)
    found = SCHEDULES[config.schedule](judge, sparsity)
    return replace(found, pattern=config.pattern, left_dense=config.left_dense(judge.graph))


def one_shot(judge: Judge, sparsity: Sparsity) -> Pruned:
    """All at once, from the network as it is, or with its units in the order that suits the pattern best."""
    model = judge.task.model
    if not judge.config.permute:
        return Pruned(masks=judge.masks(model, sparsity))
    with in_mode(model, False):
        scores = judge.scores(model, sparsity)
        scores = {name: scores[name] for name in eligible(judge.graph, judge.config.freeze)}
    found = permutation.permuted(model, judge.graph, scores, judge.config.pattern, seed=judge.run.seed)
    judge.run.log(
        "permuted", axes=len(found.order), before=found.before, after=found.after, skipped=found.skipped
    )
    return Pruned(masks=judge.masks(found.model, sparsity), weights=distinct(found.model))


def iterative(judge: Judge, sparsity: Sparsity) -> Pruned:
    """Round by round the same share of what is left, scored anew; trained between the rounds, not after the last.

    A resumed run chooses the masks of every round again, from the checkpoints of the trainings between.
    """
    model, rounds = copy.deepcopy(judge.task.model), judge.config.rounds
    for number in range(1, rounds + 1):
        kept = (1 - sparsity.value) ** (number / rounds)
        wanted = sparsity if number == rounds else Sparsity(1 - kept)
        masks.hold(model, judge.graph, judge.masks(model, wanted))
        judge.run.log("pruned", round=number, survivors=masks.survivors(masks.held(model)))
        if number < rounds:
            judge.fit(model, f"round_{number}")
    return finished(model)


def gradual(judge: Judge, sparsity: Sparsity) -> Pruned:
    """A little every few steps of one training, the last with its last step; scored anew each time.

    The share left falls as the cube of what is to come: d + (1 - d) (1 - t)^3 (Zhu and Gupta, arXiv:1710.01878).
    The masks are part of the checkpoint, so a resumed run goes on with them.
    """
    model, recipe = copy.deepcopy(judge.task.model), judge.recipe()
    steps = recipe.epochs * judge.task.data.train.steps(recipe.batch_size)
    names = eligible(judge.graph, judge.config.freeze)
    whole = {name: torch.ones(judge.graph.shapes[name], dtype=torch.bool) for name in names}
    masks.hold(model, judge.graph, whole)

    class Tighten(Along):
        def after_step(self, at: Any, step: int, lr: float) -> None:
            done = step + 1
            if done % judge.config.every and done < steps:
                return
            # or processes would not agree about the norms' statistics
            share_buffers(model, judge.run.processes)
            wanted = sparsity if done == steps else Sparsity(sparsity.value * (1 - (1 - done / steps) ** 3))
            masks.hold(model, judge.graph, judge.masks(model, wanted))
            judge.run.log("pruned", step=done, kept=masks.density(masks.held(model)))

    judge.fit(model, "gradual", Tighten())
    return finished(model)


def finished(model: nn.Module) -> Pruned:
    """The masks a model is held by, and its weights."""
    found = masks.held(model)
    masks.finalise(model)
    return Pruned(masks=found, weights=distinct(model))


SCHEDULES = {"one_shot": one_shot, "iterative": iterative, "gradual": gradual}
