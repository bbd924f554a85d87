"""Train a recurrent hypernetwork to say which units a trained network does not need.

Huang et al., PASS: visual prompt locates good structure sparsity through a recurrent hypernetwork, arXiv:2407.17412.
An LSTM reads statistics of the weights of one axis after another, and scores their units; the best that fit the budget
stay, the others are masked. A visual prompt, numbers added to every image, sets the state from which the LSTM starts.
Both are trained with the loss of the masked network, whose own weights are frozen, by straight-through gradients. Then
the units are removed, the norms recalibrated and the weights fine-tuned, as in every run.

Only the paper's abstract and introduction were available; the decisions below are ours (docs/pass.md lists them). Masks
act on the weights that read a unit, because with masks on both sides, as in the paper, a masked unit gets hardly any
gradient (masking=product; none with product_norms). The scores begin as magnitudes, standardised axis by axis
(init=random). Units that are added together share a mask, because otherwise none could be removed. The budget is met in
every step. The best of several snapshots is kept, by the loss on images held out of training. The returned network has
no prompt.

    prunus run ... --method pass --budget macs=0.5
    prunus run ... --method pass --set steps=1000 --set prompt=none
    prunus run ... --method pass --set hypernetwork=runs/other/prune/hypernetwork.safetensors --set steps=50
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from prunus.data import Examples
from prunus.inputs import call, count_examples, model_device, move
from prunus.methods import Pruned, Run
from prunus.methods.pass_.charts import charts
from prunus.methods.pass_.config import MOST_HELD_OUT, Config
from prunus.methods.pass_.search import PASS
from prunus.selection import Budget
from prunus.tasks import Task
from prunus.train import Beside, Recipe, fit, named_tensors


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Train the hypernetwork, and keep the units that it scores best.

    Args:
        task: The task, with the model to prune.
        budget: The limit.
        config: The options.
        run: The run, which gives seed, folder, progress and log.

    Returns:
        The kept units, weights if `train_also` trained some, and charts.

    Raises:
        UserError: Options conflict.
        BudgetError: The budget cannot be met.
    """
    held_out, train = None, task.data.train
    if config.snapshots and config.steps:
        share = min(MOST_HELD_OUT, config.held_out / max(1, len(train)))
        train, held_out = train.hold_out(share, run.seed)
        task = task.with_data(replace(task.data, train=train))
    recipe = search_recipe(task, config)
    score = None if held_out is None else scorer(task, held_out, recipe)
    search = PASS(
        task.model, task.example, budget, config=config, seed=run.seed, score=score, graph=task.graph
    )
    kept = search.kept
    assert isinstance(kept, torch.Tensor)
    run.log("searching", axes=len(search.names), units=len(kept), left_alone=search.left_alone)
    if config.steps:
        history = fit(
            search,
            task,
            recipe,
            folder=run.folder("prune") / "search",
            seed=run.seed,
            along=Beside(search),
            progress=run.progress,
            label="searching units",
        )
        for row in history:
            run.log("epoch", stage="prune", **row)
    search.decide()
    assert search.keep is not None  # set by decide
    run.log("decided", steps=search.done, snapshots=search.tried, flips=sum(search.flips))
    file = run.folder("prune") / "hypernetwork.safetensors"
    run.write(lambda: search.save(str(file)))
    learned = named_tensors(search.full()) if config.train_also else None
    return Pruned(keep=search.keep, weights=learned, charts=list(charts(search)))


def search_recipe(task: Task, config: Config) -> Recipe:
    """Return Adam without weight decay, and a learning rate that falls to 0 over the steps of the search."""
    size = config.batch_size or task.recipe("tune").batch_size
    epochs = config.steps / task.data.train.steps(size)
    adam = {"optimizer": "adamw", "lr": config.lr, "weight_decay": 0.0}
    plain = {"batch_size": size, "warmup_epochs": 0.0, "ema_decay": 0.0, "distill_weight": 0.0}
    return task.search_recipe("tune", epochs=epochs, **adam, **plain)


def scorer(task: Task, split: Examples, recipe: Recipe) -> Callable[[Callable[..., Any]], float]:
    """Return the function that scores a network on a split: minus the mean loss, in batches as in training."""

    def score(network: Callable[..., Any]) -> float:
        device, total = model_device(task.model), 0.0
        for x, y in split.batches(recipe.batch_size, seed=0):
            x, y = move((x, y), device)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                total += task.loss(call(network, x), y).item() * count_examples(x)
        return -total / len(split)

    return score
