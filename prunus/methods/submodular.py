"""Keep the units that the others cannot stand in for; reads inputs alone, no labels unless asked.

El Halabi, Srinivas, Lacoste-Julien, Data-Efficient Structured Pruning via Submodular Optimization, NeurIPS 2022,
arXiv:2203.04940: what the layers that read a unit lose when their weights are fitted again to the units that stay.

Departs: units go one by one (backward) where the paper adds them (forward); all layers that read an axis count, where
the paper prunes the inputs of single layers. What the k best units of an axis are worth beside those of other axes is
the squared change of the model's answer without them, to first order (Taylor's scores without labels), where the paper
tries shares layer by layer. The weights stay as they are, because repair fits them (docs/repair.md).
"""

import glob
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch

from prunus import scores
from prunus.charts import Lines
from prunus.errors import UserError
from prunus.graph import Graph
from prunus.methods import Pruned, Run, Units, check_loss, shown_batches
from prunus.options import Count, Range
from prunus.refit import RIDGE, Curves, Moments, in_answers, unread
from prunus.selection import Budget, How
from prunus.tasks import Task

PROBED = 2  # batches on which the change of the answer is measured
NAMED = 8  # lines with a name of their own in the chart


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """The options of submodular. Axes that no layer's weight reads, such as those of queries and keys, stay whole.

    Args:
        batches: The number of batches of training inputs, without augmentation, to which weights are fitted.
        batch_size: The batch size.
        worth: What is compared between axes: the gradients of the model's answer (gradients), those of the loss, which
            reads labels (loss), how far the answer moves when an axis is cut (answers), or what the layers that read
            the axis leave unexplained, all alike (layers).
        ridge: How much the fitted weights are held to the model's own, as a share of the mean diagonal of the moments.
    """

    how: How = "per_cost"
    batches: Count = 16
    batch_size: Count = 64
    worth: Literal["gradients", "loss", "answers", "layers"] = "gradients"
    ridge: Annotated[float, Range(0, 1)] = RIDGE

    def rules(self, graph: Graph) -> dict[str, Any]:
        """Return the options of `select`, which keep axes without a curve whole."""
        return super().rules(graph) | {"freeze": (*self.freeze, *map(glob.escape, unread(graph)))}

    def check_task(self, task: Task) -> None:
        """Raise UserError if units are to be worth their share of a loss that the task has not."""
        if self.worth == "loss":
            check_loss(task, "submodular with worth=loss", "worth=gradients")


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Keep the units without which most of the outputs of what reads them is unexplained, relative to their cost."""
    graph = task.graph
    batches = list(shown_batches(task, run, config.batches, config.batch_size))
    inputs = [x for x, _ in batches]
    moments = Moments(task.model, graph, inputs)
    curves = moments.curves(config.ridge)
    if not curves.axes:
        axis, why = next(iter(curves.left.items()))
        raise UserError(
            f"submodular: no axis of this model has a curve, such as {axis}: {why}. Take another method."
        )
    for axis, why in curves.left.items():
        run.log("kept_whole", axis=axis, why=why)
    of, worths = "the layers", None
    if config.worth == "answers":
        of, curves = "the model", in_answers(curves, moments, task.model, graph, inputs[:PROBED])
    elif config.worth == "loss":
        worths = scores.taylor(task.model, graph, task.loss, batches)
    elif config.worth == "gradients":
        loss = scores.random_projection(run.seed)
        worths = scores.taylor(task.model, graph, loss, ((x, None) for x in inputs))
    config = replace(config, freeze=(*config.freeze, *map(glob.escape, curves.left)))
    whole = {name: torch.zeros(graph.axes[name].size) for name in curves.left}
    return Pruned(
        keep=config.select(graph, curves.scores(worths) | whole, budget), charts=[chart(curves, of)]
    )


def chart(curves: Curves, of: str) -> Lines:
    """Draw curves of the outputs of `of`, and name those that leave most unexplained at half of their units."""
    lines = {
        name: [(k / (len(curve.losses) - 1), curve.unexplained(k)) for k in range(len(curve.losses))]
        for name, curve in curves.axes.items()
    }
    ranked = sorted(lines, key=lambda name: -curves.axes[name].unexplained(len(lines[name]) // 2))
    return Lines(
        title="Sensitivity curves",
        note="What is lost when an axis is cut alone and the layers that read it are fitted to the units that stay, "
        f"as a share of the variance of the outputs of {of}.",
        x_label="share of the units kept",
        y_label="share lost",
        series={name: lines[name] for name in ranked[:NAMED]},
        thin={"other axes": [lines[name] for name in ranked[NAMED:]]} if ranked[NAMED:] else {},
    )
