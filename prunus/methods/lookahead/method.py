"""Set the single weights to zero whose removal changes the layers around them least.

Park et al., Lookahead: a far-sighted alternative of magnitude-based pruning, ICLR 2020, arXiv:2002.04809. The score of
a weight is the change, without it, of the product of its layer with the layers before and after: its size, times the
norms of the weights that feed it and of those that read it. The number of weights that stay in each layer is set by
LAMP by default, Lee et al., ICLR 2021, arXiv:2010.07611, which works with any score.

Departs: neighbours are read from the traced graph, so branches, sums, concatenations and attention count. Score and
allocation are chosen independently, whereas the paper prunes each layer at its own rate (allocation=paper). The paper
scores once or in order; schedules that train between prunings are options.

Zeros make a file smaller, but seldom a model faster: `prunus bench` measures it, and docs/sparsity.md says when to
remove units instead. Units through which nothing passes are removed.

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
    """Keep the weights whose removal would change the layers around them most.

    Args:
        task: The task, with the model to prune.
        sparsity: The limit.
        config: The options.
        run: The run, which gives seed, folder, progress and log.

    Returns:
        Masks, and new weights if the schedule trains or permutes.

    Raises:
        UserError: The sparsity or the pattern cannot be met.
    """
    judge = Judge(config, task.graph, task, run)
    found = SCHEDULES[config.schedule](judge, sparsity)
    return replace(found, pattern=config.pattern, left_dense=config.left_dense(judge.graph))


def one_shot(judge: Judge, sparsity: Sparsity) -> Pruned:
    """Prune once, after bringing units into the order that suits the pattern best if `permute` is on."""
    model = judge.task.model
    pattern = judge.config.pattern
    if not judge.config.permute or pattern is None:  # Config.check lets permute pass only with a pattern
        return Pruned(masks=judge.choose_masks(model, sparsity))
    with in_mode(model, False):
        scores = judge.scores(model, sparsity)
        scores = {name: scores[name] for name in eligible(judge.graph, judge.config.freeze)}
    found = permutation.permuted(model, judge.graph, scores, pattern, seed=judge.run.seed)
    judge.run.log(
        "permuted", axes=len(found.order), before=found.before, after=found.after, skipped=found.skipped
    )
    return Pruned(masks=judge.choose_masks(found.model, sparsity), weights=named_tensors(found.model))


def iterative(judge: Judge, sparsity: Sparsity) -> Pruned:
    """Prune the same share of the remaining weights in each round, and train between rounds, not after the last.

    A resumed run chooses the masks of every round again, from the checkpoints of the trainings between them.
    """
    model, rounds = copy.deepcopy(judge.task.model), judge.config.rounds
    for number in range(1, rounds + 1):
        kept = (1 - sparsity.value) ** (number / rounds)
        wanted = sparsity if number == rounds else Sparsity(1 - kept)
        masks.hold(model, judge.graph, judge.choose_masks(model, wanted))
        judge.run.log("pruned", round=number, survivors=masks.survivors(masks.held(model)))
        if number < rounds:
            judge.fit(model, f"round_{number}")
    return collect(model)


def gradual(judge: Judge, sparsity: Sparsity) -> Pruned:
    """Prune a little every few steps of one training, for the last time at its last step, with new scores each time.

    The remaining share falls cubically with time t: d + (1 - d) (1 - t)^3 (Zhu and Gupta, arXiv:1710.01878). The masks
    are part of the checkpoint, so a resumed run continues with them.
    """
    model, recipe = copy.deepcopy(judge.task.model), judge.recipe()
    steps = recipe.count_steps(judge.task.data.train.steps(recipe.batch_size))
    names = eligible(judge.graph, judge.config.freeze)
    whole = {name: torch.ones(judge.graph.shapes[name], dtype=torch.bool) for name in names}
    masks.hold(model, judge.graph, whole)

    class Tighten(Along):
        def after_step(self, at: Any, step: int, lr: float) -> None:
            done = step + 1
            if done % judge.config.every and done < steps:
                return
            # otherwise the norms' statistics would differ between processes
            share_buffers(model, judge.run.processes)
            wanted = sparsity if done == steps else Sparsity(sparsity.value * (1 - (1 - done / steps) ** 3))
            masks.hold(model, judge.graph, judge.choose_masks(model, wanted))
            judge.run.log("pruned", step=done, kept=masks.density(masks.held(model)))

    judge.fit(model, "gradual", Tighten())
    return collect(model)


def collect(model: nn.Module) -> Pruned:
    """Return the masks that a model holds, and its weights."""
    found = masks.held(model)
    masks.finalise(model)
    return Pruned(masks=found, weights=named_tensors(model))


SCHEDULES = {"one_shot": one_shot, "iterative": iterative, "gradual": gradual}
