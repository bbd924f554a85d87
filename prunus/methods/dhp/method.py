"""Learn the width of each layer during training: every unit has a latent number, and small latents shrink to zero.

Li et al., DHP: differentiable meta pruning via hypernetworks, ECCV 2020, arXiv:2003.13683. Each weight is generated
from the latents of the units that it writes to and reads from; after every step of the optimiser the latents are
soft-thresholded. Units with latents of zero are removed, until the budget is met.

mode=exact (ours, the default): the paper's hypernetwork is linear, W = z_out z_in A + C, with A and C free; here it is
W = z_out z_in A. A unit with a latent of zero then contributes to nothing, so removing it changes nothing; it is cut
out of the weights during training, so that steps become cheaper. The search starts from a trained network. The cost
follows a plan that falls linearly to the budget. The threshold acts on the latents for which the plan has no room,
those to which the loss is least sensitive relative to the cost of their units, and is strong enough to remove them in
time. pressure=all: it acts on all latents alike, as in the paper; they are then scaled back, because only their
proportions matter before norms.

The network is taught by what it was before the search. In the paper it is trained from scratch, without a teacher.

mode=paper: the hypernetwork with all its factors and biases, latents sampled from N(0, 1), a constant strength, weight
decay of 1e-4 on everything (--recipe search.weight_decay=... sets another); the search starts from scratch and stops
when the cost is near the budget, which a higher threshold then meets. The paper keeps at least 4 units (floor=4) and
its last features whole.

Departs in both modes: latents belong to the axes of the traced graph, so any network can be pruned; depthwise and
grouped weights need no latents of their own; classifiers are read through latents, too.

    prunus run ... --method dhp --budget macs=0.5
    prunus run ... --method dhp --set mode=paper --set strength=0.0002 --set epochs=100 --set floor=4
"""

import copy
from typing import Any

from prunus.errors import UserError
from prunus.methods import Pruned, Run
from prunus.methods.dhp.charts import charts
from prunus.methods.dhp.config import Config
from prunus.methods.dhp.search import DHP
from prunus.selection import Budget
from prunus.tasks import Task
from prunus.train import Beside, fit, named_tensors

PAPER_DECAY = 1e-4  # of all parameters, the latents included


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Train with latents until the network meets the budget.

    Args:
        task: The task, with the model to prune.
        budget: The limit.
        config: The options.
        run: The run, which gives seed, folder, progress and log.

    Returns:
        The kept units, the trained weights, and charts.

    Raises:
        UserError: Options conflict, or the learning rate is 0.
        BudgetError: The budget cannot be met.
    """
    model, config = copy.deepcopy(task.model), config.resolved()
    recipe = task.search_recipe(**advice(task, config))
    if not recipe.lr:
        raise UserError("the learning rate is 0, so no latent would change; give one above 0.")
    steps = recipe.count_steps(task.data.train.steps(recipe.batch_size))
    search = DHP(model, task.example, budget, steps=steps, config=config, seed=run.seed, graph=task.graph)
    history = fit(
        model,
        task,
        recipe,
        folder=run.folder("prune") / "search",
        seed=run.seed,
        teacher=None if config.from_scratch else task.model,
        along=Beside(search),
        progress=run.progress,
        label="searching widths",
    )
    for row in history:
        run.log("epoch", stage="prune", **row)
    search.decide()
    assert search.keep is not None  # set by decide
    run.log("decided", steps=search.done, units_cut_in_use=search.left_over)
    return Pruned(keep=search.keep, weights=named_tensors(search.full()), charts=list(charts(search)))


def advice(task: Task, config: Config) -> dict[str, Any]:
    """Return the purpose and the fields of the recipe of the search, for `Task.search_recipe`.

    From given weights the network is trained as in recovery, taught by what it was (benchmarks/dhp_recipe.py), for as
    long as in tuning; from scratch as in training, in mode paper with the paper's weight decay.
    """
    fields: dict[str, Any] = {"ema_decay": 0.0}  # an average has fixed shapes
    if config.mode == "paper":
        fields["weight_decay"] = PAPER_DECAY
    scratch = config.from_scratch
    epochs = config.epochs or task.recipe("scratch" if scratch else "tune").epochs
    return {"purpose": "scratch" if scratch else "recover", "epochs": epochs, **fields}
