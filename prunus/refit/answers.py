"""Curves in the currency of the model's answer: how far it moves when one axis is cut, measured by cutting.

What a layer leaves unexplained of its output says nothing of how much the answer depends on that output. So each axis
is cut alone to a few widths, its readers get the weights that follow from the moments, and the answer is compared with
the original's. Between these widths a curve keeps its shape: losses are multiplied by a factor whose logarithm is
linear in the number of units. Labels are not needed. Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import exp, log
from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph import Graph, select_outputs
from prunus.inputs import call, model_device, move
from prunus.refit.batches import read_batches
from prunus.refit.curves import Curves
from prunus.refit.moments import Moments
from prunus.surgery import clone, shrink

SHARES = (0.25, 0.5, 0.75)  # of the units, at which an axis is cut
LEAST = 1e-12  # a loss that is nothing


@torch.no_grad()
def in_answers(
    curves: Curves, moments: Moments, model: nn.Module, graph: Graph, batches: Iterable[Any]
) -> Curves:
    """Measure curves in the squared change of the model's answer, as a share of its variance over each batch.

    Three forward passes for each axis over all batches; 128 images are enough for small convolutional networks.

    Args:
        curves: The curves of the model.
        moments: The moments that they were made of.
        model: The traced model; it is not changed.
        graph: Its graph.
        batches: Inputs as the model takes them, at least two examples each.

    Returns:
        The same curves with other losses, which may be above 1.

    Raises:
        UserError: There is no batch, or the model cannot be called with one.
    """
    whole = clone(model, {}).eval()
    inputs = [move(batch, model_device(model)) for batch in read_batches(batches)]
    wanted = [_answers(whole, graph, batch) for batch in inputs]
    found = Curves(left=dict(curves.left))
    for name, curve in curves.axes.items():
        size, multiple = len(curve.order), graph.multiples[name]
        points = {}
        for share in SHARES:
            units = max(1, int(share * size) // multiple) * multiple
            keep = {name: curve.order[:units]}
            small = shrink(clone(whole, moments.weights(keep)), graph, keep, verify="off")
            moved = _moved(wanted, [_answers(small, graph, batch) for batch in inputs])
            points[units] = log((moved + LEAST) / (float(curve.losses[units]) + LEAST))
        found.axes[name] = replace(curve, losses=curve.losses * _between(points, size), products=1)
    return found


def _answers(model: nn.Module, graph: Graph, inputs: Any) -> list[Tensor]:
    """The tensors of floats that a model answers to a batch and that count."""
    answers = select_outputs(call(model, inputs), graph.chosen)
    return [each.double() for each in answers if each.is_floating_point() and each.dim()]


def _moved(wanted: list[list[Tensor]], got: list[list[Tensor]]) -> float:
    """The squared change of answers as a share of their variance over each batch; of those that keep their shape."""
    change = spread = 0.0
    for ours, theirs in zip(wanted, got, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            if one.shape == other.shape:
                change += float((one - other).square().sum())
                spread += float((one - one.mean(0)).square().sum())
    return change / (spread + LEAST)


def _between(points: dict[int, float], size: int) -> Tensor:
    """The exponentials (size + 1,) of lines between the points, and of the nearest point outside of them."""
    known = sorted(points)
    found = []
    for units in range(size + 1):
        above = next((k for k in known if k >= units), known[-1])
        below = next((k for k in reversed(known) if k <= units), known[0])
        way = (units - below) / (above - below) if above > below else 0.0
        found.append(exp(points[below] + way * (points[above] - points[below])))
    return torch.tensor(found, dtype=torch.float64)
