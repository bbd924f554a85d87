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
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunus.methods import Pruned, Run
from prunus.methods.lookahead.config import Config
from prunus.methods.lookahead.judge import Judge
from prunus.selection import Sparsity
from prunus.sparse import eligible, masks, permutation
from prunus.tasks import Task
from prunus.train import Along, in_mode, named_tensors, share_buffers


def prune(task: Task, sparsity: Sparsity, config: Config, run: Run) -> Pruned:
    """Masks of the weights whose loss changes the layers around them most; and weights, if the schedule trains."""
    judge = Judge(config, task.graph, task, run)
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
    return Pruned(masks=judge.masks(found.model, sparsity), weights=named_tensors(found.model))


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
    return Pruned(masks=found, weights=named_tensors(model))


SCHEDULES = {"one_shot": one_shot, "iterative": iterative, "gradual": gradual}
