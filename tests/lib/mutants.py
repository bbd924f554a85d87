"""Faults put into a graph, so that a cut made by it is wrong, and means apart from the proof to say whether it is."""

import dataclasses
import math
import random

import torch

import prunus
from prunus.errors import TraceError
from prunus.graph import Graph, Places, axes
from prunus.surgery import checked_tensors, clone, effective_tensors, proof
from prunus.surgery.copies import resize
from tests.lib.random_nets import MAP_STEPS, NESTED, TOKEN_STEPS, build, draws

ASTRAY = "astray"
NEVER = 1e300  # an error at which no round ends early


class Disordered(Graph):
    """A graph that takes the indices of a keep in the order in which they come."""

    def check_keep(self, keep):
        return {name: list(kept) for name, kept in super().check_keep(keep).items() if name != ASTRAY} | (
            {ASTRAY: list(keep[ASTRAY])} if ASTRAY in keep else {}
        )


def changed(layout, change):
    """A layout with `change` applied to each of its parts, inner ones first; None leaves a part as it is."""
    layout = axes.normal(layout)
    if isinstance(layout, axes.Sum):
        layout = axes.Sum(tuple(changed(part, change) for part in layout.parts))
    if isinstance(layout, axes.Product):
        layout = axes.Product(tuple(changed(factor, change) for factor in layout.factors))
    new = change(layout)
    return layout if new is None else new


def relaid(graph, tensor, dim, change, **more):
    """The graph with another layout for one dimension of one tensor."""
    layouts = dict(graph.layouts)
    layouts[tensor] = list(layouts[tensor])
    layouts[tensor][dim] = changed(layouts[tensor][dim], change)
    fields = {f.name: getattr(graph, f.name) for f in dataclasses.fields(graph)}
    return Disordered(**(fields | {"layouts": layouts} | more))


def drawn_program(draw):
    """A program of `random_nets`, drawn without hypothesis, so that a seed gives the same one in every version."""

    def number():
        return draw.randrange(42)

    def map_step(depth):
        if depth and draw.random() < 0.4:
            return (
                draw.choice(sorted(NESTED)),
                number(),
                number(),
                [map_step(depth - 1) for _ in range(draw.randint(1, 2))],
            )
        return draw.choice(sorted(MAP_STEPS)), number(), number()

    if draw.random() < 0.5:
        head = draw.choice(["mean", "flatten", "permute", "map"])
        return "image", [map_step(2) for _ in range(draw.randint(1, 3))], [], head
    entry = draw.choice(["image", "image permuted", "vectors", "ids"])
    steps = [map_step(0)] if entry.startswith("image") and draw.random() < 0.5 else []
    tokens = [(draw.choice(sorted(TOKEN_STEPS)), number(), number()) for _ in range(draw.randint(1, 3))]
    return entry, steps, tokens, draw.choice(["token mean", "token flatten", "each token", "tied"])


def strayed(graph, member, axis, kept):
    """One dimension of one tensor cut at other units than the rest of its axis."""
    other = axes.Axis(axis.size, ASTRAY)
    wrong = relaid(
        graph,
        member.tensor,
        member.dim,
        lambda layout: other if layout is axis else None,
        axes={**graph.axes, ASTRAY: other},
    )
    return wrong, kept


def swapped(layout):
    """Two parts of a sum, or two factors of a product, exchanged."""
    if isinstance(layout, axes.Sum):
        return axes.Sum(layout.parts[1::-1] + layout.parts[2:])
    if isinstance(layout, axes.Product):
        return axes.Product(layout.factors[1::-1] + layout.factors[2:])
    return None


def of_indices(graph, keep, axis, member, draw):
    """(kind, graph, keep) with one dimension of one tensor cut elsewhere."""
    unit, kept, size = graph.axes[axis], keep[axis], graph.axes[axis].size
    choices = {"off by one": sorted((i + 1) % size for i in kept), "first units": list(range(len(kept)))}
    choices["wrong index"] = sorted(draw.sample(range(size), len(kept)))
    if len(kept) > 1:
        a, b = draw.sample(range(len(kept)), 2)
        other = list(kept)
        other[a], other[b] = other[b], other[a]
        choices["two units swapped"] = other
    for kind, other in choices.items():
        if other != kept:
            wrong, stray = strayed(graph, member, unit, other)
            yield kind, wrong, {**keep, ASTRAY: stray}


