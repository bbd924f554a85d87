"""Let a recurrent hypernetwork say which units a trained network can do without, and learn to say so.

Huang et al., PASS: visual prompt locates good structure sparsity through a recurrent hypernetwork, arXiv:2407.17412.
An LSTM walks through the network's axes, reads statistics of their weights, and scores their units; the best that fit
the budget stay, the others are masked. A visual prompt, numbers added to every picture, sets the state from which the
LSTM starts. Both learn by the loss of the masked network, whose own weights are frozen, with straight-through
gradients. Then the units are removed, norms renewed and the weights fine-tuned, as in every run.

Of the paper its abstract and introduction could be read, so much is decided here (docs/pass.md lists it): masks act on
the weights that read a unit, for with masks on both sides, as the paper writes them, a unit that is out feels hardly
any gradient again (masking=product; none with product_norms); the scores begin as magnitudes, standardised axis by
axis (init=random); what is added together shares a mask, for else nothing could be removed; the budget is met in every
step; the best of several snapshots is kept, by the loss on pictures held out of training; the network that is returned
has no prompt.

    prunus run ... --method pass --budget macs=0.5
    prunus run ... --method pass --set steps=1000 --set prompt=none
    prunus run ... --method pass --set hypernetwork=runs/other/prune/hypernetwork.safetensors --set steps=50
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from prunus.data import Split
from prunus.methods import Pruned, Run
from prunus.methods.pass_.charts import charts
from prunus.methods.pass_.config import Config
from prunus.methods.pass_.search import PASS
from prunus.selection import Budget
from prunus.tasks import Task
from prunus.train import Beside, Recipe, fit, named_tensors

MOST_HELD_OUT = 0.15  # of the training pictures


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Let the hypernetwork learn, and keep what it scores best."""
    held_out, train = None, task.data.train
    if config.snapshots and config.steps:
        share = min(MOST_HELD_OUT, config.held_out / max(1, len(train)))
        train, held_out = train.hold_out(share, run.seed)
        task = task.with_data(replace(task.data, train=train))
    recipe = search_recipe(task, config)
    score = held_out and tried_on(task, held_out, recipe)
    search = PASS(
        task.model, task.example, budget, config=config, seed=run.seed, score=score, graph=task.graph
    )
    run.log("searching", axes=len(search.names), units=len(search.kept), left_alone=search.left_alone)
    if config.steps:
        where = {
            "folder": run.folder("prune") / "search",
            "progress": run.progress,
            "label": "searching units",
        }
        for row in fit(search, task, recipe, seed=run.seed, along=Beside(search), **where):
            run.log("epoch", stage="prune", **row)
    search.decide()
    run.log("decided", steps=search.done, snapshots=search.tried, flips=sum(search.flips))
    file = run.folder("prune") / "hypernetwork.safetensors"
    run.write(lambda: search.save(file))
    learned = named_tensors(search.full()) if config.train_also else None
    return Pruned(keep=search.keep, weights=learned, charts=list(charts(search)))


def search_recipe(task: Task, config: Config) -> Recipe:
    """Adam without decay, a learning rate that falls to 0 in the steps there are, which need not be whole epochs."""
    recipe = task.recipe("tune")
    recipe = replace(recipe, batch_size=config.batch_size or recipe.batch_size)
    epochs = config.steps / task.data.train.steps(recipe.batch_size)
    adam = {"optimizer": "adamw", "lr": config.lr, "weight_decay": 0.0}
    return replace(recipe, epochs=epochs, warmup_epochs=0.0, ema_decay=0.0, distill_weight=0.0, **adam)


def tried_on(task: Task, split: Split, recipe: Recipe) -> Callable[[Callable], float]:
    """How good a network is on a split: the loss, turned round, batches as in training but never changed."""

    def score(network: Callable) -> float:
        device, total = next(task.model.parameters()).device, 0.0
        for x, y in split.batches(recipe.batch_size, seed=0):
            x, y = x.to(device), y.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                total += task.loss(network(x), y).item() * len(y)
        return -total / len(split)

    return score
