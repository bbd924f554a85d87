"""New random weights for a model, as torch's own layers draw them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus.graph import CONSUMES, Graph, operators


def uniform(shape: Sequence[int], fan_in: int) -> Tensor:
    """Uniform, of variance 1 / fan_in."""
    bound = math.sqrt(3 / fan_in)
    return torch.empty(*shape).uniform_(-bound, bound)


def fan_in(graph: Graph, name: str) -> int:
    """How many products are summed for one output of a weight: its size along all it reads, kernel included."""
    reads = math.prod(n for dim, n in enumerate(graph.shapes[name]) if graph.role(name, dim) == CONSUMES)
    for op in graph.ops:
        if op.is_a(operators.CONVOLUTION) and name in map(graph.tensors.get, op.operands()):
            # transposed: all groups' inputs in one dimension
            return reads // op.argument("groups") if op.argument("transposed", False) else reads
    return reads


@torch.no_grad()
def draw_anew(model: nn.Module, graph: Graph, names: Sequence[str]) -> None:
    """Let `model` forget its training, in place: every module starts as its class does, weights on the axes `names`
    with variance 1 / fan_in, as in the paper."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    for name in dict.fromkeys(member.tensor for axis in names for member in graph.members(axis)):
        if name in graph.parameters and len(graph.shapes[name]) > 1:
            path, _, attribute = name.rpartition(".")
            module, drawn = model.get_submodule(path), uniform(graph.shapes[name], fan_in(graph, name))
            if parametrize.is_parametrized(module, attribute):
                setattr(module, attribute, drawn.to(getattr(module, attribute)))
            else:
                getattr(module, attribute).copy_(drawn)
