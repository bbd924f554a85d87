"""DHP's search in a training loop: latents that shrink until the network fits a budget.

Every unit has a latent number, by which all weights that write to it or read from it are multiplied (prunus.gates).
After every step of the optimiser the latents are soft-thresholded. At most 200 times, a check counts the cost, sets
the strength, and cuts units whose latents are zero out of the weights. method.py names the paper and our departures.
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
from prunus.methods.dhp.state import check_state
from prunus.selection import GRIDS, TOLERANCE, Budget, Metered, Price, blocks, min_units, price_of

RATE = 0.02  # weight of the last step in the moving average of the sensitivities
CHECKS = 200  # checks in a search, at most
HORIZON = 20  # units that are to go next should be gone within a 20th of the search
PATIENCE = 2  # checks for which a latent has to be zero before its unit is cut out
NEAR = 0.02  # of the original cost: this near the budget the rest is cut; the paper's stopping rule
TRACKED = 100  # latents that are recorded at every check, for the charts
# Keys of a stored state -> attributes. The keys are those of older versions, so that their checkpoints load.
SAME = ("done", "amount", "strength", "moved", "finished", "keep", "left_over", "records")
CHANGES = dict(zip(SAME, SAME, strict=True)) | {"settled": "final_units", "push": "gain"}
TENSORS = ("factor", "least_size")  # (N,)
ON_DEVICE = dict(zip(TENSORS, TENSORS, strict=True)) | {"stays": "alive", "felt": "sensitivity"}


def learning_rate(optimizer: torch.optim.Optimizer, values: Tensor) -> float:
    """The learning rate of the latents. Raises UserError if the optimiser does not hold them."""
    for group in optimizer.param_groups:
        if any(parameter is values for parameter in group["params"]):
            return float(group["lr"])
    raise UserError("the optimiser does not hold the latents; make it after DHP(...), of search.groups().")


class DHP:
    """A search for widths in your own training loop, by latents on the network that is trained:

        search = DHP(model, example, Budget(macs=0.5), steps=10_000)
        optimizer = torch.optim.SGD(search.groups(weight_decay=5e-4), lr=0.05, momentum=0.9)
        for x, y in batches:  # 10,000 of them
            ...
            optimizer.step()
            search.step(optimizer)
        small = search.finish()

    `latents.values` (N,) are the latents; `keep` holds the units that stay, once they are decided.
    Source: Li et al., ECCV 2020, arXiv:2003.13683, and ours, see method.py.

    Args:
        model: The model, changed in place: its weights are multiplied by latents, and shrink as units are removed.
        example: An input of the model.
        budget: The budget.
        steps: How many steps there will be.
        config: The options; None: the defaults.
        seed: The seed of all random numbers.

    Raises:
        BudgetError: The budget cannot be met.
        UserError: No axis of the network can be pruned in this way, or `steps` is below 1.
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
        start, latents = config.start, config.latents
        assert start is not None and latents is not None  # `resolved` gave them values
        factors = config.factors if config.mode == "paper" else None
        self.latents = attach(model, graph, [*free], start=start, latents=latents, factors=factors, seed=seed)
        self.owners = self.units.owners
        self.costs = self.units.unit_costs() if config.cost_aware else torch.ones(len(self.owners))
        self.threshold = 0.0 if config.mode == "exact" else 5e-3
        steps_of = blocks(graph, config.multiple or GRIDS[0], halve=config.multiple is None)
        self.blocks = dict(zip(graph.axes, steps_of.tolist(), strict=True))
        self.check_every, self.horizon = -(-steps // CHECKS), max(1, steps // HORIZON)
        self.tracked = torch.linspace(0, len(self.owners) - 1, min(TRACKED, len(self.owners))).long()
        # The attributes below change during the search: `state` and `restore`.
        self.done, self.gain, self.amount, self.strength = 0, 1.0, 0.0, config.strength or 0.0
        self.moved = self.finished = False
        self.zero_checks = torch.zeros(len(self.owners), dtype=torch.long)
        self.final_units: list[bool] | None = None  # the units that stay, as it looked at the last check
        self.keep: dict[str, list[int]] | None = None
        self.left_over = 0  # units in use that were cut to meet the budget
        self.records: list[dict] = []
        self.alive = torch.ones_like(self.latents.values.data)
        self.sensitivity = torch.zeros_like(self.alive)
        self.factor = torch.zeros_like(self.alive)
        self.protect()

    # ------------------------------------------------------------------------------- the user's loop
    def groups(self, weight_decay: float) -> list[dict]:
        """Parameter groups for an optimiser, with `weight_decay` on the parameters for which `decays` is true."""
        parameters = list(self.model.parameters())
        return [
            {"params": [p for p in parameters if self.decays(p)], "weight_decay": weight_decay},
            {"params": [p for p in parameters if not self.decays(p)], "weight_decay": 0.0},
        ]

    def decays(self, parameter: Tensor) -> bool:
        """Whether weight decay acts on a parameter: not on biases, norms and latents, except in mode paper."""
        return self.config.mode == "paper" or parameter.dim() > 1

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Shrink the latents, and at checks cut removed units out. Call it after optimizer.step(), before zero_grad.

        Args:
            optimizer: The optimiser that holds the latents; its state is cut too.

        Raises:
            TrainingError: A latent is NaN or infinite.
            UserError: The latents have no gradient, the optimiser does not hold them, or its rate was always 0.
        """
        values, lr = self.latents.values, learning_rate(optimizer, self.latents.values)
        if self.alive.device != values.device:  # the model was moved after the search was made
            for name in (*ON_DEVICE.values(), "owners"):
                setattr(self, name, getattr(self, name).to(values.device))
        if values.grad is None:
            raise UserError("the latents have no gradient; call step after backward and before zero_grad.")
        if self.keep is None:
            sensitivity = (values * values.grad).square().to(self.sensitivity)
            if_finite = torch.where(sensitivity.isfinite().all(), sensitivity, self.sensitivity)
            self.sensitivity.lerp_(if_finite, RATE)  # GradScaler skips steps that are not finite
            amount = lr * self.strength if self.config.strength else self.amount * (lr > 0)
            values.copy_(self.shrink(values, amount))
        values.mul_(self.alive)  # momentum would still move removed latents
        self.done, self.moved = self.done + 1, self.moved or lr > 0
        if self.keep is None and (self.done % self.check_every == 0 or self.done == self.steps):
            self.check(optimizer, lr)

    def shrink(self, values: Tensor, amount: float) -> Tensor:
        """The latents after the soft threshold; if it acts on all of them, in mode exact, rescaled per axis.

        A loss common to all latents of an axis does not tell which to remove: norms undo it, and weights with small
        latents hardly learn, because their gradients are scaled by the latents squared. So the latents that are left
        keep their mean size (ours).
        """
        new = soft_threshold(values, amount * self.factor, self.least_size)
        if self.config.mode == "paper" or self.config.pressure == "least":
            return new
        sums = new.new_zeros(2, len(self.latents.places))
        sums.index_add_(1, self.owners, torch.stack([values.abs() * (new != 0), new.abs()]))
        return new * (sums[0] / sums[1].clamp_min(1e-12))[self.owners]

    def ratio(self) -> float:
        """The cost of the network without the units whose latents are zero, as a share of the original's."""
        return self.units.shares(self.above_threshold()[None]).item()

    def full(self) -> nn.Module:
        """A plain copy of the model at full size, with zeros for removed units. The model itself becomes plain, too."""
        gates.take_off(self.model)
        full = self.compacted.full()
        self.check_finite("a weight", full)
        return full

    def finish(self) -> nn.Module:
        """Shrink the model, with proof; warns if units in use had to be cut to meet the budget.

        Returns:
            The small network: plain, of the model's class. The model itself becomes plain, too.

        Raises:
            PruningError: The proof failed.
            TrainingError: A latent or weight is NaN or infinite.
        """
        self.decide()
        assert self.keep is not None  # decided just now
        return surgery.shrink(self.full(), self.graph, self.keep)

    # -------------------------------------------------------------------------------------- counting
    def record(self, ratio: float) -> dict:
        """The state of the search at a check, for the charts."""
        widths = self.units.counts(self.above_threshold()[None])[0].tolist()
        found = {"step": self.done, "ratio": ratio, "plan": self.plan(self.done), "strength": self.strength}
        return found | {"widths": widths, "latents": self.sizes()[self.tracked].tolist()}

    def free_axes(self) -> dict[str, int]:
        """The axes that get latents, with the fewest units each keeps. Raises UserError if there is none."""
        whole = self.config.whole(self.graph)
        config = self.config
        bounds = min_units(self.graph, config.floor, config.cap, (*config.freeze, *whole), config.only)
        free = {name: units for name, (units, _) in bounds.items() if units < self.graph.axes[name].size}
        if not free:
            whys = [f"{name}: {whole.get(name, why)}" for name, (_, why) in list(bounds.items())[:3]]
            more = " mixed=True prunes them nevertheless." if whole else ""
            raise UserError(f"dhp can prune no axis of this network ({'; '.join(whys)}).{more}")
        return free

    def sizes(self) -> Tensor:
        """The absolute values (N,) of the latents. Raises TrainingError if one is NaN or infinite."""
        self.check_finite("a latent", self.latents)
        return self.latents.values.detach().abs().cpu()

    def check_finite(self, what: str, module: nn.Module) -> None:
        """Raise TrainingError if a parameter of the module is NaN or infinite."""
        if not all(parameter.isfinite().all() for parameter in module.parameters()):
            after = f"after {self.done} steps; lower the learning rate."
            raise TrainingError(f"{what} is NaN or infinite {after}")

    def above_threshold(self) -> Tensor:
        """Whether each latent is above the threshold, bool (N,)."""
        return self.sizes() > self.threshold

    def plan(self, step: int) -> float:
        """The planned share of the cost after `step` steps: 1 for a HORIZON, to measure sensitivities, then linear."""
        done = (step - self.horizon) / max(1.0, self.config.ramp * self.steps - self.horizon)
        return 1 - (1 - self.target) * min(1.0, max(0.0, done))

    def scores(self) -> Tensor:
        """The scores (N,) that rank the latents, zero for removed ones.

        They are sensitivities: the mean square, over the last steps, of the loss's first-order change without the
        latent (Molchanov et al., arXiv:1906.10771), over the cost of its unit. With pressure=all: sizes.
        """
        sensitivity = self.sizes() if self.config.pressure == "all" else self.sensitivity.cpu()
        return sensitivity * self.above_threshold() / self.costs

    def staying_units(self) -> Tensor:
        """Whether each unit is in use and not being removed, bool (N,)."""
        return self.above_threshold() & ((self.factor.cpu() == 0) | (self.config.pressure == "all"))

    # ---------------------------------------------------------------------------------------- checks
    def check(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        """Count the cost, then set the strength and cut removed units out, or decide."""
        ratio = self.ratio()
        self.records.append(self.record(ratio))
        self.zero_checks = torch.where(self.above_threshold(), 0, self.zero_checks + 1)
        self.protect()
        if self.should_decide(ratio):
            self.decide()
            self.finished = self.config.mode == "paper"
            assert self.keep is not None  # decided just now
            if self.config.mode == "exact":
                self.cut(self.keep, optimizer)
            return
        if self.config.strength is None and lr > 0:
            self.follow_plan(ratio, lr)
        if self.cuts:  # units whose latents have been zero for a while go
            self.cut(self.in_blocks(self.zero_checks < PATIENCE), optimizer)

    def should_decide(self, ratio: float) -> bool:
        """Whether to decide: the ramp is over, or the cost is at the budget (in mode paper, near it)."""
        if self.config.mode == "paper" and ratio <= self.target + NEAR:
            return True
        end = self.steps if self.config.strength else self.config.ramp * self.steps
        return self.done >= end or ratio <= self.target

    def follow_plan(self, ratio: float, lr: float) -> None:
        """Set the threshold so that the units that exceed the plan are removed after a HORIZON of steps.

        While the cost is above the plan the gain grows, so that no gradient can keep the latents from zero for ever.
        """
        self.gain = self.gain * 1.1 if ratio > self.plan(self.done) else max(1.0, self.gain / 1.1)
        scores, share = self.scores() * self.staying_units(), self.plan(self.done + self.horizon)
        if not scores.any():  # no sensitivity has been measured yet, so all units would go
            return
        if self.config.pressure == "all":
            self.amount = self.gain * self.units.threshold_at(scores, share) / self.horizon
        else:
            final = self.choose_final()
            self.final_units = final.tolist()
            least = self.units.threshold_at(scores.masked_fill(final, math.inf), share)
            leaves = self.staying_units() & ~final & ((scores <= least) | (share <= self.target + 1e-9))
            # added, not set: a unit that has started to leave does not return
            self.factor += (leaves * self.sizes() / self.horizon).to(self.alive.device)
            self.amount = self.gain
        self.strength = self.amount / lr

    def choose_final(self) -> Tensor:
        """Choose the units that would stay if it were decided now, bool (N,): none that is being removed.

        Widths are multiples, so as units leave, there are fewer ways to fill the budget; if none is left that fills
        it, the last choice stands. It is still there, because only other units leave; once all of these have left, it
        is final.
        """
        last, staying = self.final_units, self.staying_units()
        before = torch.zeros_like(staying) if last is None else torch.tensor(last)
        if torch.equal(before, staying):
            return before
        budget, price = self.budget, None
        if isinstance(self.budget, Metered):  # by prediction: measuring is for the end
            budget, price = Budget(latency_ms=self.target), self.units.price
        found = self.as_mask(self.choose(budget, staying, price))
        now, then = self.units.shares(torch.stack([found, before])).tolist()
        single = max(self.blocks.values()) == 1  # as much of the budget is filled by any choice
        return found if last is None or single or now >= min(then, self.target - TOLERANCE) else before

    def choose(self, budget: Budget, left: Tensor, price: Price | None = None) -> dict[str, list[int]]:
        """The keep of the best among the units `left` (N,) bool; units that are being removed rank last."""
        scores = self.scores() * self.staying_units()
        ranked = {name: torch.ones(axis.size) for name, axis in self.graph.axes.items()}
        ranked |= {name: scores[place] for name, place in self.latents.places.items()}
        return self.config.select(self.graph, ranked, budget, price=price, within=self.as_keep(left))

    def protect(self) -> None:
        """Keep the best units of each axis, as many as its floor, above zero; pressure=all spares axes at the floor."""
        must_stay = (
            self.units.ranks(self.scores() * self.staying_units()) < self.units.floors[self.units.owners]
        )
        self.least_size = (must_stay * (self.threshold + 1e-6)).to(self.alive.device)
        if self.config.pressure == "all":
            resting = self.units.counts(self.above_threshold()[None])[0] <= self.units.floors
            self.factor = (self.costs * ~resting[self.units.owners]).to(self.alive.device)

    def decide(self) -> None:
        """Choose the units that stay: the best remaining ones that fit the budget."""
        if self.keep is not None:
            return
        if not self.moved:
            raise UserError(
                f"no latent has moved in {self.done} steps: the learning rate has been 0, or step was not called. "
                "Call step after each optimizer.step(), with a learning rate above 0."
            )
        in_use, ratio = self.above_threshold(), self.ratio()
        if self.final_units is not None and not isinstance(self.budget, Metered):
            self.keep = self.as_keep(torch.tensor(self.final_units))
        else:
            free = (
                self.config.pressure == "all" or ratio < self.target - TOLERANCE
            )  # removed units may return
            left = {n: self.compacted.remaining(n).tolist() for n in self.latents.places}
            self.keep = self.choose(self.budget, self.as_mask(left if free else self.in_blocks(in_use)))
        self.left_over = int((in_use & ~self.as_mask(self.keep)).sum())
        if ratio > self.target + NEAR:
            warnings.warn(
                f"dhp: {self.left_over} units still in use were cut to meet the budget, because after {self.done} "
                f"steps the network was at {ratio:.3f} of its cost, not at {self.target:.3f}; give it more epochs.",
                stacklevel=2,
            )

    # --------------------------------------------------------------------------------------- cutting
    def in_blocks(self, units: Tensor) -> dict[str, list[int]]:
        """The keep of `units` (N,) bool, filled up to whole blocks with others that the model still has."""
        kept = {}
        for name, place in self.latents.places.items():
            left, block = self.compacted.remaining(name), self.blocks[name]
            wanted = max(1, -(int(units[place][left].sum()) // -block)) * block
            first = units[place][left].int().argsort(descending=True, stable=True)[:wanted]
            kept[name] = left[first].sort().values.tolist()
        return kept

    def cut(self, keep: dict[str, list[int]], optimizer: torch.optim.Optimizer) -> None:
        """Set the latents of all units but `keep` to zero for good; if possible, cut these units out."""
        self.alive.copy_(self.as_mask(keep))
        self.latents.values.data.mul_(self.alive)
        if self.cuts:
            self.compacted.cut(keep, optimizer)

    def as_mask(self, keep: dict[str, list[int]]) -> Tensor:
        """Whether each unit is in `keep`, bool (N,)."""
        found = torch.zeros(len(self.owners), dtype=torch.bool)
        for name, place in self.latents.places.items():
            found[place][keep[name]] = True
        return found

    def as_keep(self, units: Tensor) -> dict[str, list[int]]:
        """The keep of `units` (N,) bool; axes without latents stay whole."""
        whole = {name: list(range(axis.size)) for name, axis in self.graph.axes.items()}
        return whole | {
            n: units[place].nonzero().flatten().tolist() for n, place in self.latents.places.items()
        }

    def identity(self) -> str:
        """A description of the search; a state can only be restored into a search with the same one."""
        return f"{len(self.owners)} latents, {self.steps} steps, {self.budget}"

    def state(self) -> dict:
        """The state of the search without the model's tensors, as plain JSON; `restore` takes it."""
        tensors = {**ON_DEVICE, "zero_checks": "zero_checks"}
        found = {key: getattr(self, name) for key, name in CHANGES.items()} | {"kept": self.compacted.kept}
        found["of"] = self.identity()
        return found | {key: getattr(self, name).tolist() for key, name in tensors.items()}

    def restore(self, state: dict) -> None:
        """Restore a `state`; the model is cut as it was then, its values come from your checkpoint.

        Raises UserError if the state is of another search, FileError if it is damaged.
        """
        axes, tracked = len(self.latents.places), len(self.tracked)
        check_state(state, self.identity(), len(self.owners), axes, tracked)
        for key, name in CHANGES.items():
            setattr(self, name, state[key])
        for key, name in ON_DEVICE.items():
            setattr(self, name, torch.tensor(state[key], device=self.alive.device))
        self.zero_checks = torch.tensor(state["zero_checks"])
        self.compacted.cut(state["kept"])
