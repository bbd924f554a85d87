"""The options of Lookahead."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from prunus.errors import UserError
from prunus.graph import Graph
from prunus.methods import Weights
from prunus.selection import Sparsity
from prunus.sparse import Allocation, choose, eligible, patterns
from prunus.sparse import scores as weight_scores

# fmt: off
Score = Literal[
    "lookahead", "before", "behind", "activity", "magnitude", "wanda", "snip", "grasp", "synflow", "random"
]
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Config(Weights):
    """What they mean:

    score       lookahead, or with one neighbour alone (before, behind), or weighted with how often units are
                active; magnitude, wanda, snip, grasp, synflow, random: others' scores, to compare with
    order       score all layers in the dense network (once), or one after the other in what is left of it
    allocation  how the zeros spread over the layers: see prunus/sparse/selection.py
    norms       fold: batch norms scale what passes; trailing: also the one behind the next layer; off
    conv        norm: kernels count by their sums of squares, as in the paper; exact: with their overlap
    depthwise   layer: they are pruned and looked at like others; transparent: neighbours look through them
    pattern     N:M such as 2:4, which sets the sparsity, of all layers alike, or blocks such as 1x4
    permute     with N:M: first bring units into the order that loses least; the network stays the same
    schedule    one_shot: prune once, recovery retrains. iterative: the same share of what is left in each of
                `rounds`, with `epochs` of training between them. gradual: every `every` steps of a training
                of `epochs`, much at first
    epochs      of the schedule's trainings; None: as the task advises for tuning
    freeze      patterns of layers that stay dense; they do not count
    batches     of `batch_size` training examples, for scores that look at data
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
    rounds: int = 5
    epochs: int | None = None
    every: int = 50
    freeze: tuple[str, ...] = ()
    batches: int = 8
    batch_size: int = 64

    def default_limit(self) -> Sparsity:
        """Return the pattern's own sparsity, otherwise 80 %."""
        share = patterns.share(self.pattern)
        return Sparsity(share) if share else super().default_limit()

    def preview(self) -> "Config":
        """The same without training."""
        return replace(self, schedule="one_shot")

    def check(self, graph: Graph, limit: Sparsity) -> None:
        """Raise UserError for what cannot be done, before anything is trained."""
        for name in ("rounds", "epochs", "every", "batches", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} should be at least 1, but is {value}.")
        share = patterns.share(self.pattern)
        if share is not None and abs(limit.value - share) > 1e-9:
            raise UserError(
                f"pattern={self.pattern} sets {100 * share:g} % of the weights to zero, but a sparsity of "
                f"{limit.value:g} was asked for; give --sparsity {share:g}, or a pattern of blocks such as 1x4."
            )
        if share is not None and self.schedule != "one_shot":
            raise UserError(f"pattern={self.pattern} is one sparsity and goes with schedule=one_shot only.")
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
        scores = weight_scores.random(graph)
        self.choose(graph, {name: scores[name] for name in eligible(graph, self.freeze)}, limit)

    def choose(
        self,
        graph: Graph,
        scores: dict[str, Tensor],
        wanted: Sparsity,
        within: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Masks of the best-scored weights, of those in `within`; layers the pattern does not fit stay whole."""
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
        """The weights that the pattern does not fit, and why."""
        if self.pattern is None:
            return {}
        shapes = {name: graph.shapes[name] for name in eligible(graph, self.freeze)}
        return patterns.unfit(shapes, self.pattern, patterns.contracted(graph))
