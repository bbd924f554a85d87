"""Gates: one number per unit that multiplies every weight writing to the unit or reading from it.

`attach` adds a step to each such weight of a model, in place: the weight is multiplied, along each of its
dimensions, by the gates of the units there. The units are read off the layouts: the parts of a sum follow one
another, the factors of a product multiply. All gates are one flat tensor, `Gates.values`.

A unit whose gate is zero is not read by any weight, whatever biases, norms and activation functions do to it. So it
can be removed without changing the network's function, in training mode too. This holds if everything that sums
over an axis is a weight; `inexact_axes` names the axes where it is not. Source: ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus.errors import UserError, unknown
from prunus.gates import at_once, product
from prunus.gates.product import Place
from prunus.graph import CONSUMES, PRODUCES, Axis, Graph, Keep, Layout, OwnStep, axes
from prunus.surgery import lists_of, steps

ACT = (PRODUCES, CONSUMES)  # default roles of the dimensions that gates act on


class Gates(nn.Module):
    """The gates of the units of some axes: `values` (N,), axis after axis; all one at first.

    They are float32, or float64 if the weights are, because many small updates have to add up.

    Args:
        graph: The graph of the model.
        names: The axes that get gates.
        roles: Gates act on the dimensions of parameters that have one of these roles (see `Graph.role`).

    Raises:
        UserError: A name is not an axis.
    """

    def __init__(self, graph: Graph, names: Collection[str], roles: Collection[str] = ACT):
        super().__init__()
        self.places: dict[str, slice] = {}
        self.roles = tuple(roles)
        start = 0
        for name in names:
            if name not in graph.axes:
                raise unknown("axis", name, graph.axes)
            self.places[name] = slice(start, start + graph.axes[name].size)
            start += graph.axes[name].size
        self.values = nn.Parameter(torch.ones(start))

    def of(self, axis: str) -> Tensor:
        """The gates (size,) of one axis, a view."""
        return self.values[self.places[axis]]

    def set_values(self, values: Tensor) -> None:
        """Use `values` (N,), computed elsewhere, as the gates from now on, in place of a parameter of the model."""
        self._parameters.pop("values", None)
        self.values = values


class Gate(OwnStep):
    """A step that multiplies a weight by the gates along its dimensions; setting the weight divides by them.

    Args:
        gates: All gates of the model.
        shape: The shape of the weight.
        places: The places of its gates.
    """

    def __init__(self, gates: Gates, shape: torch.Size, places: list[Place]):
        super().__init__()
        self.gates, self.dims, self.places = gates, len(shape), places

    def forward(self, weight: Tensor) -> Tensor:
        """The weight times its gates."""
        return weight * self.gate().to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight that `forward` maps to `weight`."""
        return weight / self.gate().to(weight.dtype)

    def gate(self) -> Tensor:
        """The factor of the weight; size one in dimensions without gates."""
        return product.combine_gates(self.gates.values, self.dims, self.places)

    def _apply(self, fn: Callable, recurse: bool = True) -> Gate:
        super()._apply(fn, recurse)
        # indices are not buffers, because they follow from the graph and need not be in files
        self.places = [place._replace(index=fn(place.index)) for place in self.places]
        return self


def attach(
    model: nn.Module,
    graph: Graph,
    names: Collection[str],
    *,
    values: Mapping[str, Tensor] | None = None,
    step: Callable[[str, Gates, torch.Size, list[Place]], Gate] | None = None,
    roles: Collection[str] = ACT,
) -> Gates:
    """Gate every weight of `model` that writes to or reads from some axes, in place.

    The network's function does not change: weights are divided by their gates. The gates become parameters of the
    model, so make the optimiser afterwards. Source: ours.

    Args:
        model: The traced model.
        graph: Its graph.
        names: The axes that get gates.
        values: axis -> (size,), initial gates, none of them zero; one for axes left out.
        step: step(weight name, gates, shape, places) -> the step of a weight, of a subclass of Gate; None: a Gate.
        roles: The roles of the dimensions that gates act on; ("consumes",): only weights that read.

    Returns:
        The gates.

    Raises:
        UserError: No axis is named or one is unknown, the model has gates already, or a weight has a
            parametrisation that undoes the division (spectral_norm); then nothing is changed.
    """
    if any(isinstance(module, Gates) for module in model.modules()):
        raise UserError("this model has gates already; remove them first (prunus.gates.take_off).")
    gates = Gates(graph, names, roles)
    if not len(gates.values):
        raise UserError(
            "no axis was named, so there is nothing to gate; name at least one axis of the graph."
        )
    own = next(model.parameters())
    gates.to(own.device, torch.promote_types(own.dtype, torch.float32))
    with torch.no_grad():
        for name, start in (values or {}).items():
            gates.of(name).copy_(start)
    made: dict[str, Gate] = {}
    for name, shape in graph.shapes.items():
        places = places_of(graph, gates, name, {})
        if places:
            made[name] = step(name, gates, shape, places) if step else Gate(gates, shape, places)
    # with all gates one, there is nothing to divide by
    chained = _parametrised_values(model, made) if values or step else {}
    for name, gate in made.items():
        weight = steps.add_step(model, name, gate)
        if name in chained:
            weight.steps.right_inverse(chained[name])
    direct = [w for w in steps.find_steps(model, Gate) if w.steps.is_tensor and type(w.steps[0]) is Gate]
    if direct:
        at_once.AtOnce(model, gates, direct)
    return gates


