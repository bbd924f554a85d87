"""Steps: torch parametrisations added to a model's weights and removed again, with ties preserved.

A *step* is a module that maps a weight to the one the model computes with: a mask, a gate. It acts after other
parametrisations (weight_norm). Parameters stay the same objects and keep their place in the model's order, so that
optimisers, averages and files still fit. Names are the graph's: a tied weight has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from prunus.graph import OwnStep, full_name, parametrised

lists_of = parametrised.lists_of

Step = TypeVar("Step", bound=nn.Module)


class Held(NamedTuple):
    """A weight with a step, under one of its names.

    Args:
        name: The weight's name in the model.
        module: The module that has it.
        attribute: Its name in the module.
        steps: Its parametrize.ParametrizationList.
    """

    name: str
    module: nn.Module
    attribute: str
    steps: Any

    def step(self, kind: type[Step]) -> Step | None:
        """Its step of class `kind`, or None."""
        return next((step for step in self.steps if isinstance(step, kind)), None)


class Mask(OwnStep):
    """A parametrisation that is zero where the mask is False, even for NaN; no gradient passes there.

    Args:
        mask: A bool tensor of the weight's shape.
    """

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.where(self.mask, weight, 0.0)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


@torch.inference_mode(False)  # tensors made in inference mode could never be trained
@torch.no_grad()
def add_step(model: nn.Module, name: str, step: nn.Module) -> Held:
    """Add `step` to the parameter `name` of `model`, in place, under all names it is tied to."""
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
            weight.copy_(value)  # so that a tied weight goes through the step's right inverse only once
            parametrize.register_parametrization(module, name, step)
            shared = shared or lists_of(module)[name]
            lists_of(module)[name] = shared
            # keep the parameter's place: an optimiser's state in a file has the order of the parameters
            module._parameters = {n: module._parameters.get(n) for n in order}


def _own_class(module: nn.Module) -> None:
    """Give a parametrised module a class of its own: torch stores the tensors' names there, and copies share it."""
    if parametrize.is_parametrized(module):
        kind = type(module)
        module.__class__ = cast(type[nn.Module], type(kind.__name__, kind.__bases__, dict(vars(kind))))


def find_steps(model: nn.Module, kind: type[nn.Module]) -> Iterator[Held]:
    """Find the weights that have a step of a class.

    Args:
        model: Any model.
        kind: The class of the step.

    Yields:
        Each such weight, under each of its names.
    """
    for path, module in list(model.named_modules()):
        if parametrize.is_parametrized(module):
            for attribute, steps in list(lists_of(module).items()):
                held = Held(full_name(path, attribute), module, attribute, steps)
                if held.step(kind) is not None:
                    yield held


@torch.inference_mode(False)
@torch.no_grad()
def remove_steps(model: nn.Module, kind: type[nn.Module]) -> None:
    """Turn weights that have a step of class `kind` into plain parameters of their present value, in place.

    Classes and ties are restored. Parameters stay the same objects, except for weights with another parametrisation
    (weight_norm), which is removed too.
    """
    taken: dict[nn.Module, nn.Parameter] = {}  # one entry for tied weights
    for _, module, attribute, steps in list(find_steps(model, kind)):
        if steps not in taken:
            value = getattr(module, attribute)
            if steps.is_tensor:
                parameter = steps.original
                parameter.copy_(value)
            else:
                parameter = nn.Parameter(value, any(p.requires_grad for p in steps.parameters()))
            taken[steps] = parameter
        make_plain(module, attribute, taken[steps])


def make_plain(module: nn.Module, attribute: str, parameter: nn.Parameter) -> None:
    """Replace a parametrised weight of a module by a plain parameter, in place."""
    plain = parametrize.type_before_parametrizations(module)
    _own_class(module)
    delattr(type(module), attribute)
    del lists_of(module)[attribute]
    if not lists_of(module):
        del module.parametrizations
        module.__class__ = plain
    module.register_parameter(attribute, parameter)
