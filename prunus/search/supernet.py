"""Supernets: one set of weights that is trained as networks of many widths at once, each cut from it for one step.

    sandwich   the whole network, the least one, and two of random widths; the smaller ones learn the answers of the
               whole one (Yu and Huang, Universally Slimmable Networks, ICCV 2019, arXiv:1903.05134)
    uniform    one network a step, each width drawn by itself (MetaPruning, Liu et al., ICCV 2019, arXiv:1903.10258)
    budget     the same, mended to the budget: what is searched in is what is trained (ours)

Which networks a step trains depends on the seed and the number of the step alone, so all processes train the same.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from prunus import surgery
from prunus.data import Split
from prunus.graph import Graph
from prunus.search.proposals import Feasible, sample
from prunus.search.space import Orders, Widths
from prunus.surgery import checked_tensors, resize
from prunus.tasks import Task
from prunus.train import Along, Recipe, Training

Sampling = Literal["sandwich", "uniform", "budget"]
RANDOM = 2  # networks in a sandwich besides the largest and the least, as Yu and Huang have it
TEMPERATURE = 1.0  # the smaller networks learn the answers as they are


class Makes(Protocol):
    """A hypernetwork that makes the weights of a network of any widths, such as a PruningNet."""

    unread: Collection[str]  # the network's parameters that are made without reading their own values

    def __call__(self, widths: Mapping[str, int], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights, by name and in full size, of the network of these widths. own: the network's tensors."""


class Supernet(nn.Module):
    """Weights for all networks of a room. net: holds them, and is trained in place.

    order: the units of each axis, the best first; a network keeps the first of them. maker: a module that makes
    weights in place of net's own. Its forward pass gives the answers of all networks of a step, the largest first.
    """

    def __init__(
        self,
        net: nn.Module,
        room: Feasible,
        *,
        order: Orders | None = None,
        maker: Makes | None = None,
        sampling: Sampling = "sandwich",
        seed: int = 0,
    ):
        super().__init__()
        self.net, self.maker = net, maker
        self.room, self.order, self.sampling, self.seed = room, order, sampling, seed
        self.step = 0
        for name, parameter in net.named_parameters():
            if maker is not None and name in maker.unread:
                parameter.requires_grad_(False)  # nothing reads it

    @property
    def graph(self) -> Graph:
        """The axes of net."""
        return self.room.space.graph

    def sampled(self, step: int) -> list[dict[str, int]]:
        """The widths of the networks that a step trains."""
        space, rng = self.room.space, np.random.default_rng([self.seed, step])
        if self.sampling == "sandwich":
            genes = [space.whole, 0 * space.whole, *sample(space.counts, RANDOM, rng)]
        else:
            genes = sample(space.counts, 1, rng)
            genes = self.room.mend(genes, rng) if self.sampling == "budget" else genes
        return [space.widths(each) for each in genes]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.answers(widths, x) for widths in self.sampled(self.step)]

    def answers(self, widths: Widths, x: Any) -> Any:
        """What the network of these widths makes of x; gradients reach all that its weights come from."""
        return surgery.crop(self.net, self.graph, self.keep(widths), x, weights=self.made(widths))

    def keep(self, widths: Widths) -> dict[str, list[int]]:
        """The units that stay."""
        return self.room.space.keep(widths, self.order)

    def made(self, widths: Widths) -> dict[str, Tensor]:
        """The weights that are made for a network, in full size."""
        return {} if self.maker is None else self.maker(widths, checked_tensors(self.net, self.graph))

    def tensors(self) -> dict[str, Tensor]:
        """All that the weights of networks depend on, by name."""
        return self.state_dict()

    @torch.no_grad()
    def network(self, widths: Widths) -> nn.Module:
        """A module of these widths, of its own; its norms are to be renewed."""
        tensors = checked_tensors(self.net, self.graph) | self.made(widths)
        return resize(self.net, self.graph, self.keep(widths), tensors)


class Stepping(Along):
    """Tells a supernet which step of its training it is at."""

    def __init__(self, supernet: Supernet):
        self.supernet = supernet

    def after_step(self, at: Training, step: int, lr: float) -> None:
        """The next step's networks are others."""
        self.supernet.step = step + 1

    def state(self) -> dict:
        """The step."""
        return {"step": self.supernet.step}

    def restore(self, state: dict) -> None:
        """Go on there."""
        self.supernet.step = state["step"]


class Together(Task):
    """A task for a supernet, as `train.fit` takes it: one loss of many answers. The largest network learns from the
    targets, those after it from its answers.

    train: the images to learn from. ready: makes a network of some widths ready to be tried (see trial.Maker);
    after each epoch the uniform network at the budget is.
    """

    def __init__(self, task: Task, train: Split, ready: Callable[[Widths], nn.Module]):
        super().__init__(task.model, replace(task.data, train=train), task.recipe_fields)
        self.task, self.ready = task, ready
        self.metric = task.metric

    def loss(self, output: list[Tensor], target: Tensor) -> Tensor:
        """Return the mean over the networks of their losses."""
        return self._mean(self.task.loss(output[0], target), output)

    def training_loss(self, output: list[Tensor], target: Tensor, recipe: Recipe) -> Tensor:
        """Return the mean over the networks of their training losses."""
        return self._mean(self.task.training_loss(output[0], target, recipe), output)

    def _mean(self, of_largest: Tensor, answers: list[Tensor]) -> Tensor:
        largest, *others = answers
        losses = [of_largest, *(self.task.distil(each, largest.detach(), TEMPERATURE) for each in others)]
        return sum(losses) / len(losses)

    def evaluate(self, model: Supernet, split: Split) -> dict[str, float]:
        """Evaluate the uniform network at the budget, its norms renewed: those of the supernet fit no network."""
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
