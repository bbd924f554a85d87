"""Gates: one number per unit that multiplies every weight writing to the unit or reading from it.

`attach` puts a step behind each such weight of a model, in place: w becomes w times, for each of its dimensions, the
gates of the units there. Which units those are is read off the layouts: the parts of a sum lie one behind the other,
the factors of a product multiply. All gates are one flat tensor, `Gates.values`.

A unit whose gate is zero is read by nobody, whatever biases, norms and activation functions make of it: it can be
removed and the network stays the same function, in training mode too. That holds where everything that sums over an
axis is a weight; `ungateable` names the axes where something else does. Source: ours (design, section 3).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus.errors import UserError, unknown
from prunus.gates import at_once, product
from prunus.gates.product import Place
from prunus.graph import CONSUMES, PRODUCES, Axis, Graph, Keep, Layout, axes
from prunus.surgery import steps

ACT = (PRODUCES, CONSUMES)  # the roles of the dimensions that gates act on, if nothing else is said


class Gates(nn.Module):
    """The gates of the units of some axes: `values` (N,), axis after axis; all one at first.

    Of float32, and float64 where the weights are: many small steps have to add up.
    roles: they act on the dimensions of parameters that have one of these (see `Graph.role`)."""

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
        """(size,): the gates of one axis, a view."""
        return self.values[self.places[axis]]

    def give(self, values: Tensor) -> None:
        """From here on the gates are `values` (N,), which are made elsewhere, and no parameter of the model."""
        self._parameters.pop("values", None)
        self.values = values


class Gate(nn.Module):
    """A step: the weight times the gates along its dimensions. What it is given stays the same function at first."""

    def __init__(self, gates: Gates, shape: torch.Size, places: list[Place]):
        super().__init__()
        self.gates, self.dims, self.places = gates, len(shape), places

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gate().to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.gate().to(weight.dtype)

    def gate(self) -> Tensor:
        """What the weight is multiplied with."""
        return product.gate(self.gates.values, self.dims, self.places)

    def _apply(self, fn: Callable, recurse: bool = True) -> Gate:
        super()._apply(fn, recurse)
        # indices are no buffers: they follow from the graph, no file has to hold them
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
    """Let every weight of `model` that writes to or reads from the axes `names` act through their gates, in place.

    The network stays the same function: weights are divided by their gates. The gates become parameters of the
    model: an optimiser made after this has them.
    values: axis -> (size,), gates to begin with, none of them zero; one where not given. step: makes what stands
    behind a weight, of a subclass of Gate, from the weight's name, the gates, its shape and its places. roles: see
    `Gates`; ("consumes",): only weights that read.
    Raises UserError if there is nothing to gate, gates are there already, or a weight stands behind a parametrisation
    that undoes the division (spectral_norm); then nothing is changed.
    """
    if any(isinstance(module, Gates) for module in model.modules()):
        raise UserError("this model has gates already; finish with those first.")
    gates = Gates(graph, names, roles)
    if not len(gates.values):
        raise UserError("no axis was named, so there is nothing to gate.")
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
    chained = _behind_others(model, made) if values or step else {}  # else all is one: nothing to divide by
    for name, gate in made.items():
        weight = steps.add_step(model, name, gate)
        if name in chained:
            weight.steps.right_inverse(chained[name])
    direct = [w for w in steps.find_steps(model, Gate) if w.steps.is_tensor and type(w.steps[0]) is Gate]
    if direct:
        at_once.AtOnce(model, gates, direct)
    return gates


def take_off(model: nn.Module) -> None:
    """Make the weights of `model` that stand behind gates, in place, ordinary parameters of the value they had."""
    at_once.leave(model)
    steps.remove_steps(model, Gate)


def _behind_others(model: nn.Module, made: Mapping[str, Gate]) -> dict[str, Tensor]:
    """What the weights that stand behind other parametrisations are now, by name.

    Raises UserError naming the first that its parametrisation would not let be divided by its gates.
    """
    found = {}
    for name, gate in made.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        if parametrize.is_parametrized(module, attribute):
            value = found[name] = getattr(module, attribute).detach().clone()
            trial = copy.deepcopy(module.parametrizations[attribute]).eval()  # spectral_norm would iterate
            kinds = ", ".join(type(step).__name__ for step in trial)
            try:
                trial.append(gate)
                trial.right_inverse(value)
                divided = torch.allclose(trial(), value, rtol=1e-3, atol=1e-6)
            except (RuntimeError, NotImplementedError, ValueError):
                divided = False
            if not divided:
                raise UserError(
                    f"{name} stands behind {kinds}, which would not let it be divided by its gates. Begin with gates "
                    "of one (latents=ones), or make it plain first (torch's remove_parametrizations)."
                )
    return found


def replace_places(model: nn.Module, graph: Graph, keep: Keep) -> None:
    """Bring the gates of a model that was cut to `keep` up to date, in place."""
    for weight in steps.find_steps(model, Gate):
        if weight.name in graph.layouts:  # tied weights have their step under their first name
            step = weight.step(Gate)
            at_once.forget([weight.module])
            step.places = places_of(graph, step.gates, weight.name, keep)


def places_of(graph: Graph, gates: Gates, name: str, keep: Keep) -> list[Place]:
    """Where the gates of a parameter's dimensions stand when the model is cut to `keep`.

    Only dimensions of the roles that the gates act on: else not biases, nor the scales of norms.
    """
    found = []
    for dim, layout in enumerate(graph.layouts[name] if name in graph.parameters else ()):
        if graph.role(name, dim) in gates.roles:
            kept = axes.positions(layout, keep)
            for index in _indices(gates, layout):
                found.append(Place(dim, index[kept].to(gates.values.device)))
    return found


def _indices(gates: Gates, layout: Layout) -> list[Tensor]:
    """Per position of a dimension its unit's gate, N where it has none: parts of a sum side by side in one index, of
    each factor of a product one of its own."""
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
