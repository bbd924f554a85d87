"""The scores and masks of single weights that Lookahead's options ask for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.graph import Graph
from prunus.inputs import model_device, move
from prunus.methods import Run, shown_batches
from prunus.methods.lookahead.config import Config
from prunus.selection import Sparsity
from prunus.sparse import eligible, masks, top
from prunus.sparse import gradients as gradient_scores
from prunus.sparse import scores as weight_scores
from prunus.tasks import Task
from prunus.train import Along, Recipe, fit, in_mode

SIDES: dict[str, Literal["both", "before", "behind"]] = {
    "lookahead": "both",
    "before": "before",
    "behind": "behind",
    "activity": "both",
}


@dataclass(frozen=True)
class Judge:
    """Chooses masks for a model in its current state, as often as a schedule needs them.

    Args:
        config: The options.
        graph: The graph of the model.
        task: The task.
        run: The run.
    """

    config: Config
    graph: Graph
    task: Task
    run: Run

    def choose_masks(self, model: nn.Module, wanted: Sparsity) -> dict[str, Tensor]:
        """Return masks of the best weights of `model`; weights that it already holds at zero stay zero."""
        config = self.config
        with in_mode(model, False):
            scores = self.scores(model, wanted)
            scores = {name: scores[name] for name in eligible(self.graph, config.freeze)}
            within = masks.held(model) or None
            found = config.choose(self.graph, scores, wanted, within)
            if config.order == "once":
                return found
            return self.choose_in_order(model, config.order, masks.survivors(found), within)

    def choose_in_order(
        self,
        model: nn.Module,
        order: Literal["forward", "backward"],
        counts: dict[str, int],
        within: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """Return masks of the `counts` best weights of each layer, chosen layer after layer."""

        def best(name: str, scores: Tensor) -> Tensor:
            if name not in counts:
                return torch.ones_like(scores, dtype=torch.bool)
            return top(scores, counts[name], None if within is None else within[name], name=name)

        found = weight_scores.sequential(
            model,
            self.graph,
            best,
            order,
            norms=self.config.norms,
            depthwise=self.config.depthwise,
            activity=self.activity(model),
        )
        return {name: found[name] for name in counts}

    def scores(self, model: nn.Module, wanted: Sparsity) -> dict[str, Tensor]:
        """Return the scores that the options ask for, by parameter."""
        score, graph = self.config.score, self.graph
        if score in SIDES:
            return weight_scores.lookahead(
                model,
                graph,
                sides=SIDES[score],
                norms=self.config.norms,
                conv=self.config.conv,
                depthwise=self.config.depthwise,
                activity=self.activity(model),
            )
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

    def activity(self, model: nn.Module) -> Mapping[int, Tensor] | None:
        """Return how often the units are active, by operator, if the score is weighted with it."""
        if self.config.score != "activity":
            return None
        return weight_scores.active(model, self.graph, self.examples(model))

    def examples(self, model: nn.Module) -> Iterator[tuple[Any, Any]]:
        """Iterate over batches to score with, on the device of the model."""
        device = model_device(model)
        for batch in shown_batches(self.task, self.run, self.config.batches, self.config.batch_size):
            yield move(batch, device)

    def recipe(self) -> Recipe:
        """Return the recipe of the schedules: the task's for tuning, with the epochs of the options."""
        return self.task.search_recipe("tune", epochs=self.config.epochs)

    def fit(self, model: nn.Module, name: str, along: Along | None = None) -> None:
        """Train `model` with its masks, or continue from the checkpoint in the folder `name`."""
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
