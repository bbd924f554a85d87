"""Weights made from latents: what stands behind the weights of a network in DHP.

Li et al., DHP: differentiable meta pruning via hypernetworks, ECCV 2020, arXiv:2003.13683, section 3.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from prunus import gates, parametrised, scores, skeleton
from prunus.gates import Gate, Gates, Place
from prunus.graph import Graph
from prunus.rules import CONSUMES

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
        self.weight1 = nn.Parameter(uniform((*self.head, factors), 1))
        self.bias1 = nn.Parameter(torch.zeros(*self.head, factors))
        self.weight2 = nn.Parameter(uniform((*self.head, kernel, factors), factors * fan_in))

    def forward(self, weight: Tensor) -> Tensor:
        gate = self.gate()
        latent = gate.view(gate.shape[: len(self.head)]) + self.bias0
        embedded = latent[..., None] * self.weight1 + self.bias1
        return (self.weight2 @ embedded[..., None]).reshape(self.shape) + weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight - self.forward(torch.zeros_like(weight))


def uniform(shape: Sequence[int], fan_in: int) -> Tensor:
    """Uniform, of variance 1 / fan_in."""
    bound = math.sqrt(3 / fan_in)
    return torch.empty(*shape).uniform_(-bound, bound)


def fan_in(graph: Graph, name: str) -> int:
    """How many products are summed for one output of a weight: its size along all it reads, kernel included."""
    shape = graph.shapes[name]
    return math.prod(n for dim, n in enumerate(shape) if graph.role(name, dim) == CONSUMES)


@torch.no_grad()
def draw_anew(model: nn.Module, graph: Graph, names: Sequence[str]) -> None:
    """Let `model` forget its training, in place: every module starts as its class does, weights on the axes `names`
    with variance 1 / fan_in, as in the paper."""
    for module in model.modules():
        if callable(getattr(module, "reset_parameters", None)):
            module.reset_parameters()
    own = skeleton.named_tensors(model)
    for name in dict.fromkeys(member.tensor for axis in names for member in graph.members(axis)):
        if name in own and name in graph.parameters and len(graph.shapes[name]) > 1:
            own[name].copy_(uniform(graph.shapes[name], fan_in(graph, name)))


def attach(
    model: nn.Module,
    graph: Graph,
    names: Sequence[str],
    *,
    start: Literal["given", "scratch"],
    latents: Literal["ones", "norms", "normal"],
    factors: int | None,
    seed: int,
) -> Gates:
    """Put latents on the axes `names` of `model`, in place: gates.values of what is returned.

    start: given keeps the network the function it is; scratch draws its weights anew. latents: see methods/dhp.py.
    factors: of the paper's hypernetwork; None: one number stands behind each weight, W = z_out z_in A.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if start == "scratch":
            draw_anew(model, graph, names)
        values = {}
        if latents == "norms":
            norms = scores.magnitude(model, graph)
            values = {name: norms[name].clamp_min(LEAST_LATENT) for name in names}
        elif latents == "normal":
            values = {name: torch.randn(graph.axes[name].size) for name in names}

        def hypernetwork(name: str, made: Gates, shape: torch.Size, places: list[Place]) -> Hypernetwork:
            return Hypernetwork(made, shape, places, fan_in(graph, name), factors)

        made = gates.attach(model, graph, names, values=values, step=hypernetwork if factors else None)
    if start == "scratch":  # what was drawn is what stands behind the weights
        with torch.no_grad():
            for weight in parametrised.found(model, Gate):
                drawn = getattr(weight.module, weight.attribute)
                weight.steps.original.copy_(0 if factors else drawn)
    return made
