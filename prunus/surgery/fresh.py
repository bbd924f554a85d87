"""New random weights for a model, distributed as torch's own layers initialise them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus.graph import CONSUMES, Graph, operators


def sample_uniform(shape: Sequence[int], fan_in: int) -> Tensor:
    """Sample a tensor uniformly with mean 0 and variance 1 / fan_in.

    Args:
        shape: The shape of the tensor.
        fan_in: The number of products summed for one output.

    Returns:
        The tensor, float32.
    """
    bound = math.sqrt(3 / fan_in)
    return torch.empty(*shape).uniform_(-bound, bound)


def fan_in(graph: Graph, name: str) -> int:
    """The number of products that are summed for one output of a weight.

    Args:
        graph: The graph of the model.
        name: The weight's name.

    Returns:
        The weight's size along the dimensions it reads, kernel included, per group of a grouped convolution.
    """
    reads = math.prod(n for dim, n in enumerate(graph.shapes[name]) if graph.role(name, dim) == CONSUMES)
    for op in graph.ops:
        if op.is_a(operators.CONVOLUTION) and name in map(graph.tensors.get, op.operands()):
            # transposed: all groups' inputs in one dimension
            return reads // op.argument("groups") if op.argument("transposed", False) else reads
    return reads


@torch.no_grad()
def reinitialise(model: nn.Module, graph: Graph, names: Sequence[str]) -> None:
    """Reinitialise `model` in place: every module as its class does, weights on some axes with variance 1 / fan_in.

    Source: Li et al., DHP, ECCV 2020, arXiv:2003.13683.

    Args:
        model: The traced model.
        graph: Its graph.
        names: The axes whose weights get variance 1 / fan_in.
    """
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    for name in dict.fromkeys(member.tensor for axis in names for member in graph.members(axis)):
        if name in graph.parameters and len(graph.shapes[name]) > 1:
            path, _, attribute = name.rpartition(".")
            module, values = (
                model.get_submodule(path),
                sample_uniform(graph.shapes[name], fan_in(graph, name)),
            )
            if parametrize.is_parametrized(module, attribute):
                setattr(module, attribute, values.to(getattr(module, attribute)))
            else:
                getattr(module, attribute).copy_(values)
