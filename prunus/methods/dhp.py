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
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from prunus.charts import Chart, Heat, Lines
from prunus.dhp_config import Config
from prunus.errors import UserError
from prunus.latents import DHP
from prunus.methods import Pruned
from prunus.selection import Budget
from prunus.train import Along, distinct, fit

SHOWN_TIMES = 40  # of each latent in the report


class Beside(Along):
    """A search beside a training."""

    def __init__(self, search: DHP):
        self.search, self.decays = search, search.decays
        self.state, self.restore = search.state, search.restore

    @property
    def finished(self) -> bool:
        """The paper's search ends when it is near the budget."""
        return self.search.finished

    def after_step(self, at: Any, step: int, lr: float) -> None:
        """Shrink the latents."""
        self.search.step(at.optimizer)


def prune(task, budget: Budget, config: Config, run) -> Pruned:
    """Train with latents until the network fits the budget; the units that are left, and the weights found."""
    model, config = copy.deepcopy(task.model), config.settled()
    recipe = task.recipe("tune" if config.start == "given" else "scratch")
    recipe = replace(
        recipe, epochs=config.epochs or recipe.epochs, ema_decay=0.0
    )  # an average has fixed shapes
    if not recipe.lr:
        raise UserError("the learning rate is 0, with which no latent moves; give one above 0.")
    steps = recipe.epochs * task.data.train.steps(recipe.batch_size)
    search = DHP(model, task.example, budget, steps=steps, config=config, seed=run.seed)
    where = {"folder": run.folder("prune") / "search", "progress": run.progress, "label": "searching widths"}
    for row in fit(model, task, recipe, seed=run.seed, along=Beside(search), **where):
        run.log("epoch", stage="prune", **row)
    search.decide()
    run.log("decided", steps=search.done, units_cut_in_use=search.left_over)
    return Pruned(keep=search.keep, weights=distinct(search.full()), charts=list(drawn(search)))


def drawn(search: DHP) -> Iterator[Chart]:
    """The search in pictures: the cost against its plan, the widths, the fate of the latents."""
    records = search.records
    steps, price = [record["step"] for record in records], search.budget.name
    plan = {"plan": [(record["step"], record["plan"]) for record in records]}
    followed = plan if search.config.strength is None else {}  # a constant strength follows none
    yield Lines(
        title=f"{price} of the units still in use",
        note=f"Dashed: {'the plan that the strength of the threshold follows, and ' if followed else ''}the budget. "
        "What is in use above the budget at the end was cut then.",
        x_label="step",
        y_label="share of before",
        series={"in use": [(record["step"], record["ratio"]) for record in records]},
        references=followed | {"budget": [(step, search.target) for step in (steps[0], steps[-1])]},
    )
    sizes = [search.graph.axes[name].size for name in search.latents.places]
    yield Heat(
        title="Widths",
        note="The share of each axis that is in use: the darker, the more.",
        rows=list(search.latents.places),
        x=steps,
        x_label="step",
        values=[[record["widths"][row] / size for record in records] for row, size in enumerate(sizes)],
        value_label="in use",
    )
    fates: dict[str, list] = {"kept": [], "removed": []}
    times = records[:: -max(1, len(records) // SHOWN_TIMES)][::-1]  # the last among them
    for at, stays in enumerate(search.among(search.keep)[search.noted].tolist()):
        line = [(record["step"], record["latents"][at]) for record in times]
        fates["kept" if stays else "removed"].append(line)
    yield Lines(
        title="The latents' fate",
        note=f"The size of {len(search.noted)} of {len(search.owners)} latents. A unit whose latent reaches zero has "
        "no part in the network any more; one that is kept nevertheless fills up a width (round_to).",
        x_label="step",
        y_label="size of the latent",
        thin=fates,
    )
