"""PASS's search in a training loop: a hypernetwork learns which units a frozen network can do without.

In every step the hypernetwork (recurrent.py) scores all units, the best that fit the budget stay, and the network runs
with the others masked where they are read (gates.py). The gradient of a mask is handed to its score as if there were
no threshold between them. methods/pass_.py names the paper and what is decided here.
"""

import copy
from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from prunus import gates, surgery
from prunus.errors import FileError, TrainingError, UserError
from prunus.gates import Thresholds
from prunus.graph import Graph, skeleton, trace
from prunus.methods.pass_ import hypernetwork
from prunus.methods.pass_.config import Config
from prunus.methods.pass_.hypernetwork import Hypernetwork
from prunus.methods.pass_.prompt import Prompt, Prompted
from prunus.methods.pass_.statistics import STATISTICS, inputs_of, standardised
from prunus.selection import Budget, Metered, min_units, price_of

NOTED = 60  # times that widths are noted in a search
HOOKS = "_forward_hooks", "_backward_hooks", "_backward_pre_hooks"
CHANGES = ("done", "records", "flips", "tried", "best")
Score = Callable[
    [Callable], float
]  # of a function from pictures to the masked network's output: higher is better


class PASS(nn.Module):
    """A search beside your own loop; `model` is left as it is:

        search = PASS(model, example, Budget(macs=0.5), steps=300)
        optimizer = torch.optim.Adam(search.learned(), lr=1e-4)
        for x, y in batches:  # 300 of them
            optimizer.zero_grad()
            loss(search(x), y).backward()
            optimizer.step()
            search.step()
        small = search.finish()

    The search runs on a copy of the model whose norms use the statistics of the batch. steps: how many there will be,
    for the pace of snapshots; None: config's. score: how good the network would be now, for snapshots (see `Config`);
    without one the last scores count. statistic: (model, graph) -> {axis: (size,)} in place of config's. keep_prompt:
    the network that `finish` returns has the prompt before it, to be trained on. seed: of what is drawn. keep: the
    units that stay, once that is decided.
    Raises UserError if nothing in the network can be pruned so, or the prompt does not go with the example; BudgetError
    if the budget cannot be met; FileError if config.hypernetwork does not fit.
    Shapes: N units on the axes `names`, in the order of their computation.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        budget: Budget,
        *,
        steps: int | None = None,
        config: Config | None = None,
        seed: int = 0,
        score: Score | None = None,
        statistic: Callable[[nn.Module, Any], dict[str, Tensor]] | None = None,
        keep_prompt: bool = False,
        graph: Graph | None = None,
    ):
        super().__init__()
        self.budget, self.config, self.keep_prompt = budget, config or Config(), keep_prompt
        config = self.config
        if keep_prompt and config.prompt in ("none", "random"):
            raise UserError(
                f"keep_prompt=True needs a prompt that stays where it is, not prompt={config.prompt}."
            )
        self.steps = config.steps if steps is None else steps
        if not isinstance(self.steps, int) or self.steps < (0 if config.hypernetwork else 1):
            raise UserError(f"steps should be a whole number from 1, but is {self.steps!r}.")
        graph = self.graph = graph or trace(model, example)
        shape = config.pictures(graph)
        self.left_alone, self.names = config.whole(graph), config.names(graph)
        floors = min_units(graph, config.floor, config.cap, config.frozen(graph))
        if all(floors[name][0] == graph.axes[name].size for name in self.names):
            whys = self.left_alone | {name: floors[name][1] for name in self.names}
            raise UserError(
                f"pass can prune no axis of this network ({'; '.join(f'{n}: {w}' for n, w in list(whys.items())[:3])})."
            )
        config.check(graph, budget)  # refuse now what could not be met later
        self.units = Thresholds(
            graph, {name: floors[name][0] for name in self.names}, price_of(graph, budget)
        )
        self.limit = budget.limit(self.units.before)
        self._given = (model,)  # in a tuple, so that it is no part of this module
        self._score = score
        self._build(model, shape, seed, statistic or STATISTICS[config.statistic])
        # What follows is what changes, beside the module's tensors: `state` and `restore`.
        self.done = 0
        self.records: list[dict] = []
        self.flips: list[int] = []  # of masks, by step
        self.tried: list[tuple[int, float]] = []  # snapshots: step, score
        self.best: list[float] | None = None  # the scores of the best of them
        self.keep: dict[str, list[int]] | None = None
        self.kept_now: Tensor | None = None  # the masks of the last batch; `kept`: of the one before
        self._first = self.scores().detach()
        self.kept.copy_(self.chosen(self._first))

    def _build(self, model: nn.Module, shape: tuple | None, seed: int, statistic: Callable) -> None:
        """The copy of the network with its masks, the prompt, and the hypernetwork."""
        config, graph, names = self.config, self.graph, self.names
        sizes = {name: graph.axes[name].size for name in names}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.hypernetwork = Hypernetwork(
                list(sizes.values()),
                hidden=config.hidden,
                recurrent=config.recurrent,
                init=config.init,
                planes=shape and shape[0],
            )
        self.prompt = None
        if shape:
            self.prompt = Prompt(
                shape, config.prompt, config.prompt_size, config.prompt_how, config.prompt_speed
            )
        statistics = standardised(statistic(model, graph), sizes)
        self.register_buffer("statistics", statistics, persistent=False)
        self.register_buffer("inputs", inputs_of(graph, names, statistics), persistent=False)
        self.register_buffer("kept", torch.ones(len(statistics), dtype=torch.bool))
        self.network = skeleton.copied(model, {})
        for module in self.network.modules():
            for hooks in HOOKS:  # the user's own are not for these passes
                getattr(module, hooks).clear()
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for name in config.learning(graph):
            for parameter in behind(self.network, name):
                parameter.requires_grad_(True)
        self.gates = gates.attach(self.network, graph, names, roles=config.roles)
        self.gates.give(torch.ones_like(self.gates.values.data))
        self.to(next(model.parameters()).device)
        if config.hypernetwork:
            self.load(config.hypernetwork)
        self.train()

    # ------------------------------------------------------------------------------- the user's loop
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network makes of a batch, called as the model is, with the prompt on the first tensor it is
        given and all units masked but the best that fit."""
        found = self.scores()
        kept = self.chosen(found)
        if self.training:
            self.kept_now = kept
        if self.prompt:
            args = list(args)
            for held, key in [
                *((args, place) for place in range(len(args))),
                *((kwargs, name) for name in kwargs),
            ]:
                if isinstance(held[key], Tensor):
                    held[key] = self.with_prompt(held[key])
                    break
        return self.run(self.straight_through(found, kept), *args, **kwargs)

    def learned(self) -> list[nn.Parameter]:
        """What an optimiser should hold."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @property
    def finished(self) -> bool:
        """Whether the search has had its steps."""
        return self.done >= self.steps

    def decays(self, parameter: Tensor) -> bool:
        """Return whether weight decay acts on a parameter: not on biases and scales, as in any training."""
        return parameter.dim() > 1

    def step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """To be called after each optimizer.step(): counts, notes, and now and then tries the network that would be.

        Raises TrainingError if a score is NaN or infinite.
        """
        if not self.done and self._due(0):
            self.try_out(self._first)
        if self.kept_now is None:
            raise UserError(
                "step was called before any batch: call search(x), backward and optimizer.step() first."
            )
        self.flips.append(int((self.kept_now != self.kept).sum()))
        self.kept.copy_(self.kept_now)
        if self._falls(self.done, NOTED):
            counts = self.units.counts(self.kept.cpu()[None])[0]
            ratio = self.units.shares(self.kept.cpu()[None]).item()
            self.records.append({"step": self.done, "widths": counts.tolist(), "ratio": ratio})
        self.done += 1
        if self._due(self.done):
            with torch.no_grad():
                self.try_out(self.scores())

    def finish(self) -> nn.Module:
        """The small network, plain and proved; with keep_prompt behind a copy of its prompt. Norms still have
        the statistics of before: renew them, then train on. Raises PruningError if the proof fails."""
        self.decide()
        small = surgery.shrink(self.full(), self.graph, self.keep)
        if not self.keep_prompt:
            return small
        return Prompted(copy.deepcopy(self.prompt).to(next(small.parameters()).device), small)

    # ------------------------------------------------------------------------------------- the masks
    def scores(self) -> Tensor:
        """(N,): of all units, differentiable."""
        canvas = self.prompt.canvas() if self.prompt else None
        return self.hypernetwork(self.inputs, self.statistics, canvas)

    def chosen(self, found: Tensor) -> Tensor:
        """(N,) bool: the units that stay with the scores `found`: the best that fit the budget.

        Raises TrainingError if one is NaN or infinite.
        """
        found = found.detach()
        if not found.isfinite().all():
            raise TrainingError(
                f"a score is NaN or infinite after {self.done} steps; lower the learning rate."
            )
        ranked = found.cpu()
        if self.config.scope == "per_axis":  # equal shares: by place in the axis
            ranked = -self.units.ranks(ranked) / torch.bincount(self.units.owners)[self.units.owners]
        return self.units.front(ranked, self.limit).to(found.device)

    def straight_through(self, found: Tensor, kept: Tensor) -> Tensor:
        """(N,): ones and zeros, whose gradients are those of the scores."""
        slope = found - found.detach()  # zeros
        if self.config.straight_through == "clipped":
            slope = slope * (self._distance(found.detach(), kept) <= 1)
        return kept.to(slope.dtype) + slope

    def _distance(self, found: Tensor, kept: Tensor) -> Tensor:
        """(N,): how far scores are from the threshold, the best score that is out; infinite where none is."""
        out = found.masked_fill(kept, -torch.inf)  # not the least that is kept: some are by their floor
        if self.config.scope == "global":
            return (found - out.max()).abs()
        owners = self.hypernetwork.owners
        best = out.new_full((len(self.names),), -torch.inf).scatter_reduce(0, owners, out, "amax")
        return (found - best[owners]).abs()

    def run(self, masks: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The network's output with the given masks (N,)."""
        self.gates.give(masks)
        try:
            return self.network(*args, **kwargs)
        finally:
            self.gates.give(masks.detach())  # what is left behind can be copied

    def with_prompt(self, x: Tensor) -> Tensor:
        """A batch with the prompt on as many of its pictures as config.prompted says."""
        count = round(self.config.prompted * len(x))
        return self.prompt(x) if count == len(x) else torch.cat([self.prompt(x[:count]), x[count:]])

    def train(self, mode: bool = True) -> "PASS":
        """Norms of the searched network use the statistics of the batch, whatever the mode; dropout is off."""
        super().train(mode)
        self.network.eval()
        for module in self.network.modules():
            if isinstance(module, _NormBase):
                module.train()
                module.momentum = 0.0
        return self

    # ------------------------------------------------------------------------------------- deciding
    def of_axes(self, found: Tensor) -> dict[str, Tensor]:
        """Scores (N,) by axis, for `select`; axes left alone get ones."""
        parts = found.detach().cpu().split([self.graph.axes[name].size for name in self.names])
        ones = {name: torch.ones(axis.size) for name, axis in self.graph.axes.items()}
        return ones | dict(zip(self.names, parts, strict=True))

    def among(self, keep: dict[str, list[int]]) -> Tensor:
        """(N,) bool: the units in `keep`."""
        found = torch.zeros(len(self.kept), dtype=torch.bool)
        for name, place in self.gates.places.items():
            found[place][keep[name]] = True
        return found.to(self.kept.device)

    def _falls(self, step: int, times: int) -> bool:
        """Whether one of so many times, spread over the search, is at this step; one more is at 0."""
        steps = max(1, self.steps)
        return not step or step * times // steps > (step - 1) * times // steps

    def _due(self, step: int) -> bool:
        """Whether to try the network after so many steps."""
        count = self.config.snapshots
        return bool(self._score and count) and self._falls(step, count)

    @torch.no_grad()
    def try_out(self, found: Tensor) -> None:
        """See how good the network of the scores `found` (N,) would be, in the widths that would be taken.

        Raises TrainingError if that is NaN or infinite.
        """
        if isinstance(self.budget, Metered):  # as predicted: to measure is for the end
            kept = self.chosen(found)
        else:
            kept = self.among(self.config.select(self.graph, self.of_axes(found), self.budget))
        masks, on = kept.to(found.dtype), self.prompt if self.keep_prompt else nn.Identity()
        value = float(self._score(lambda x: self.run(masks, on(x))))
        if not isfinite(value):
            raise TrainingError(f"the score of the masked network is {value} after {self.done} steps.")
        if not self.tried or value > max(score for _, score in self.tried):
            self.best = found.detach().cpu().tolist()
        self.tried.append((self.done, value))

    def decide(self) -> None:
        """Choose what stays: the best that fit the budget by the scores of the best snapshot, or of now."""
        if self.keep is None:
            found = self.scores() if self.best is None else torch.tensor(self.best)
            self.chosen(found)  # refuses what is not finite
            self.keep = self.config.select(self.graph, self.of_axes(found), self.budget)

    @torch.no_grad()
    def full(self) -> nn.Module:
        """The model that was given, or where config.train_also let parameters learn, a copy with those."""
        model, learned = self._given[0], self.config.learning(self.graph)
        if learned:
            model = skeleton.copied(model, {})
        for name in learned:
            for parameter, own in zip(behind(model, name), behind(self.network, name), strict=True):
                parameter.copy_(own)
        return model

    # ------------------------------------------------------------------------------ files and states
    def save(self, path: str) -> None:
        """Write the hypernetwork and the prompt, to go on from with other data (config.hypernetwork)."""
        tensors = {f"hypernetwork.{name}": t for name, t in self.hypernetwork.state_dict().items()}
        if self.prompt:
            tensors["prompt"] = self.prompt.canvas().detach()
        hypernetwork.save(path, tensors, self.config.described(self.graph))

    @torch.no_grad()
    def load(self, path: str) -> None:
        """Fill the hypernetwork and the prompt from a file. Raises FileError if it does not fit."""
        tensors = hypernetwork.load(path, self.config.described(self.graph))
        try:
            if self.prompt:
                own = self.prompt.values
                own.copy_(tensors.pop("prompt").view_as(own) / self.prompt.speed)
            own = {name.removeprefix("hypernetwork."): tensor for name, tensor in tensors.items()}
            self.hypernetwork.load_state_dict(own)
        except (KeyError, RuntimeError) as error:
            raise FileError(
                f"{path} lacks tensors or holds other ones than its header says: {error}."
            ) from error

    def state(self) -> dict:
        """All that changes beside the module's tensors, as plain JSON."""
        return {name: getattr(self, name) for name in CHANGES}

    def restore(self, state: dict) -> None:
        """Go to where `state` stands."""
        for name in CHANGES:
            setattr(self, name, state[name])


def behind(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters that the weight `name` of a graph is made from: itself, or those of its parametrisation."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if parametrize.is_parametrized(module, attribute):
        return list(module.parametrizations[attribute].parameters())
    return [module.get_parameter(attribute)]
