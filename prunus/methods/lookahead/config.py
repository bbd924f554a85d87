"""The options of Lookahead."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from prunus.errors import UserError
from prunus.graph import Graph
from prunus.methods import Weights, check_loss
from prunus.options import Count
from prunus.selection import Budget, Sparsity
from prunus.sparse import Allocation, choose, eligible, patterns
from prunus.sparse import scores as weight_scores
from prunus.tasks import Task

# fmt: off
Score = Literal[
    "lookahead", "before", "behind", "activity", "magnitude", "wanda", "snip", "grasp", "synflow", "random"
]
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Config(Weights):
    """The options of Lookahead.

    Args:
        score: "lookahead"; with one neighbouring layer alone: "before", "behind"; weighted by how often units are
            active: "activity"; the scores of others, for comparison: "magnitude", "wanda", "snip", "grasp", "synflow",
            "random".
        order: Score all layers in the dense network ("once"), or one after the other, each with those before it pruned,
            "forward" or "backward".
        allocation: How the zeros are distributed over the layers; see docs/sparsity.md.
        norms: "fold": batch norms scale the units that pass through them; "trailing": also the norm after the next
            layer; "off".
        conv: "norm": kernels count by their sums of squares, as in the paper; "exact": with their overlap.
        depthwise: "layer": depthwise layers are pruned and count as neighbours like others; "transparent": the
            neighbours are the layers before and after them.
        pattern: A pattern N:M such as 2:4, which sets the sparsity of every layer, or blocks such as 1x4; None: any
            weight.
        permute: With N:M: first bring units into the order that loses least; the network stays the same.
        schedule: "one_shot": prune once, and recovery retrains; "iterative": prune the same share of the remaining
            weights in each of `rounds`, with `epochs` of training between them; "gradual": prune every `every` steps of
            a training of `epochs`, most in the beginning.
        rounds: Rounds of the iterative schedule.
        epochs: Epochs of a schedule's training; None: as the task advises for tuning.
        every: Steps between two prunings of the gradual schedule.
        freeze: Patterns of layers that stay dense and do not count towards the sparsity.
        batches: The number of batches of training examples for scores that read data.
        batch_size: The batch size of these batches.
    """

    score: Score = "lookahead"
    order: Literal["once", "forward", "backward"] = "once"
    allocation: Allocation = "lamp"
    norms: Literal["fold", "trailing", "off"] = "fold"
    conv: Literal["norm", "exact"] = "norm"
    depthwise: Literal["layer", "transparent"] = "layer"
    pattern: str | None = None
    permute: bool = False
    schedule: Literal["one_shot", "iterative", "gradual"] = "one_shot"
    rounds: Count = 5
    epochs: Count | None = None
    every: Count = 50
    freeze: tuple[str, ...] = ()
    batches: Count = 8
    batch_size: Count = 64

    def default_limit(self) -> Sparsity:
        """Return the sparsity of the pattern, otherwise 80 %."""
        share = patterns.share(self.pattern)
        return Sparsity(share) if share else super().default_limit()

    def fixed_in_search(self) -> tuple[str, ...] | None:
        """Return the number of epochs, an option here, and what has no use without a teacher; None if nothing is
        trained."""
        fixed = ("epochs", "distill_weight", "distill_temperature")
        return None if self.schedule == "one_shot" else fixed

    def preview(self) -> "Config":
        """Return the options without training between prunings."""
        return replace(self, schedule="one_shot")

    def check_together(self, limit: Budget | Sparsity) -> None:
        """Raise UserError if options conflict with each other or with the sparsity."""
        assert isinstance(limit, Sparsity)  # see Method.check
        share = patterns.share(self.pattern)
        if share is not None and abs(limit.value - share) > 1e-9:
            raise UserError(
                f"pattern={self.pattern} sets {100 * share:g} % of the weights to zero, but a sparsity of "
                f"{limit.value:g} was asked for; give --sparsity {share:g}, or a pattern of blocks such as 1x4."
            )
        if share is not None and self.schedule != "one_shot":
            raise UserError(
                f"pattern={self.pattern} fixes the sparsity and needs schedule=one_shot, not {self.schedule}."
            )
        if self.permute and share is None:
            raise UserError(
                f"permute=True goes with a pattern of N:M such as 2:4, but pattern={self.pattern}."
            )
        ordered = self.score in ("lookahead", "activity") and not self.pattern and self.conv == "norm"
        if self.order != "once" and not ordered:
            raise UserError(
                f"order={self.order} goes with score=lookahead or activity, conv=norm and no pattern, but here are "
                f"score={self.score}, conv={self.conv}, pattern={self.pattern}; leave order=once."
            )

    def check(self, graph: Graph, limit: Budget | Sparsity) -> None:
        """Raise UserError if options conflict, or if the pattern or the sparsity cannot be met."""
        assert isinstance(limit, Sparsity)  # see Method.check
        self.check_together(limit)
        scores = weight_scores.random(graph)
        self.choose(graph, {name: scores[name] for name in eligible(graph, self.freeze)}, limit)

    def check_task(self, task: Task) -> None:
        """Raise UserError if the score needs a loss in evaluation mode, and the task has none."""
        if self.score in ("snip", "grasp"):
            check_loss(task, f"score={self.score}", "another score, such as score=lookahead")

    def choose(
        self,
        graph: Graph,
        scores: dict[str, Tensor],
        wanted: Sparsity,
        within: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return masks of the best-scored weights in `within`; layers that the pattern does not fit stay dense."""
        found = choose(
            scores,
            wanted,
            allocation=self.allocation,
            pattern=self.pattern,
            dims=patterns.contracted(graph),
            within=within,
        )
        return {n: found.get(n, torch.ones_like(score, dtype=torch.bool)) for n, score in scores.items()}

    def left_dense(self, graph: Graph) -> dict[str, str]:
        """Return the weights that the pattern does not fit, and the reasons."""
        if self.pattern is None:
            return {}
        shapes = {name: graph.shapes[name] for name in eligible(graph, self.freeze)}
        return patterns.unfit(shapes, self.pattern, patterns.contracted(graph))
