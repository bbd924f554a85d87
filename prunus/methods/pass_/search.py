"""PASS's search in a training loop: a hypernetwork learns which units a frozen network does not need.

In every step the hypernetwork scores all units, the best that fit the budget are kept, and the network runs with the
others masked in the weights that read them (prunus.gates). The gradient of a mask is passed to its score as if there
were no threshold between them. method.py names the paper and our decisions.
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
from prunus.errors import FileError, TrainingError, UserError, one_line
from prunus.gates import Thresholds
from prunus.graph import Graph, copy_model, trace
from prunus.methods.pass_ import hypernetwork
from prunus.methods.pass_.config import Config
from prunus.methods.pass_.hypernetwork import MaskNetwork
from prunus.methods.pass_.prompt import Prompt, Prompted, change_first
from prunus.methods.pass_.slopes import at_equal_cost, at_equal_counts, distances
from prunus.methods.pass_.state import check_state
from prunus.methods.pass_.statistics import STATISTICS, network_inputs, standardise
from prunus.selection import Budget, Metered, min_units, price_of

TRACKED = 60  # how often widths are recorded in a search
HOOKS = "_forward_hooks", "_backward_hooks", "_backward_pre_hooks"
CHANGES = ("done", "records", "flips", "tried", "best")
Score = Callable[[Callable], float]  # score(images -> output of the masked network); higher is better


class PASS(nn.Module):
    """A search for units in your own training loop; `model` is not changed:

        search = PASS(model, example, Budget(macs=0.5), steps=300)
        optimizer = torch.optim.Adam(search.learned(), lr=1e-3)
        for x, y in batches:  # 300 of them
            optimizer.zero_grad()
            loss(search(x), y).backward()
            optimizer.step()
            search.step()
        small = search.finish()

    The search runs on a copy of the model whose norms use the statistics of the batch. `keep` holds the units that
    stay, once they are decided. Source: Huang et al., arXiv:2407.17412, and ours, see method.py.
    Shapes: N units on the axes `names`, in the order of their computation.

    Args:
        model: The model.
        example: An input of the model.
        budget: The budget.
        steps: How many steps there will be, which spaces the snapshots; None: config's.
        config: The options; None: the defaults.
        seed: The seed of all random numbers.
        score: score(network) -> how good the masked network is now, for snapshots; None: the last scores count.
        statistic: statistic(model, graph) -> {axis: (size,)}, in place of config's.
        keep_prompt: The network that `finish` returns has the prompt before it.

    Raises:
        BudgetError: The budget cannot be met.
        FileError: config.hypernetwork does not fit.
        UserError: No axis of the network can be pruned in this way, or the prompt does not fit the example.
    """

    statistics: Tensor
    inputs: Tensor
    costs: Tensor
    kept: Tensor

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
                f"keep_prompt=True needs a prompt at a fixed place, not prompt={config.prompt}; take pad or fixed."
            )
        self.steps = config.steps if steps is None else steps
        if not isinstance(self.steps, int) or self.steps < (0 if config.hypernetwork else 1):
            raise UserError(f"steps should be a whole number from 1, but is {self.steps!r}.")
        graph = self.graph = graph or trace(model, example)
        shape = config.pictures(graph)
        self.left_alone, self.names = config.whole(graph), config.names(graph)
        floors = min_units(graph, config.floor, config.cap, config.frozen(graph), config.only)
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
        self._given = (model,)  # in a tuple, so that it is not a submodule
        self._score = score
        self._build(model, shape, seed, statistic or STATISTICS[config.statistic])
        # The attributes below change during the search, like the module's tensors: `state` and `restore`.
        self.done = 0
        self.records: list[dict] = []
        self.flips: list[int] = []  # masks that changed, by step
        self.tried: list[tuple[int, float]] = []  # snapshots: step, score
        self.best: list[float] | None = None  # the units' scores at the best snapshot
        self.keep: dict[str, list[int]] | None = None
        self.kept_now: Tensor | None = (
            None  # the masks of the last batch; `kept` are those of the batch before
        )
        self._first = self.scores().detach()
        self.kept.copy_(self.choose_units(self._first))

    def _build(
        self, model: nn.Module, shape: tuple[int, int, int] | None, seed: int, statistic: Callable
    ) -> None:
        """Build the copy of the network with its masks, the prompt, and the hypernetwork."""
        config, graph, names = self.config, self.graph, self.names
        sizes = {name: graph.axes[name].size for name in names}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.hypernetwork = MaskNetwork(
                list(sizes.values()),
                hidden=config.hidden,
                recurrent=config.recurrent,
                init=config.init,
                channels=shape and shape[0],
            )
        self.prompt = None
        if shape and config.prompt != "none":
            self.prompt = Prompt(
                shape, config.prompt, config.prompt_size, config.prompt_how, config.prompt_speed
            )
        statistics = standardise(statistic(model, graph), sizes)
        self.register_buffer("statistics", statistics, persistent=False)
        self.register_buffer("inputs", network_inputs(graph, names, statistics), persistent=False)
        free = self.units.floors < torch.tensor(list(sizes.values()))
        costs = self.units.unit_costs() * free[self.units.owners]  # what always stays is not paid for
        self.register_buffer("costs", costs, persistent=False)
        self.register_buffer("kept", torch.ones(len(statistics), dtype=torch.bool))
        self.network = copy_model(model, {})
        for module in self.network.modules():
            for hooks in HOOKS:  # the user's hooks are not meant for these passes
                getattr(module, hooks).clear()
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for name in config.learning(graph):
            for parameter in parameters_of(self.network, name):
                parameter.requires_grad_(True)
        self.gates = gates.attach(self.network, graph, names, roles=config.roles)
        self.gates.set_values(torch.ones_like(self.gates.values.data))
        self.to(next(model.parameters()).device)
        if config.hypernetwork:
            self.load(config.hypernetwork)
        self.train()

    # ------------------------------------------------------------------------------- the user's loop
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The masked network's output, called like the model; the prompt is put on the first tensor argument."""
        found = self.scores()
        kept = self.choose_units(found)
        if self.training:
            self.kept_now = kept
        on = self.with_prompt if self.prompt else None
        args, kwargs = change_first(on, args, kwargs)
        return self.run(self.straight_through(found, kept), *args, **kwargs)

    def learned(self) -> list[nn.Parameter]:
        """The parameters that an optimiser should hold."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @property
    def finished(self) -> bool:
        """Whether the search has had its steps."""
        return self.done >= self.steps

    def decays(self, parameter: Tensor) -> bool:
        """Return whether weight decay acts on a parameter: not on biases and scales, as in any training."""
        return parameter.dim() > 1

    def step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Count a step, record the widths, and take snapshots when due. Call it after each optimizer.step().

        Raises:
            TrainingError: A score is NaN or infinite.
            UserError: There was no batch yet.
        """
        if not self.done and self._due(0):
            self.take_snapshot(self._first)
        if self.kept_now is None:
            raise UserError(
                "step was called before any batch: call search(x), backward and optimizer.step() first."
            )
        self.flips.append(int((self.kept_now != self.kept).sum()))
        self.kept.copy_(self.kept_now)
        if self._falls(self.done, TRACKED):
            counts = self.units.counts(self.kept.cpu()[None])[0]
            ratio = self.units.shares(self.kept.cpu()[None]).item()
            self.records.append({"step": self.done, "widths": counts.tolist(), "ratio": ratio})
        self.done += 1
        if self._due(self.done):
            with torch.no_grad():
                self.take_snapshot(self.scores())

    def finish(self) -> nn.Module:
        """Shrink the model to the units decided on, with proof.

        Returns:
            The small network, plain; with keep_prompt, preceded by a copy of the prompt. Its norms still have the
            statistics of the original: renew them, then train on.

        Raises:
            PruningError: The proof failed.
            TrainingError: A score is NaN or infinite.
        """
        self.decide()
        assert self.keep is not None  # decided just now
        small = surgery.shrink(self.full(), self.graph, self.keep)
        if not self.keep_prompt:
            return small
        assert self.prompt is not None  # keep_prompt needs one
        return Prompted(copy.deepcopy(self.prompt).to(next(small.parameters()).device), small)

    # ------------------------------------------------------------------------------------- the masks
    def scores(self) -> Tensor:
        """The scores (N,) of all units, differentiable."""
        canvas = self.prompt.canvas() if self.prompt else None
        return self.hypernetwork(self.inputs, self.statistics, canvas)

    def choose_units(self, found: Tensor) -> Tensor:
        """Choose the best units by the scores `found` (N,) that fit the budget: bool (N,).

        Raises TrainingError if a score is NaN or infinite.
        """
        found = found.detach()
        if not found.isfinite().all():
            raise TrainingError(
                f"a score is NaN or infinite after {self.done} steps; lower the learning rate."
            )
        ranked = found.cpu()
        if self.config.scope == "per_axis":  # equal shares: by rank in the axis
            ranked = -self.units.ranks(ranked) / torch.bincount(self.units.owners)[self.units.owners]
        return self.units.keep_best(ranked, self.limit).to(found.device)

    def straight_through(self, found: Tensor, kept: Tensor) -> Tensor:
        """The masks (N,), ones and zeros, whose gradients go to the scores (straight-through)."""
        found_now, slopes = found.detach(), found - found.detach()  # zeros, with the gradient of the scores
        owners = self.hypernetwork.owners if self.config.scope == "per_axis" else None
        if self.config.straight_through == "budget":
            if owners is None:
                slopes = at_equal_cost(slopes, self.costs)
            else:
                slopes = at_equal_counts(slopes, owners, len(self.names))
        elif self.config.straight_through == "clipped":
            slopes = slopes * (distances(found_now, kept, owners, len(self.names)) <= 1)
        return kept.to(slopes.dtype) + slopes

    def run(self, masks: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The network's output with the given masks (N,)."""
        self.gates.set_values(masks)
        try:
            return self.network(*args, **kwargs)
        finally:
            self.gates.set_values(
                masks.detach()
            )  # without a graph of autograd, so that the module can be copied

    def with_prompt(self, x: Tensor) -> Tensor:
        """The batch with the prompt on a share config.prompted of its images."""
        assert self.prompt is not None  # without a prompt this is not called
        count = round(self.config.prompted * len(x))
        return self.prompt(x) if count == len(x) else torch.cat([self.prompt(x[:count]), x[count:]])

    def train(self, mode: bool = True) -> "PASS":
        """Set the mode; in any mode norms of the searched network use the batch's statistics, and dropout is off."""
        super().train(mode)
        self.network.eval()
        for module in self.network.modules():
            if isinstance(module, _NormBase):
                module.train()
                module.momentum = 0.0
        return self

    # ------------------------------------------------------------------------------------- deciding
    def split_by_axis(self, found: Tensor) -> dict[str, Tensor]:
        """Split scores (N,) by axis, for `select`; axes that are not searched get ones."""
        parts = found.detach().cpu().split([self.graph.axes[name].size for name in self.names])
        ones = {name: torch.ones(axis.size) for name, axis in self.graph.axes.items()}
        return ones | dict(zip(self.names, parts, strict=True))

    def as_mask(self, keep: dict[str, list[int]]) -> Tensor:
        """Whether each unit is in `keep`, bool (N,)."""
        found = torch.zeros(len(self.kept), dtype=torch.bool)
        for name, place in self.gates.places.items():
            found[place][keep[name]] = True
        return found.to(self.kept.device)

    def _falls(self, step: int, times: int) -> bool:
        """Whether one of `times` evenly spaced events falls on this step; an additional one falls on step 0."""
        steps = max(1, self.steps)
        return not step or step * times // steps > (step - 1) * times // steps

    def _due(self, step: int) -> bool:
        """Whether a snapshot is due after `step` steps."""
        count = self.config.snapshots
        return bool(self._score and count) and self._falls(step, count)

    @torch.no_grad()
    def take_snapshot(self, found: Tensor) -> None:
        """Evaluate the network that the scores `found` (N,) would give, in the widths that would be returned.

        Raises TrainingError if its score is NaN or infinite.
        """
        if isinstance(self.budget, Metered):  # by prediction: measuring is for the end
            kept = self.choose_units(found)
        else:
            kept = self.as_mask(self.config.select(self.graph, self.split_by_axis(found), self.budget))
        masks, on = kept.to(found.dtype), self.prompt if self.keep_prompt else None

        def network(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = change_first(on, args, kwargs)
            return self.run(masks, *args, **kwargs)

        assert self._score is not None  # snapshots need a score
        value = float(self._score(network))
        if not isfinite(value):
            raise TrainingError(
                f"the score of the masked network is {value} after {self.done} steps; lower the learning rate, or "
                "check the score function."
            )
        if not self.tried or value > max(score for _, score in self.tried):
            self.best = found.detach().cpu().tolist()
        self.tried.append((self.done, value))

    def decide(self) -> None:
        """Choose the units that stay: the best that fit the budget by the best snapshot's scores, or the present."""
        if self.keep is None:
            found = self.scores() if self.best is None else torch.tensor(self.best)
            self.choose_units(found)  # refuses what is not finite
            self.keep = self.config.select(self.graph, self.split_by_axis(found), self.budget)

    @torch.no_grad()
    def full(self) -> nn.Module:
        """The original model; with config.train_also, a copy with the trained parameters."""
        model, learned = self._given[0], self.config.learning(self.graph)
        if learned:
            model = copy_model(model, {})
        for name in learned:
            for parameter, own in zip(
                parameters_of(model, name), parameters_of(self.network, name), strict=True
            ):
                parameter.copy_(own)
        return model

    # ------------------------------------------------------------------------------ files and states
    def save(self, path: str) -> None:
        """Write hypernetwork and prompt to a file from which a search can start (config.hypernetwork)."""
        tensors = {f"hypernetwork.{name}": t for name, t in self.hypernetwork.state_dict().items()}
        if self.prompt:
            tensors["prompt"] = self.prompt.canvas().detach()
        hypernetwork.save(path, tensors, self.config.described(self.graph))

    @torch.no_grad()
    def load(self, path: str) -> None:
        """Load hypernetwork and prompt from a file. Raises FileError if they do not fit."""
        tensors = hypernetwork.load(path, self.config.described(self.graph))
        try:
            if self.prompt:
                own = self.prompt.values
                own.copy_(tensors.pop("prompt").view_as(own) / self.prompt.speed)
            own = {name.removeprefix("hypernetwork."): tensor for name, tensor in tensors.items()}
            self.hypernetwork.load_state_dict(own)
        except (KeyError, RuntimeError) as error:
            raise FileError(
                f"{path} lacks tensors or holds others than its header says ({one_line(error)}). Train a new one."
            ) from error

    def state(self) -> dict:
        """The state of the search without the module's tensors, as plain JSON; `restore` takes it."""
        return {name: getattr(self, name) for name in CHANGES}

    def restore(self, state: dict) -> None:
        """Restore a `state`; FileError if it is damaged."""
        check_state(state, len(self.statistics), len(self.names))
        for name in CHANGES:
            setattr(self, name, state[name])


def parameters_of(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters of the weight `name` of a graph: itself, or those of its parametrisation."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if parametrize.is_parametrized(module, attribute):
        return list(surgery.lists_of(module)[attribute].parameters())
    return [module.get_parameter(attribute)]
