"""Supernets: one set of weights that is trained as networks of many widths, each cut from it for one step.

    sandwich   the whole network, the smallest one, and two of random widths; the smaller ones learn the outputs of the
               whole one (Yu and Huang, Universally Slimmable Networks, ICCV 2019, arXiv:1903.05134)
    uniform    one network per step, each width sampled independently (MetaPruning, Liu et al., ICCV 2019,
               arXiv:1903.10258)
    budget     the same, changed to fit the budget: training and search see the same networks (ours)

The networks of a step depend on the seed and the number of the step alone, so all processes train the same.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunus import surgery
from prunus.data import Examples
from prunus.files import Count, Record, check_json
from prunus.graph import Graph
from prunus.search.proposals import Feasible, sample
from prunus.search.space import Orders, Widths
from prunus.surgery import checked_tensors, resize
from prunus.tasks import Task
from prunus.train import Along, Recipe, Training

Sampling = Literal["sandwich", "uniform", "budget"]
RANDOM = 2  # networks in a sandwich besides the largest and the smallest, as in the paper
TEMPERATURE = 1.0  # the smaller networks learn the outputs as they are


class WeightGenerator(Protocol):
    """A hypernetwork that generates the weights of a network of any widths, such as a PruningNet.

    `unread` names the network's parameters that are generated without reading their own values.
    """

    @property
    def unread(self) -> Collection[str]: ...

    def __call__(self, widths: Mapping[str, int], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights, by name and in full size, of the network of these widths. own: the network's tensors."""
        ...


class Supernet(nn.Module):
    """Weights for all networks within a budget.

    The forward pass returns the outputs of all networks of a step, the largest first.

    Args:
        net: The network that holds the weights; it is trained in place.
        room: The networks within the budget.
        order: axis -> units, the best first; a network keeps the first of them. None: their order in the network.
        maker: A module that generates weights, which replace net's own; None: net's own.
        sampling: The networks trained in a step: sandwich, uniform or budget; see the top of this file.
        seed: The seed of the networks.
    """

    def __init__(
        self,
        net: nn.Module,
        room: Feasible,
        *,
        order: Orders | None = None,
        maker: WeightGenerator | None = None,
        sampling: Sampling = "sandwich",
        seed: int = 0,
    ):
        super().__init__()
        self.net, self.maker = net, maker
        self.room, self.order, self.sampling, self.seed = room, order, sampling, seed
        self.step = 0
        for name, parameter in net.named_parameters():
            if maker is not None and name in maker.unread:
                parameter.requires_grad_(False)  # because nothing reads it

    @property
    def graph(self) -> Graph:
        """The axes of net."""
        return self.room.space.graph

    def sample(self, step: int) -> list[dict[str, int]]:
        """Sample the widths of the networks that a step trains."""
        space, rng = self.room.space, np.random.default_rng([self.seed, step])
        if self.sampling == "sandwich":
            genes = [space.whole, 0 * space.whole, *sample(space.counts, RANDOM, rng)]
        else:
            genes = sample(space.counts, 1, rng)
            genes = self.room.mend(genes, rng) if self.sampling == "budget" else genes
        return [space.widths(each) for each in genes]

    def forward(self, *args: Any, **kwargs: Any) -> list[Any]:
        return [self.output(widths, *args, **kwargs) for widths in self.sample(self.step)]

    def output(self, widths: Widths, *args: Any, **kwargs: Any) -> Any:
        """Compute the output of the network of these widths; gradients reach all parameters of its weights."""
        weights = self.make_weights(widths)
        return surgery.crop(self.net, self.graph, self.keep(widths), *args, weights=weights, **kwargs)

    def keep(self, widths: Widths) -> dict[str, list[int]]:
        """Return the kept units of the network of these widths."""
        return self.room.space.keep(widths, self.order)

    def make_weights(self, widths: Widths) -> dict[str, Tensor]:
        """Generate the weights of a network, in full size; none without `maker`."""
        return {} if self.maker is None else self.maker(widths, checked_tensors(self.net, self.graph))

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that the weights of networks depend on, by name."""
        return self.state_dict()

    @torch.no_grad()
    def network(self, widths: Widths) -> nn.Module:
        """Return a separate module of these widths, its norms not yet recalibrated."""
        tensors = checked_tensors(self.net, self.graph) | self.make_weights(widths)
        return resize(self.net, self.graph, self.keep(widths), tensors)


class Steps(Record, frozen=True, kw_only=True):
    """The state of a supernet in a checkpoint: the number of the next step."""

    step: Count


class StepCounter(Along):
    """Sets the number of the step in a supernet that is trained.

    Args:
        supernet: The supernet.
    """

    def __init__(self, supernet: Supernet):
        self.supernet = supernet

    def after_step(self, at: Training, step: int, lr: float) -> None:
        """Set the number of the next step."""
        self.supernet.step = step + 1

    def state(self) -> dict:
        """Return the number of the step."""
        return {"step": self.supernet.step}

    def restore(self, state: dict) -> None:
        """Continue from a state."""
        self.supernet.step = check_json(state, Steps, "the state of the supernet").step


class SupernetTask(Task):
    """The task of training a supernet: one loss over the outputs of several networks.

    The largest network learns from the targets, the others from its outputs. After each epoch the uniform network at
    the budget is evaluated.

    Args:
        task: The task of the network.
        train: The images to train on.
        ready: ready(widths) makes a network for evaluation; see `Builder`.
    """

    def __init__(self, task: Task, train: Examples, ready: Callable[[Widths], nn.Module]):
        super().__init__(task.model, replace(task.data, train=train), task.recipe_fields)
        self.task, self.ready = task, ready
        self.metric = task.metric

    def loss(self, output: list[Any], target: Any) -> Tensor:
        """Return the mean of the networks' losses."""
        return self._mean(self.task.loss(output[0], target), output, target)

    def training_loss(self, output: list[Any], target: Any, recipe: Recipe) -> Tensor:
        """Return the mean of the networks' training losses."""
        return self._mean(self.task.training_loss(output[0], target, recipe), output, target)

    def _mean(self, of_largest: Tensor, outputs: list[Any], target: Any) -> Tensor:
        largest, *others = outputs
        largest = tree_map_only(Tensor, Tensor.detach, largest)
        losses = [of_largest, *(self.task.distil(each, largest, TEMPERATURE, target) for each in others)]
        return sum(losses[1:], losses[0]) / len(losses)

    def evaluate(self, model: nn.Module, split: Examples) -> dict[str, float]:
        """Evaluate the uniform network at the budget with recalibrated norms, because the supernet's fit no network."""
        assert isinstance(model, Supernet)
        room = model.room
        return self.task.evaluate(self.ready(room.space.widths(room.uniform())), split)

    def recipe(self, purpose: str) -> Recipe:
        """Return the task's recipe."""
        return self.task.recipe(purpose)

    def check(self, model: nn.Module) -> None:
        """Check the network inside as the task does."""
        self.task.check(model)

    def asked_of_model(self) -> dict[str, Any]:
        """Return what the task asks of the network."""
        return self.task.asked_of_model()
