"""The scores of single weights that Lookahead's options name, on data where they need it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunus.graph import Graph
from prunus.methods import Run, shown_batches
from prunus.methods.lookahead.config import Config
from prunus.selection import Sparsity
from prunus.sparse import eligible, masks, top
from prunus.sparse import gradients as gradient_scores
from prunus.sparse import scores as weight_scores
from prunus.tasks import Task
from prunus.train import Along, Recipe, fit, in_mode

SIDES = {"lookahead": "both", "before": "before", "behind": "behind", "activity": "both"}


@dataclass(frozen=True)
class Judge:
    """Chooses masks for a model as it is now, as often as a schedule asks."""

    config: Config
    graph: Graph
    task: Task
    run: Run

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
