"""Weights made from latents: what stands behind the weights of a network in DHP.

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
LEAST_LATENT = 0.05  # of the mean of its axis; the weight is divided by it


class Hypernetwork(Gate):
    """The paper's three layers, for every entry (i, j) of a weight's first dimensions (its section 3.2):

    Z = z_i z_j + B0,  E = w1 Z + b1 in R^m,  W = W2 E + B2 over the kernel's K places. What stands behind the weight
    is B2, of the weight's own shape. Starts with W1 ~ U(-3^.5, 3^.5), W2 such that W has variance 1 / fan_in (Chang
    et al., ICLR 2020, arXiv:2312.08399), all biases zero but the one that keeps the network what it was.
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
        gate = self.gate()
        latent = gate.view(gate.shape[: len(self.head)]) + self.bias0
        embedded = latent[..., None] * self.weight1 + self.bias1
        return (self.weight2 @ embedded[..., None]).reshape(self.shape).to(weight.dtype) + weight

    def right_inverse(self, weight: Tensor) -> Tensor:
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
    """Put latents on the axes `names` of `model`, in place: gates.values of what is returned.

    start: given keeps the network the function it is; scratch draws its weights anew. latents: see methods/dhp.py.
    factors: of the paper's hypernetwork; None: one number stands behind each weight, W = z_out z_in A.
    Raises UserError for weights that stand behind other parametrisations which do not let them be made so.
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

        def hypernetwork(name: str, made: Gates, shape: torch.Size, places: list[Place]) -> Hypernetwork:
            return Hypernetwork(made, shape, places, fan_in(graph, name), factors).to(made.values)

        made = gates.attach(model, graph, names, values=values, step=hypernetwork if factors else None)
    if start == "scratch":
        put_drawn_behind(model)
    return made


def check_plain(model: nn.Module, graph: Graph, names: Sequence[str]) -> None:
    """Raise UserError naming the first weight on the axes that stands behind a parametrisation: of weight_norm, say,
    none is zero, as the paper's B2 is at first."""
    for name in (member.tensor for axis in names for member in graph.members(axis)):
        path, _, attribute = name.rpartition(".")
        if parametrize.is_parametrized(model.get_submodule(path), attribute):
            raise UserError(
                f"{name} stands behind a parametrisation, where the paper's hypernetwork cannot begin from scratch. "
                "Take mode=exact, or make it plain first (torch's remove_parametrizations)."
            )


@torch.no_grad()
def put_drawn_behind(model: nn.Module) -> None:
    """Let what was drawn stand behind the weights, in place: A, and with the paper's hypernetwork B2 = 0."""
    drawn = {weight.steps: weight for weight in find_steps(model, Gate)}  # tied weights once
    for steps, weight in drawn.items():
        step, now = weight.step(Gate), getattr(weight.module, weight.attribute)
        if isinstance(step, Hypernetwork):
            steps.original.zero_()
        elif steps.is_tensor:
            steps.original.copy_(now)
        else:
            steps.right_inverse(step(now))
