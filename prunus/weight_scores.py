"""Scores for single weights: one number each, not negative, higher means keep. {parameter name: float32 tensor}.

Every score is a square, so that norms and LAMP can be taken over it whatever it is.
"""

from torch import Tensor, nn

from prunus import rules
from prunus.graph import Graph
from prunus.weights import checked_tensors

WeightScores = dict[str, Tensor]


def maskable(graph: Graph) -> list[str]:
    """The parameters whose single weights may be pruned: those that multiply activations. No biases, norms, or
    embeddings (unless they are tied to a weight)."""
    return [
        name
        for name, layouts in graph.layouts.items()
        if name in graph.parameters
        and len(layouts) > 1
        and any((name, dim) in graph._roles and graph.role(name, dim) == rules.CONSUMES for dim in range(len(layouts)))
    ]


def magnitude(model: nn.Module, graph: Graph) -> WeightScores:
    """w^2."""
    tensors = checked_tensors(model, graph)
    return {name: tensors[name].detach().float().square() for name in maskable(graph)}