def take_off(model: nn.Module) -> None:
    """Remove the gates of a model, in place: gated weights become plain parameters of their present value.

    Args:
        model: A model with gates; without any, nothing happens.
    """
    at_once.remove_hooks(model)
    steps.remove_steps(model, Gate)


def _parametrised_values(model: nn.Module, made: Mapping[str, Gate]) -> dict[str, Tensor]:
    """The present values of the weights that have other parametrisations, by name.

    Raises UserError naming the first whose parametrisation does not allow it to be divided by its gates.
    """
    found = {}
    for name, gate in made.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        if parametrize.is_parametrized(module, attribute):
            value = found[name] = getattr(module, attribute).detach().clone()
            trial = copy.deepcopy(cast(parametrize.ParametrizationList, lists_of(module)[attribute]))
            trial.eval()  # spectral_norm would iterate
            kinds = ", ".join(type(step).__name__ for step in trial)
            try:
                trial.append(gate)
                trial.right_inverse(value)
                divided = torch.allclose(trial(), value, rtol=1e-3, atol=1e-6)
            except (RuntimeError, NotImplementedError, ValueError):
                divided = False
            if not divided:
                raise UserError(
                    f"{name} is parametrised by {kinds}, which does not allow it to be divided by its gates. Start "
                    "with gates of one (latents=ones), or make it plain first (torch's remove_parametrizations)."
                )
    return found


def update_places(model: nn.Module, graph: Graph, keep: Keep) -> None:
    """Update the places of gates in a model that was cut to `keep`, in place."""
    for weight in steps.find_steps(model, Gate):
        if weight.name in graph.layouts:  # tied weights have their step under their first name
            step = weight.step(Gate)
            assert step is not None  # `found` saw it
            at_once.forget([weight.module])
            step.places = places_of(graph, step.gates, weight.name, keep)


def places_of(graph: Graph, gates: Gates, name: str, keep: Keep) -> list[Place]:
    """The places of a parameter's gates in a model cut to `keep`.

    Only dimensions with a role that the gates act on: by default neither biases nor the scales of norms.
    """
    found = []
    for dim, layout in enumerate(graph.layouts[name] if name in graph.parameters else ()):
        if graph.role(name, dim) in gates.roles:
            kept = axes.positions(layout, keep)
            for index in _indices(gates, layout):
                found.append(Place(dim, index[kept].to(gates.values.device)))
    return found


def _indices(gates: Gates, layout: Layout) -> list[Tensor]:
    """Per position of a dimension the index of its gate, N for positions without one.

    The parts of a sum are concatenated in one index; each factor of a product has an index of its own.
    """
    layout = axes.normal(layout)
    if isinstance(layout, Axis):
        place = gates.places.get(layout.name)
        return [torch.arange(place.start, place.stop)] if place else []
    if isinstance(layout, axes.Sum):
        parts = [
            (_indices(gates, part), torch.full((axes.size(part),), len(gates.values)))
            for part in layout.parts
        ]
        most = max(len(found) for found, _ in parts)
        return [
            torch.cat([found[i] if i < len(found) else none for found, none in parts]) for i in range(most)
        ]
    if isinstance(layout, axes.Product):
        outer, inner = layout.factors[0], axes.nest(*layout.factors[1:])
        outside = [index.repeat_interleave(axes.size(inner)) for index in _indices(gates, outer)]
        return outside + [index.repeat(axes.size(outer)) for index in _indices(gates, inner)]
    return []
