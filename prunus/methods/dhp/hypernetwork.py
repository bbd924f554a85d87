"""Weights computed from latents, as DHP parametrises the weights of a network.

Li et al., DHP: differentiable meta pruning via hypernetworks, ECCV 2020, arXiv:2003.13683, section 3.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus import gates, scores
from prunus.errors import UserError
from prunus.gates import Gate, Gates, Place
from prunus.graph import Graph
from prunus.surgery import fan_in, find_steps, reinitialise, sample_uniform

Start = Literal["given", "scratch"]
Latents = Literal["ones", "norms", "normal"]
LEAST_LATENT = 0.05  # of the mean of its axis, because the weight is divided by it


class LatentWeights(Gate):
    """The paper's hypernetwork of three layers, for every entry (i, j) of a weight's first dimensions (section 3.2):

    Z = z_i z_j + B0,  E = w1 Z + b1 in R^m,  W = W2 E + B2 over the K entries of the kernel. The weight's own
    parameter is B2. Initially W1 ~ U(-3^.5, 3^.5), W2 such that W has variance 1 / fan_in (Chang et al., ICLR 2020,
    arXiv:2312.08399), and all biases are zero but B2, which keeps the network's function.
    """

    def __init__(self, gates: Gates, shape: torch.Size, places: list[Place], fan_in: int, factors: int):
        super().__init__(gates, shape, places)
        depth = max(2, *(place.dim + 1 for place in places))
        self.shape, self.head, kernel = shape, shape[:depth], math.prod(shape[depth:])
        self.bias0 = nn.Parameter(torch.zeros(self.head))
        self.weight1 = nn.Parameter(sample_uniform((*self.head, factors), 1))
        self.bias1 = nn.Parameter(torch.zeros(*self.head, factors))
        self.weight2 = nn.Parameter(sample_uniform((*self.head, kernel, factors), factors * fan_in))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight W that the model computes with, from B2."""
        gate = self.gate()
        latent = gate.view(gate.shape[: len(self.head)]) + self.bias0
        embedded = latent[..., None] * self.weight1 + self.bias1
        return (self.weight2 @ embedded[..., None]).reshape(self.shape).to(weight.dtype) + weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The B2 with which the model computes with `weight`."""
        return weight - self.forward(torch.zeros_like(weight))


def attach(
    model: nn.Module,
    graph: Graph,
    names: Sequence[str],
    *,
    start: Start,
    latents: Latents,
    factors: int | None,
    seed: int,
) -> Gates:
    """Put latents on the axes `names` of `model`, in place; they are the `values` of the gates that are returned.

    start: "given" keeps the network's function, "scratch" reinitialises it. latents: see config.py. factors: m of the
    paper's hypernetwork; None: no hypernetwork, W = z_out z_in A. Raises UserError for weights with other
    parametrisations that do not allow this.
    """
    if start == "scratch" and factors:
        check_plain(model, graph, names)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if start == "scratch":
            reinitialise(model, graph, names)
        values = {}
        if latents == "norms":
            norms = scores.magnitude(model, graph)
            values = {name: norms[name].clamp_min(LEAST_LATENT) for name in names}
        elif latents == "normal":
            values = {name: torch.randn(graph.axes[name].size) for name in names}

        def step(name: str, made: Gates, shape: torch.Size, places: list[Place]) -> LatentWeights:
            assert factors is not None  # without factors this is not called
            return LatentWeights(made, shape, places, fan_in(graph, name), factors).to(made.values)

        made = gates.attach(model, graph, names, values=values, step=step if factors else None)
    if start == "scratch":
        store_initial_weights(model)
    return made


def check_plain(model: nn.Module, graph: Graph, names: Sequence[str]) -> None:
    """Raise UserError naming the first weight on the axes that is parametrised: weight_norm, for example, cannot
    represent zero, the paper's initial B2."""
    for name in (member.tensor for axis in names for member in graph.members(axis)):
        path, _, attribute = name.rpartition(".")
        if parametrize.is_parametrized(model.get_submodule(path), attribute):
            raise UserError(
                f"{name} is parametrised, so the paper's hypernetwork cannot start from scratch there. Take "
                "mode=exact, or make it plain first (torch's remove_parametrizations)."
            )


@torch.no_grad()
def store_initial_weights(model: nn.Module) -> None:
    """Make the sampled weights the parameters, in place: they become A; with the paper's hypernetwork, B2 = 0."""
    sampled = {weight.steps: weight for weight in find_steps(model, Gate)}  # tied weights once
    for steps, weight in sampled.items():
        step, now = weight.step(Gate), getattr(weight.module, weight.attribute)
        assert step is not None  # `find_steps` saw it
        if isinstance(step, LatentWeights):
            steps.original.zero_()
        elif steps.is_tensor:
            steps.original.copy_(now)
        else:
            steps.right_inverse(step(now))
