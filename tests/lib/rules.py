"""A network around one function, to see whether the units that the function meets may shrink."""

import torch
from torch import nn

import prunus


class Around(nn.Module):
    """Two layers up to (2, 4, 6), a function of that, and a layer down from `width` features."""

    def __init__(self, function, width=6):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(width, 3)
        self.function = function

    def forward(self, x):
        return self.down(self.function(self.up(torch.relu(self.first(x)))))


def halve(model, example):
    """Trace a model, keep every second unit, and shrink it, which proves it. Returns the graph and the small model."""
    graph = prunus.trace(model.eval(), example)
    keep = {name: list(range(0, axis.size, 2)) for name, axis in graph.axes.items()}
    return graph, prunus.shrink(model, graph, keep)


def check_shrinks(function, width=6):
    """Both widths must halve."""
    model, example = Around(function, width), torch.randn(2, 4, 5)
    _, small = halve(model, example)
    assert small.first.weight.shape == (4, 5) and small.up.weight.shape == (3, 4)
    assert small(example).shape == model(example).shape


def check_stays(function, name, width=6):
    """The units that the function meets must stay, the layer before must shrink; `name`: what the reason must name."""
    model, example = Around(function, width), torch.randn(2, 4, 5)
    graph, small = halve(model, example)
    assert small.first.weight.shape == (4, 5) and small.up.weight.shape == (6, 4)
    assert name in graph.explain("up.weight")
