"""DHP's search in a training loop: latents that shrink until the network fits a budget.

Every unit has a latent number, by which all weights that write to it or read from it are multiplied (gates.py). After
every step of the optimiser the latents are soft-thresholded; now and then it is seen how far the cost has come, how
hard to push, and which units are gone and can be cut out of the weights (compact.py). methods/dhp.py names the paper
and what departs from it.
"""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from prunus import gates, surgery
from prunus.errors import TrainingError, UserError
from prunus.gates import Compacted, Thresholds, can_be_cut, soft_threshold
from prunus.graph import Graph, trace
from prunus.methods.dhp.config import Config
from prunus.methods.dhp.hypernetwork import attach
from prunus.selection import GRIDS, TOLERANCE, Budget, Metered, Price, blocks, min_units, price_of

FELT = 0.02  # the share of the last step in how much the loss is said to feel a latent
CHECKS = 200  # of a search, at most: latents are counted, the strength is set, dead units are cut out
HORIZON = 20  # what is to go next should be gone in a 20th of the search
PATIENCE = 2  # checks for which a latent has to be zero before its unit is cut out
NEAR = 0.02  # of the cost before: so near the budget what is left over is cut; the paper's stopping rule
NOTED = 100  # latents that are noted at every check, to show what became of them
CHANGES = (
    "settled",
    "done",
    "push",
    "amount",
    "strength",
    "moved",
    "finished",
    "keep",
    "left_over",
    "records",
)
ON_DEVICE = ("stays", "felt", "factor", "least_size")  # tensors (N,)


def learning_rate(optimizer: torch.optim.Optimizer, values: Tensor) -> float:
    """That of the latents. Raises UserError if the optimiser does not hold them."""
    for group in optimizer.param_groups:
        if any(parameter is values for parameter in group["params"]):
            return float(group["lr"])
    raise UserError("the optimiser does not hold the latents; make it after DHP(...), of search.groups().")


