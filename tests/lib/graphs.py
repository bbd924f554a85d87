"""Helpers for tests of graphs and gates."""

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from prunus.gates import Gate, inexact_axes
from prunus.inputs import call
from prunus.surgery import steps


def counted_macs(model, example):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        call(model, example)
    return counter.get_total_flops() // 2


def double(model, example):
    """Both in double precision, so that the effect of a unit is larger than rounding."""
    return model.double(), example.double() if example.is_floating_point() else example


def exact_axes(graph):
    return [name for name in graph.axes if name not in inexact_axes(graph)]


@torch.no_grad()
def close_some(graph, made, seed=0, least=0.3, most=0.9):
    """Set the gates of 30 to 90 % of the units of each axis to zero, never of all; the keep of the others."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for name in made.places:
        size = graph.axes[name].size
        share = least + (most - least) * torch.rand((), generator=generator).item()
        left = max(1, size - max(1, round(share * size)))
        keep[name] = sorted(torch.randperm(size, generator=generator)[:left].tolist())
        gone = [unit for unit in range(size) if unit not in keep[name]]
        made.of(name)[gone] = 0.0
    return keep


def plain_copy(model):
    """A copy of a gated model with its gates multiplied into the weights."""
    model = copy.deepcopy(model)
    steps.remove_steps(model, Gate)
    return model


# ----------------------------------------------------------------------- which gates act on a weight
def multiplied_out(graph, values, name):
    """The factor of a parameter, entry by entry, from the members of every axis that write or read."""
    factor = torch.ones(graph.shapes[name])
    for axis, of_units in values.items():
        for member in graph.members(axis):
            if member.tensor == name and member.role in ("produces", "consumes"):
                for unit, places in enumerate(member.index.tolist()):
                    for place in places:  # twice where both factors of a product are this unit
                        factor.select(member.dim, place).mul_(of_units[unit])
    return factor


def original(name):
    path, _, attribute = name.rpartition(".")
    return f"{path}.parametrizations.{attribute}.original"
