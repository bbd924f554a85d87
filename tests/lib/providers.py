"""Networks with weights from every provider."""

import numpy as np
import torch

from prunus import zoo
from prunus.graph import trace
from prunus.methods.metapruning.pruning_net import PruningNet
from prunus.search import Feasible, Space, Supernet, best_first
from prunus.selection import Budget
from tests.lib.nets import NETS, build

FORMS = ("shared", "paper", "residual", "factored")


def network(name):
    """A network in double precision and evaluation mode, and an example."""
    if name in NETS:
        model, example = build(name)
    elif name == "digits":
        model, example = zoo.build("digits_resnet"), torch.randn(2, 1, 8, 8)
    else:
        model, example = zoo.build(name), torch.randn(2, *zoo.native_shape(name))
    return model.double().eval(), example.double() if example.is_floating_point() else example


def supernet(model, example, form="shared", order=None, **options):
    graph = trace(model, example)
    space = Space(graph)
    maker = None
    if form != "shared":
        maker = PruningNet(graph, space.names, form=form, hidden=4).to(next(model.parameters()))
        with torch.no_grad():
            for parameter in maker.parameters():  # what is zero at first is so no longer
                parameter.add_(0.1 * torch.randn_like(parameter))
    order = best_first(graph, {n: torch.randn(a.size) for n, a in graph.axes.items()}) if order else None
    return Supernet(model, Feasible(space, Budget(params=0.6)), order=order, maker=maker, **options)


def some_widths(net, seed=0):
    space = net.room.space
    return space.widths(np.random.default_rng(seed).integers(0, space.counts))