class DHP:
    """Latents on a network that is being trained, in the user's own loop:

        search = DHP(model, example, Budget(macs=0.5), steps=10_000)
        optimizer = torch.optim.SGD(search.groups(weight_decay=5e-4), lr=0.05, momentum=0.9)
        for x, y in batches:  # 10,000 of them
            ...
            optimizer.step()
            search.step(optimizer)
        small = search.finish()

    model is changed in place: its weights act through latents (`latents.values`, N of them), and shrink as units go.
    steps: how many there will be. seed: of what is drawn. keep: the units that stay, once that is decided.
    Raises UserError if nothing in the network can be pruned so, BudgetError if the budget cannot be met.
    Shapes: N latents.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        budget: Budget,
        *,
        steps: int,
        config: Config | None = None,
        seed: int = 0,
        graph: Graph | None = None,
    ):
        if not isinstance(steps, int) or steps < 1:
            raise UserError(f"steps should be a whole number from 1, but is {steps!r}.")
        self.model, self.budget, self.steps = model, budget, steps
        self.config = config = (config or Config()).resolved()
        self.graph = graph = graph or trace(model, example)
        self.compacted = Compacted(model, graph)
        free = self.free_axes()
        config.check(graph, budget)  # refuse now what could not be met later
        self.units = Thresholds(graph, free, price_of(graph, budget))
        self.target = budget.limit(self.units.before) / self.units.before
        self.cuts = config.compact and config.mode == "exact" and can_be_cut(model)
        begun = {"start": config.start, "latents": config.latents, "seed": seed}
        factors = config.factors if config.mode == "paper" else None
        self.latents = attach(model, graph, list(free), factors=factors, **begun)
        self.owners = self.units.owners
        self.costs = self.units.unit_costs() if config.cost_aware else torch.ones(len(self.owners))
        self.threshold = 0.0 if config.mode == "exact" else 5e-3
        steps_of = blocks(graph, config.round_to or GRIDS[0], halve=config.round_to is None)
        self.blocks = dict(zip(graph.axes, steps_of.tolist(), strict=True))
        self.check_every, self.horizon = -(-steps // CHECKS), max(1, steps // HORIZON)
        self.noted = torch.linspace(0, len(self.owners) - 1, min(NOTED, len(self.owners))).long()
        # What follows is what changes: `state` and `restore`.
        self.done, self.push, self.amount, self.strength = 0, 1.0, 0.0, config.strength or 0.0
        self.moved = self.finished = False
        self.zero_checks = torch.zeros(len(self.owners), dtype=torch.long)
        self.settled: list[bool] | None = None  # the units that will stay, if nothing else comes up
        self.keep: dict[str, list[int]] | None = None
        self.left_over = 0  # units in use that were cut to meet the budget
        self.records: list[dict] = []
        self.stays = torch.ones_like(self.latents.values.data)
        self.felt = torch.zeros_like(self.stays)
        self.factor = torch.zeros_like(self.stays)
        self.protect()

    # ------------------------------------------------------------------------------- the user's loop
    def groups(self, weight_decay: float) -> list[dict]:
        """Parameter groups for an optimiser, with decay on what `decays`."""
        parameters = list(self.model.parameters())
        return [
            {"params": [p for p in parameters if self.decays(p)], "weight_decay": weight_decay},
            {"params": [p for p in parameters if not self.decays(p)], "weight_decay": 0.0},
        ]

    def decays(self, parameter: Tensor) -> bool:
        """Whether weight decay acts on a parameter: not on biases, norms and latents; in mode paper on all."""
        return self.config.mode == "paper" or parameter.dim() > 1

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Shrink the latents: to be called after each optimizer.step(), while there are gradients still.

        Now and then it cuts out what is gone. Raises UserError if the latents have no gradient, the optimiser does not
        hold them, or its learning rate was zero throughout; TrainingError if a latent is NaN or infinite.
        """
        values, lr = self.latents.values, learning_rate(optimizer, self.latents.values)
        if self.stays.device != values.device:  # the model was moved after the latents were put on it
            for name in (*ON_DEVICE, "owners"):
                setattr(self, name, getattr(self, name).to(values.device))
        if values.grad is None:
            raise UserError("the latents have no gradient; call step after backward and before zero_grad.")
        if self.keep is None:
            felt = (values * values.grad).square().to(self.felt)
            self.felt.lerp_(
                torch.where(felt.isfinite().all(), felt, self.felt), FELT
            )  # else GradScaler skipped it
            amount = lr * self.strength if self.config.strength else self.amount * (lr > 0)
            values.copy_(self.shrunk(values, amount))
        values.mul_(self.stays)  # momentum would still move what is gone
        self.done, self.moved = self.done + 1, self.moved or lr > 0
        if self.keep is None and (self.done % self.check_every == 0 or self.done == self.steps):
            self.check(optimizer, lr)

    def shrunk(self, values: Tensor, amount: float) -> Tensor:
        """The latents after the soft threshold; where it is on all of them, in mode exact, scaled back axis by axis.

        What all latents of an axis lose alike says nothing about which to remove: norms undo it, and weights made from
        small latents hardly learn, for their gradients carry the latents squared. So those that are left keep their
        mean size (ours).
        """
        new = soft_threshold(values, amount * self.factor, self.least_size)
        if self.config.mode == "paper" or self.config.pressure == "least":
            return new
        sums = new.new_zeros(2, len(self.latents.places))
        sums.index_add_(1, self.owners, torch.stack([values.abs() * (new != 0), new.abs()]))
        return new * (sums[0] / sums[1].clamp_min(1e-12))[self.owners]

    def ratio(self) -> float:
        """What the network would cost without the units whose latents are zero, as a share of before."""
        return self.units.shares(self.alive()[None]).item()

    def full(self) -> nn.Module:
        """A plain copy of the original's shapes: zeros where units are gone. The model that was given becomes plain."""
        gates.take_off(self.model)
        full = self.compacted.full()
        self.refuse_nan("a weight", full)
        return full

    def finish(self) -> nn.Module:
        """The small network: plain, of the model's class, proved. The model that was given becomes plain, too.

        Warns if units in use had to be cut to meet the budget. Raises PruningError if the proof fails, TrainingError
        if a latent or weight is NaN or infinite.
        """
        self.decide()
        return surgery.shrink(self.full(), self.graph, self.keep)

    # -------------------------------------------------------------------------------------- counting
    def record(self, ratio: float) -> dict:
        """Where the search stands, for the report."""
        widths = self.units.counts(self.alive()[None])[0].tolist()
        found = {"step": self.done, "ratio": ratio, "plan": self.plan(self.done), "strength": self.strength}
        return found | {"widths": widths, "latents": self.sizes()[self.noted].tolist()}

    def free_axes(self) -> dict[str, int]:
        """The axes that get latents, and how many units each has to keep. Raises UserError if there is none."""
        whole = self.config.whole(self.graph)
        bounds = min_units(self.graph, self.config.floor, self.config.cap, (*self.config.freeze, *whole))
        free = {name: units for name, (units, _) in bounds.items() if units < self.graph.axes[name].size}
        if not free:
            whys = [f"{name}: {whole.get(name, why)}" for name, (_, why) in list(bounds.items())[:3]]
            more = " mixed=True takes them nevertheless." if whole else ""
            raise UserError(f"dhp can prune no axis of this network ({'; '.join(whys)}).{more}")
        return free

    def sizes(self) -> Tensor:
        """(N,): how large the latents are. Raises TrainingError if one is NaN or infinite."""
        self.refuse_nan("a latent", self.latents)
        return self.latents.values.detach().abs().cpu()

    def refuse_nan(self, what: str, module: nn.Module) -> None:
        """Raise TrainingError if a parameter of the module is NaN or infinite."""
        if not all(parameter.isfinite().all() for parameter in module.parameters()):
            after = f"after {self.done} steps; lower the learning rate."
            raise TrainingError(f"{what} is NaN or infinite {after}")

    def alive(self) -> Tensor:
        """(N,) bool: the latents above the threshold."""
        return self.sizes() > self.threshold

    def plan(self, step: int) -> float:
        """The share of the cost at which the network should be after `step` steps: whole for a HORIZON, to see what
        the loss feels, then straight down to the target."""
        done = (step - self.horizon) / max(1.0, self.config.ramp * self.steps - self.horizon)
        return 1 - (1 - self.target) * min(1.0, max(0.0, done))

    def scores(self) -> Tensor:
        """(N,): what the latents are ranked by, zero for those that are gone.

        How much the loss feels a latent: the mean square of its first-order change without it (Molchanov et al.,
        arXiv:1906.10771), over the last steps.
        """
        felt = self.sizes() if self.config.pressure == "all" else self.felt.cpu()
        return felt * self.alive() / self.costs

    def staying(self) -> Tensor:
        """(N,) bool: the units that are in use and that no pressure drives out."""
        return self.alive() & ((self.factor.cpu() == 0) | (self.config.pressure == "all"))

    # ---------------------------------------------------------------------------------------- checks
    def check(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        """See how far the search is: set the strength, cut out what is gone, or decide."""
        ratio = self.ratio()
        self.records.append(self.record(ratio))
        self.zero_checks = torch.where(self.alive(), 0, self.zero_checks + 1)
        self.protect()
        if self.is_time(ratio):
            self.decide()
            self.finished = self.config.mode == "paper"
            if self.config.mode == "exact":
                self.cut(self.keep, optimizer)
            return
        if self.config.strength is None and lr > 0:
            self.follow(ratio, lr)
        if self.cuts:
            self.cut(self.without_gone(), optimizer)

    def is_time(self, ratio: float) -> bool:
        """Whether to decide: the ramp is over, or the cost is so low, or near the budget where the paper says so."""
        if self.config.mode == "paper" and ratio <= self.target + NEAR:
            return True
        end = self.steps if self.config.strength else self.config.ramp * self.steps
        return self.done >= end or ratio <= self.target

    def follow(self, ratio: float, lr: float) -> None:
        """Set the threshold so that the units the plan has no room for are gone after a HORIZON of steps.

        While the cost is above the plan the push grows, so that no gradient can hold the latents up for ever.
        """
        self.push = self.push * 1.1 if ratio > self.plan(self.done) else max(1.0, self.push / 1.1)
        scores, share = self.scores() * self.staying(), self.plan(self.done + self.horizon)
        if not scores.any():  # nothing is felt yet: all would leave
            return
        if self.config.pressure == "all":
            self.amount = self.push * self.units.at_share(scores, share) / self.horizon
        else:
            final = self.final(share)
            least = self.units.at_share(scores.masked_fill(final, math.inf), share)
            leaves = self.staying() & ~final & (scores <= least)
            self.factor += (leaves * self.sizes() / self.horizon).to(
                self.stays.device
            )  # once leaving, for good
            self.amount = self.push
        self.strength = self.amount / lr

    def final(self, share: float) -> Tensor:
        """(N,) bool: the units that would stay if it were decided now, none of them leaving, in whole blocks.

        Once the plan has come to the target, that is settled.
        """
        if self.settled is not None:
            return torch.tensor(self.settled)
        budget, price = self.budget, None
        if isinstance(self.budget, Metered):  # as predicted: to measure is for the end
            budget, price = Budget(**{self.budget.name: self.target}), self.units.price
        for left in (self.whole_blocks(), self.staying()):  # rather odd widths than much less than the budget
            final = self.among(self.chosen(budget, left, price))
            if self.units.shares(final[None]).item() >= self.target - TOLERANCE:
                break
        if share <= self.target + 1e-9:
            self.settled = final.tolist()
        return final

    def whole_blocks(self) -> Tensor:
        """(N,) bool: of the units that stay, in axes that have lost some, so many of the best as make whole blocks."""
        stays, ranks = self.staying(), self.units.ranks(self.scores() * self.staying())
        for name, place in self.latents.places.items():
            left, block = int(stays[place].sum()), self.blocks[name]
            if block <= left < len(stays[place]):
                stays[place] &= ranks[place] < left // block * block
        return stays

    def chosen(self, budget: Budget, left: Tensor, price: Price | None = None) -> dict[str, list[int]]:
        """The keep of the best of the units (N,) bool that are left; those that are leaving come last."""
        scores = self.scores() * self.staying()
        ranked = {name: torch.ones(axis.size) for name, axis in self.graph.axes.items()}
        ranked |= {name: scores[place] for name, place in self.latents.places.items()}
        within = {n: left[place].nonzero().flatten().tolist() for n, place in self.latents.places.items()}
        return self.config.select(self.graph, ranked, budget, price=price, within=within)

    def protect(self) -> None:
        """Let the best of each axis, as many as its floor, keep from zero; all press on others, unless at the floor."""
        must_stay = self.units.ranks(self.scores() * self.staying()) < self.units.floors[self.units.owners]
        self.least_size = (must_stay * (self.threshold + 1e-6)).to(self.stays.device)
        if self.config.pressure == "all":
            resting = self.units.counts(self.alive()[None])[0] <= self.units.floors
            self.factor = (self.costs * ~resting[self.units.owners]).to(self.stays.device)

    def decide(self) -> None:
        """Choose what stays: the best of what is left that fit the budget."""
        if self.keep is not None:
            return
        if not self.moved:
            raise UserError(
                f"no latent has moved in {self.done} steps: the learning rate has been 0, or step was not called."
            )
        alive, ratio = self.alive(), self.ratio()
        left = alive
        if self.config.pressure == "all" or ratio < self.target - TOLERANCE:  # what went last may come back
            left = self.among({name: self.compacted.left(name).tolist() for name in self.latents.places})
        if self.settled is not None and not isinstance(self.budget, Metered):
            left = torch.tensor(self.settled)
        self.keep = self.chosen(self.budget, left)
        self.left_over = int((alive & ~self.among(self.keep)).sum())
        if ratio > self.target + NEAR:
            warnings.warn(
                f"dhp: {self.left_over} units still in use were cut to meet the budget, for after {self.done} steps "
                f"the network was at {ratio:.3f} of its cost, not at {self.target:.3f}; give it more epochs.",
                stacklevel=2,
            )

    # --------------------------------------------------------------------------------------- cutting
    def without_gone(self) -> dict[str, list[int]]:
        """What to cut the weights to: units whose latents have been zero for a while go, in whole blocks."""
        in_use, kept = self.zero_checks < PATIENCE, {}
        for name, place in self.latents.places.items():
            left, block = self.compacted.left(name), self.blocks[name]
            wanted = max(1, -(int(in_use[place][left].sum()) // -block)) * block
            first = in_use[place][left].int().argsort(descending=True, stable=True)[:wanted]
            kept[name] = left[first].sort().values.tolist()
        return kept

    def cut(self, keep: dict[str, list[int]], optimizer: torch.optim.Optimizer) -> None:
        """From here on the latents of all but `keep` are zero; where possible their units are cut out."""
        self.stays.copy_(self.among(keep))
        self.latents.values.data.mul_(self.stays)
        if self.cuts:
            self.compacted.cut(keep, optimizer)

    def among(self, keep: dict[str, list[int]]) -> Tensor:
        """(N,) bool: the units in `keep`."""
        found = torch.zeros(len(self.owners), dtype=torch.bool)
        for name, place in self.latents.places.items():
            found[place][keep[name]] = True
        return found

    def identity(self) -> str:
        """What a state has to agree in with the search that goes on from it."""
        return f"{len(self.owners)} latents, {self.steps} steps, {self.budget}"

    def state(self) -> dict:
        """All that changes beside the model's tensors, as plain JSON."""
        found = {name: getattr(self, name) for name in CHANGES} | {"kept": self.compacted.kept}
        found["of"] = self.identity()
        return found | {name: getattr(self, name).tolist() for name in (*ON_DEVICE, "zero_checks")}

    def restore(self, state: dict) -> None:
        """Go to where `state` stands: a model as at first is cut, not filled. Raises UserError if it does not fit."""
        if state["of"] != self.identity():
            raise UserError(f"a state of {state['of']} does not fit a search of {self.identity()}.")
        for name in CHANGES:
            setattr(self, name, state[name])
        for name in ON_DEVICE:
            setattr(self, name, torch.tensor(state[name], device=self.stays.device))
        self.zero_checks = torch.tensor(state["zero_checks"])
        self.compacted.cut(state["kept"])
