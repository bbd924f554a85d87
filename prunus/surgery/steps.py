"""Steps behind a weight: torch parametrisations put on a model's parameters and taken off, ties respected.

A *step* is a module that maps a weight to what the model computes with in its place: a mask, a gate. It acts after
other parametrisations (weight_norm). Parameters stay the same objects and keep their place in the model's order, so
optimisers, averages and files go on with them. Names are the graph's: tied weights once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

Step = TypeVar("Step", bound=nn.Module)


class Held(NamedTuple):
    """A weight with a step behind it, under one of its names."""

    name: str
    module: nn.Module
    attribute: str
    steps: Any  # its parametrize.ParametrizationList

    def step(self, kind: type[Step]) -> Step | None:
        """Its step of that class."""
        return next((step for step in self.steps if isinstance(step, kind)), None)


def lists_of(module: nn.Module) -> nn.ModuleDict:
    """The steps behind a parametrised module's weights: its ParametrizationLists by the weights' names."""
    return cast(nn.ModuleDict, module.parametrizations)


@torch.inference_mode(False)  # tensors made there could never be trained
@torch.no_grad()
def put(model: nn.Module, name: str, step: nn.Module) -> Held:
    """Put `step` behind the parameter `name` of `model`, in place, wherever it is tied."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if parametrize.is_parametrized(module, attribute):
        cast(parametrize.ParametrizationList, lists_of(module)[attribute]).append(step)
    else:
        _register(model, module.get_parameter(attribute), step)
    return Held(name, module, attribute, lists_of(module)[attribute])


def _register(model: nn.Module, weight: nn.Parameter, step: nn.Module) -> None:
    shared, value = None, weight.detach().clone()
    for module in list(model.modules()):
        for name in [name for name, parameter in module._parameters.items() if parameter is weight]:
            order = list(module._parameters)
            _own_class(module)
            weight.copy_(value)  # a tied weight goes through the step's right inverse once
            parametrize.register_parametrization(module, name, step)
            shared = shared or lists_of(module)[name]
            lists_of(module)[name] = shared
            # a place to come back to: the order of parameters is the order of an optimiser's state in a file
            module._parameters = {n: module._parameters.get(n) for n in order}


def _own_class(module: nn.Module) -> None:
    """Give a parametrised module a class of its own: torch keeps the tensors' names there, and copies share it."""
    if parametrize.is_parametrized(module):
        kind = type(module)
        module.__class__ = cast(type[nn.Module], type(kind.__name__, kind.__bases__, dict(vars(kind))))


def found(model: nn.Module, kind: type[nn.Module]) -> Iterator[Held]:
    """Every weight behind which stands a step of that class, under each of its names."""
    for path, module in list(model.named_modules()):
        if parametrize.is_parametrized(module):
            for attribute, steps in list(lists_of(module).items()):
                held = Held(f"{path}.{attribute}" if path else attribute, module, attribute, steps)
                if held.step(kind) is not None:
                    yield held


@torch.inference_mode(False)
@torch.no_grad()
def take_off(model: nn.Module, kind: type[nn.Module]) -> None:
    """Make weights behind which stands a step of that class, in place, ordinary parameters of the value they had.

    Classes and ties come back. Parameters stay the same objects, but those behind another parametrisation
    (weight_norm), which goes too.
    """
    taken: dict[nn.Module, nn.Parameter] = {}  # tied weights once
    for _, module, attribute, steps in list(found(model, kind)):
        if steps not in taken:
            value = getattr(module, attribute)
            if steps.is_tensor:
                parameter = steps.original
                parameter.copy_(value)
            else:
                parameter = nn.Parameter(value, any(p.requires_grad for p in steps.parameters()))
            taken[steps] = parameter
        plain = parametrize.type_before_parametrizations(module)
        _own_class(module)
        delattr(type(module), attribute)
        del lists_of(module)[attribute]
        if not lists_of(module):
            del module.parametrizations
            module.__class__ = plain
        module.register_parameter(attribute, taken[steps])
