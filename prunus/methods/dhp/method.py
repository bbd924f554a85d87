"""Learn how wide each layer should be while training it: every unit has a latent number, and small ones shrink to zero.

Li et al., DHP: differentiable meta pruning via hypernetworks, ECCV 2020, arXiv:2003.13683. Each weight is made from
the latents of the units it writes to and reads from; after every step of the optimiser the latents are
soft-thresholded. Units whose latents are zero go, until the budget is met.

mode=exact (ours, the default): the paper's hypernetwork is linear, W = z_out z_in A + C, with A and C free; here it is
W = z_out z_in A. A unit whose latent is zero then has no part in anything, so removing it changes nothing; it is cut
out of the weights while training goes on, so that steps get cheaper. Starts from a trained network. The cost follows a
plan, straight down to the budget; the threshold is on the latents that it has no room for, those that the loss feels
least for what their units cost, and so strong that they are gone in time. pressure=all: on all latents alike, as in the
paper, and then they are scaled back, for only proportions matter under norms.

mode=paper: the hypernetwork with all its factors and biases, latents drawn from N(0, 1), a constant strength, weight
decay on everything, stopped when the cost comes near the budget, which is then met by a higher threshold. From
scratch. The paper keeps 4 units at least (floor=4) and its last features whole.

Departs in both: latents stand for the axes of the traced graph, so any network will do; depthwise and grouped weights
need no private latent; classifiers are read through latents too.

    prunus run ... --method dhp --budget macs=0.5
    prunus run ... --method dhp --set mode=paper --set strength=0.0002 --set epochs=100 --set floor=4
"""

import copy
from dataclasses import replace

from prunus.errors import UserError
from prunus.methods import Pruned, Run
from prunus.methods.dhp.charts import charts
from prunus.methods.dhp.config import Config
from prunus.methods.dhp.search import DHP
from prunus.selection import Budget
from prunus.tasks import Task
from prunus.train import Beside, fit, named_tensors


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Train with latents until the network fits the budget; the units that are left, and the weights found."""
    model, config = copy.deepcopy(task.model), config.settled()
    recipe = task.recipe("tune" if config.start == "given" else "scratch")
    recipe = replace(
        recipe, epochs=config.epochs or recipe.epochs, ema_decay=0.0
    )  # an average has fixed shapes
    if not recipe.lr:
        raise UserError("the learning rate is 0, with which no latent moves; give one above 0.")
    steps = recipe.epochs * task.data.train.steps(recipe.batch_size)
    search = DHP(model, task.example, budget, steps=steps, config=config, seed=run.seed, graph=task.graph)
    where = {"folder": run.folder("prune") / "search", "progress": run.progress, "label": "searching widths"}
    for row in fit(model, task, recipe, seed=run.seed, along=Beside(search), **where):
        run.log("epoch", stage="prune", **row)
    search.decide()
    run.log("decided", steps=search.done, units_cut_in_use=search.left_over)
    return Pruned(keep=search.keep, weights=named_tensors(search.full()), charts=list(charts(search)))
