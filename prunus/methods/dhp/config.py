"""The options of DHP, and what follows from them; see methods/dhp.py."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from prunus import gates
from prunus.errors import UserError
from prunus.graph import Graph
from prunus.methods import Units
from prunus.methods.dhp.hypernetwork import Latents, Start
from prunus.options import check_choices, no_preview, reject_unused
from prunus.selection import Budget, Price, Unreachable

Mode = Literal["exact", "paper"]
Pressure = Literal["least", "all"]


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """What they mean:

    mode        exact: removing units changes nothing; paper: for reproduction. See above
    pressure    least: on the latents the plan has no room for, those that the loss feels least for what their units
                cost; all: on all latents alike, as in the paper. None: least, in mode paper all
    start       given: from the weights the network has; scratch: drawn anew. None: given, in mode paper scratch
    latents     ones; norms: in proportion to the norms of the units' weights; normal: N(0, 1). None: ones, with
                pressure=all norms, in mode paper normal. The weights are divided by them, so that nothing changes
    strength    of the soft threshold on all, which is the learning rate times this; None: the plan, in mode paper 2e-4
    cost_aware  shrink latents, and rank them, in proportion to what their units cost. None: with pressure=least
    ramp        share of the search in which the plan reaches the budget; the rest trains what is left
    compact     cut units that are gone out of the weights during the search (mode exact, one process)
    mixed       also prune axes over which a norm takes statistics (the stream of a transformer): removal then is not
                exact, for what is left is normalised differently
    epochs      of the search; None: as the task advises for tuning, from scratch as for training
    factors     of the hypernetwork's embedding (mode paper)
    """

    mode: Mode = "exact"
    pressure: Pressure | None = None
    start: Start | None = None
    latents: Latents | None = None
    strength: float | None = None
    cost_aware: bool | None = None
    ramp: float = 0.7
    compact: bool = True
    mixed: bool = False
    epochs: int | None = None
    factors: int = 8

    def __post_init__(self):
        check_choices(self)
        ranges = {"ramp": (0.05, 1.0), "epochs": (1, math.inf), "factors": (1, math.inf)}
        for name, (least_value, most) in ranges.items():
            value = getattr(self, name)
            if value is not None and not least_value <= value <= most:
                raise UserError(f"{name} should lie in {least_value}..{most}, but is {value}.")
        if self.strength is not None and not 0 < self.strength < math.inf:
            raise UserError(f"strength should be above 0, but is {self.strength}; None follows the plan.")

    def preview(self) -> "Config":
        """There is none: what goes is found by training."""
        raise no_preview("dhp", "training", "another method, such as --method taylor")

    def settled(self) -> "Config":
        """The same with every None that depends on another option filled in. Raises UserError if options conflict."""
        paper = self.mode == "paper"
        start = self.start or ("scratch" if paper else "given")
        strength = self.strength or (2e-4 if paper else None)
        pressure = self.pressure or ("all" if strength else "least")
        latents = self.latents or ("normal" if paper else "norms" if pressure == "all" else "ones")
        aware = pressure == "least" if self.cost_aware is None else self.cost_aware
        if pressure == "least" and strength:
            raise UserError("pressure=least sets the strength itself; leave out strength and mode=paper.")
        if not paper and start == "given" and latents == "normal":
            raise UserError("latents=normal would divide given weights by numbers near zero; take norms.")
        reject_unused(
            self,
            [
                ("mode=exact", not paper, ("factors",)),
                ("mode=paper", paper, ("ramp", "mixed")),
                ("a strength", strength is not None, ("ramp",)),
            ],
        )
        chosen = {"start": start, "latents": latents, "strength": strength, "pressure": pressure}
        return replace(self, cost_aware=aware, **chosen)

    def whole(self, graph: Graph) -> dict[str, str]:
        """The axes that are left alone because removing their units would not be exact, and why."""
        return {} if self.mixed or self.mode == "paper" else gates.inexact_axes(graph)

    def check(self, graph: Graph, limit: Budget) -> None:
        """Raise UserError for options that conflict, Unreachable if the budget cannot be met."""
        self.settled()
        super().check(graph, limit)

    def rules(self, graph: Graph) -> dict[str, Any]:
        """Return the options of `select`; axes that are left alone count as frozen."""
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
        """Return the keep, of the units in `within`; Unreachable names the axes that are left alone."""
        try:
            return super().select(graph, scores, budget, price=price, within=within)
        except Unreachable as error:
            if whole := self.whole(graph):
                name, why = next(iter(whole.items()))
                error.args = (
                    f"{error} dhp leaves {name} whole, for {why}; mixed=True takes such axes, too.",
                )
            raise