def mutants(graph, keep, draw):
    """(kind, place, graph, keep) of every fault that can be put into a graph, some by chance.

    Args:
        graph: A right graph.
        keep: A keep that cuts every axis.
        draw: A random.Random.
    """
    for axis in keep:
        for member in graph.members(axis):
            kind = "buffer" if member.role == "buffer" else "member"
            for what, wrong, units in of_indices(graph, keep, axis, member, draw):
                yield f"{kind}: {what}", f"{member.tensor}, dimension {member.dim}", wrong, units
    for tensor, dims in graph.layouts.items():
        for dim, layout in enumerate(dims):
            if swapped(axes.normal(layout)) is not None:
                wrong = relaid(graph, tensor, dim, swapped)
                yield "parts swapped", f"{tensor}, dimension {dim}", wrong, keep
    for i, attribute in enumerate(graph.attributes):
        where = f"{attribute.module}.{attribute.key}"
        others = [*graph.attributes[:i], *graph.attributes[i + 1 :]]
        yield "stale integer", where, dataclasses.replace(graph, attributes=others), keep
        for axis in draw.sample(sorted(graph.axes), min(2, len(graph.axes))):
            other = attribute._replace(layout=graph.axes[axis])
            yield (
                "integer of another axis",
                where,
                dataclasses.replace(graph, attributes=[*others, other]),
                keep,
            )


# --------------------------------------------------------------------------------- what is right all the same
def is_right(model, graph, wrong, keep, wrong_keep, example, rounds=3):
    """Whether a cut by the wrong graph computes what one by the right graph does, or what its zeros say.

    The second is so where dimensions are cut together without need. Both are found by running plain models with plain
    weights, in double precision; the proof has no part in it. Raises what a small model raises that does not run.
    """
    verdicts = []
    for seed in range(rounds):
        torch.manual_seed(seed)
        tensors = {n: _random(t.detach().double()) for n, t in effective_tensors(model).items()}
        x = torch.randn_like(example) if example.is_floating_point() else example
        with torch.no_grad():
            got = resize(model, wrong, wrong_keep, tensors)(x)
            right = resize(model, graph, keep, tensors)(x)
            masked = clone(model, _zeroed(tensors, wrong, wrong_keep))(x)
        verdicts.append((close(got, right), close(got, masked)))
    return all(a for a, _ in verdicts) or all(b for _, b in verdicts)


def close(got, expected):
    return got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def _random(tensor):
    if not tensor.is_floating_point():
        return tensor
    return tensor * torch.empty_like(tensor).uniform_(0.5, 1.5) + torch.empty_like(tensor).uniform_(0.01, 0.3)


def _zeroed(tensors, graph, keep):
    found = {}
    for name, tensor in tensors.items():
        if name in graph.parameters:
            mask = torch.zeros_like(tensor)
            places = [axes.positions(layout, keep) for layout in graph.layouts[name]]
            if places:
                mask[torch.meshgrid(*places, indexing="ij")] = 1
                tensor = tensor * mask
        found[name] = tensor
    return found


# ------------------------------------------------------------------------------------------------ campaign
def errors(model, graph, keep):
    """The errors that a proof finds in float32 and in float64; infinite if it finds a reason to stop."""
    return {
        "float32": _error(model, graph, keep, proof.Attempt(torch.float32, NEVER, quick=True)),
        "float64": _error(model, graph, keep, proof.Attempt(torch.float64, NEVER)),
    }


def _error(model, graph, keep, attempt):
    try:
        keep = graph.check_keep(keep)
        tensors = checked_tensors(model, graph)
        return proof.Pair(model, None, graph, Places(keep), tensors).error(attempt)
    except Exception:  # any that the user's code raises at other sizes
        return math.inf


def campaign(seed, count, per_network):
    """Rows on mutants of random networks: what they are, whether they are right all the same, and their errors.

    The first row of a network is of the right cut.
    """
    draw = random.Random(seed)
    made = 0
    while made < count:
        program = drawn_program(draw)
        model, example = build(program)
        if draws(model):  # whether a mutant is right is found by runs that share no random numbers
            continue
        try:
            graph = prunus.trace(model, example)
        except TraceError:  # nothing in it may shrink
            continue
        keep = graph.check_keep(
            {n: draw.sample(range(a.size), max(1, a.size // 2)) for n, a in graph.axes.items()}
        )
        yield {"kind": "none", "verdict": "right", "program": repr(program), **errors(model, graph, keep)}
        found = list(mutants(graph, keep, draw))
        for kind, where, wrong, units in draw.sample(found, min(per_network, len(found))):
            try:
                verdict = "right" if is_right(model, graph, wrong, keep, units, example) else "wrong"
            except Exception:  # any that the user's code raises at other sizes
                verdict = "does not run"
            made += verdict == "wrong"
            yield {
                "kind": kind,
                "where": where,
                "verdict": verdict,
                "program": repr(program),
                **errors(model, wrong, units),
            }
