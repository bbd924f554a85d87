"""The options of DHP, and the rules that follow from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from torch import Tensor

from prunus import gates
from prunus.errors import UserError
from prunus.graph import Graph
from prunus.methods import Units, epochs_left, half_of
from prunus.methods.dhp.hypernetwork import Latents, Start
from prunus.options import Count, Range, no_preview, reject_unused
from prunus.selection import Budget, Price, Sparsity, Unreachable
from prunus.tasks import Task

Mode = Literal["exact", "paper"]
Pressure = Literal["least", "all"]


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """The options of DHP.

    Args:
        mode: "exact": removing units changes nothing; "paper": the paper's method, for reproduction. See above.
        pressure: "least": shrink the latents for which the plan has no room, those to which the loss is least sensitive
            relative to the cost of their units; "all": shrink all latents alike, as in the paper. None: "least", in
            mode paper "all".
        start: "given": the weights of the network; "scratch": reinitialised weights. None: "given", in mode paper
            "scratch".
        latents: Initial values: "ones"; "norms": proportional to the norms of the units' weights; "normal": N(0, 1).
            The weights are divided by them, so that nothing changes. None: "ones", with pressure=all "norms", in mode
            paper "normal".
        strength: The soft threshold on all latents, divided by the learning rate; None: as the plan needs, in mode
            paper 2e-4.
        cost_aware: Whether latents are shrunk and ranked in proportion to the cost of their units. None: yes with
            pressure=least.
        ramp: The share of the search in which the plan reaches the budget; the rest trains the remaining units.
        compact: Whether removed units are cut out of the weights during the search (mode exact, one process).
        mixed: Whether to prune also axes over which a norm computes statistics (the stream of a transformer). Their
            removal is not exact, because the remaining units are then normalised differently.
        epochs: Epochs of the search; None: as the task advises for tuning, or for training with start=scratch.
        factors: The size of the hypernetwork's embedding (mode paper).
    """

    no_steps = "it removes units little by little anyhow, while it trains"
    searches_widths = True
    mode: Mode = "exact"
    pressure: Pressure | None = None
    start: Start | None = None
    latents: Latents | None = None
    strength: Annotated[float, Range(0, above=True, hint="give None to follow the plan")] | None = None
    cost_aware: bool | None = None
    ramp: Annotated[float, Range(0.05, 1)] = 0.7
    compact: bool = True
    mixed: bool = False
    epochs: Count | None = None
    factors: Count = 8

    @property
    def from_scratch(self) -> bool:
        """Whether the search begins from reinitialised weights, and so without a teacher."""
        return (self.start or ("scratch" if self.mode == "paper" else "given")) == "scratch"

    def fixed_in_search(self) -> tuple[str, ...]:
        """Return the number of epochs, an option here, and the average, because its shapes are fixed.

        From scratch also the fields of distillation, because the network has no teacher then.
        """
        return (
            "epochs",
            "ema_decay",
            *(("distill_weight", "distill_temperature") if self.from_scratch else ()),
        )

    def preview(self) -> "Config":
        """Raise UserError, because units are chosen by training."""
        raise no_preview("dhp", "training", "another method, such as --method taylor")

    def share_training(self, task: Task, epochs: float) -> tuple["Config", float]:
        """Give the search half of the epochs, unless the options say how many."""
        searched = self.epochs or half_of(epochs)
        return replace(self, epochs=searched), epochs_left(f"dhp with epochs={searched:g}", searched, epochs)

    def resolved(self) -> "Config":
        """Return the options with a value for each None that depends on others; UserError if options conflict."""
        paper = self.mode == "paper"
        strength = self.strength or (2e-4 if paper else None)
        pressure = self.pressure or ("all" if strength else "least")
        latents = self.latents or ("normal" if paper else "norms" if pressure == "all" else "ones")
        aware = pressure == "least" if self.cost_aware is None else self.cost_aware
        if pressure == "least" and strength:
            raise UserError("pressure=least sets the strength itself; leave out strength and mode=paper.")
        if not paper and not self.from_scratch and latents == "normal":
            raise UserError("latents=normal would divide given weights by numbers near zero; take norms.")
        reject_unused(
            self,
            [
                ("mode=exact", not paper, ("factors",)),
                ("mode=paper", paper, ("ramp", "mixed")),
                ("a strength", strength is not None, ("ramp",)),
            ],
        )
        start: Start = "scratch" if self.from_scratch else "given"
        chosen = {"start": start, "latents": latents, "strength": strength, "pressure": pressure}
        return replace(self, cost_aware=aware, **chosen)

    def whole(self, graph: Graph) -> dict[str, str]:
        """Return the axes that stay whole because removing their units would not be exact, and the reasons."""
        return {} if self.mixed or self.mode == "paper" else gates.inexact_axes(graph)

    def check_together(self, limit: Budget | Sparsity) -> None:
        """Raise UserError if options conflict."""
        self.resolved()

    def check(self, graph: Graph, limit: Budget | Sparsity) -> None:
        """Raise UserError if options conflict, Unreachable if the budget cannot be met."""
        self.check_together(limit)
        super().check(graph, limit)

    def rules(self, graph: Graph) -> dict[str, Any]:
        """Return the options of `select`; axes that stay whole count as frozen."""
        return super().rules(graph) | {"freeze": (*self.freeze, *self.whole(graph))}

    def select(
        self,
        graph: Graph,
        scores: Mapping[str, Tensor],
        budget: Budget,
        *,
        price: Price | None = None,
        within: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, list[int]]:
        """Call `select` with these options; its error names an axis that stays whole."""
        try:
            return super().select(graph, scores, budget, price=price, within=within)
        except Unreachable as error:
            if whole := self.whole(graph):
                name, why = next(iter(whole.items()))
                error.args = (
                    f"{error} dhp leaves {name} whole because {why}; mixed=True prunes such axes, too.",
                )
            raise
