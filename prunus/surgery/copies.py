"""Weights under a keep: which part of each tensor stays, and a copy of a model that holds other tensors.

What `surgery` and `store` are built from. Models are copied without their weights: each tensor of the copy is
given at once in its final shape; ties, frozen parameters, memory formats and parametrisations are respected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from prunus.errors import FileError
from prunus.graph import Graph, Keep, set_attributes, skeleton
from prunus.surgery.slicing import cut, differences
from prunus.surgery.steps import lists_of


def checked_tensors(model: nn.Module, graph: Graph) -> dict[str, torch.Tensor]:
    """The model's tensors by the graph's names. Raises FileError if it is not the model that was traced."""
    tensors = effective(model)
    wrong = differences(graph.shapes, tensors)
    if wrong:
        raise FileError(f"this model is not the one that was traced: {'; '.join(wrong[:3])}. Trace it again.")
    return tensors


def effective(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, a parametrised one under its plain name as it acts (g * v / |v|, say).

    Where modules share a parametrisation (tied weights that are held by a mask), under its first name.
    """
    found = {n: t for n, t in skeleton.named_tensors(model).items() if ".parametrizations." not in f".{n}"}
    for steps, (name, module, attribute) in _parametrised(model).items():
        training = module.training
        steps.eval()  # spectral_norm would iterate, and so change the model
        found[name] = getattr(module, attribute)
        steps.train(training)
    return found


def _parametrised(model: nn.Module) -> dict[nn.Module, tuple[str, nn.Module, str]]:
    """Each parametrisation once, with the first tensor it computes: its name, its module, its name there."""
    found: dict[nn.Module, tuple[str, nn.Module, str]] = {}
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for attribute, steps in lists_of(module).items():
                found.setdefault(steps, (f"{prefix}.{attribute}" if prefix else attribute, module, attribute))
    return found


@torch.inference_mode(False)  # tensors made there could never be trained
def clone(model: nn.Module, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A copy of `model` that holds `tensors` in place of its own; nothing else is copied twice.

    Ties, frozen parameters and memory format stay, and parametrisations that can take the new value.
    """
    memo: dict[int, Any] = {}
    for name, tensor in skeleton.named_tensors(model).items():
        new = tensors.get(name, tensor).detach()
        new = new.clone(memory_format=memory_format(tensor, new))
        memo[id(tensor)] = (
            nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        )
    small = skeleton.copy_model(model, memo)
    names = {steps: name for steps, (name, _, _) in _parametrised(small).items()}
    plain: dict[nn.Module, nn.Parameter] = {}  # in the place of parametrisations that could not take theirs
    for module in list(small.modules()):
        if parametrize.is_parametrized(module):
            values = {a: tensors[names[steps]].detach() for a, steps in lists_of(module).items()}
            _set_parametrised(module, values, plain)
    return small


def memory_format(old: torch.Tensor, new: torch.Tensor) -> torch.memory_format:
    """How `new`, which takes the place of `old`, should lie in memory."""
    last = old.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous()
    return torch.channels_last if last and new.dim() == 4 else torch.contiguous_format


def _set_parametrised(
    module: nn.Module, values: dict[str, torch.Tensor], plain: dict[nn.Module, nn.Parameter]
) -> None:
    """Give parametrised tensors values of another shape through the parametrisations' own right inverses.

    Where one cannot take it (spectral_norm keeps vectors of the old size; a norm of zero has no inverse; a mask
    is of the old shape), the tensors become plain parameters, which are noted in `plain`: once for modules that
    share the parametrisation.
    """
    training, lists = module.training, lists_of(module)
    lists.eval()  # spectral_norm would iterate
    frozen = {name: not any(p.requires_grad for p in lists[name].parameters()) for name in values}
    try:
        for name, value in values.items():
            _invert(cast(parametrize.ParametrizationList, lists[name]), value)
        stateless = not any(True for _ in lists.buffers())
        taken = stateless and all(
            torch.allclose(getattr(module, name), value, rtol=1e-3) for name, value in values.items()
        )
    except (RuntimeError, NotImplementedError, ValueError):
        taken = False
    lists.train(training)
    if not taken:
        kind = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        module.__class__ = kind
        for name, steps in lists.items():
            if steps not in plain:
                plain[steps] = nn.Parameter(values[name].clone(), requires_grad=not frozen[name])
            module.register_parameter(name, plain[steps])


def _invert(parametrisations: parametrize.ParametrizationList, value: Any) -> None:
    with torch.no_grad():
        for step in reversed(parametrisations):
            value = cast(Any, step).right_inverse(value)
    values = value if isinstance(value, (tuple, list)) else [value]
    names = ["original"] if parametrisations.is_tensor else [f"original{i}" for i in range(len(values))]
    for name, new in zip(names, values, strict=True):
        old = getattr(parametrisations, name)
        setattr(parametrisations, name, nn.Parameter(new.detach().clone(), old.requires_grad))


def resized(model: nn.Module, graph: Graph, keep: Keep, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """`model` shrunk, its weights cut from `tensors`; the integers in its modules follow."""
    small = clone(model, cut(tensors, graph, keep))
    set_attributes(small, graph.attributes, graph.widths(keep))
    describe(model, small)
    return small


def fill(
    model: nn.Module, tensors: dict[str, torch.Tensor], attributes: Mapping[str, Mapping[str, Any]]
) -> nn.Module:
    """A copy of `model` that holds `tensors` of any shape and {module: {attribute: value}}: how a file is loaded."""
    small = clone(model, tensors)
    for module_name, values in attributes.items():
        for name, value in values.items():
            old = getattr(small.get_submodule(module_name), name)
            setattr(small.get_submodule(module_name), name, type(old)(value))
    describe(model, small)
    return small


def changed_attributes(small: nn.Module, graph: Graph) -> dict[str, dict[str, Any]]:
    """The integers that follow, as they stand in `small`: {module: {attribute: value}}."""
    found: dict[str, dict[str, Any]] = {}
    for attribute in graph.attributes:
        value = getattr(small.get_submodule(attribute.module), attribute.name)
        found.setdefault(attribute.module, {})[attribute.name] = (
            list(value) if attribute.item is not None else value
        )
    return found


_STATED_SIZES = {  # what a layer says about itself: the dimension of its weight that it states
    "in_features": 1,
    "out_features": 0,
    "num_features": 0,
    "num_embeddings": 0,
    "embedding_dim": 1,
    "num_parameters": 0,
}


def describe(model: nn.Module, small: nn.Module) -> None:
    """Let the sizes a layer states about itself tell the truth after surgery."""
    old_tensors, new_tensors, news = effective(model), effective(small), dict(small.named_modules())
    for path, old in model.named_modules():
        weight = next((n for n in (f"{path}.weight", f"{path}.running_mean") if n in new_tensors), None)
        if weight is None or weight not in old_tensors:
            continue
        new, before, after = news[path], old_tensors[weight], new_tensors[weight]
        for name, dim in _STATED_SIZES.items():
            if (
                dim < before.dim()
                and type(vars(old).get(name)) is int
                and vars(old)[name] == before.shape[dim]
            ):
                setattr(new, name, after.shape[dim])
        if isinstance(getattr(new, "groups", None), int) and "in_channels" in vars(new) and after.dim() > 2:
            inner, outer = (0, 1) if getattr(new, "transposed", False) else (1, 0)
            layer = cast(nn.Conv2d, new)  # or any other with these attributes
            layer.in_channels = after.shape[inner] * (layer.groups if inner else 1)
            layer.out_channels = after.shape[outer] * (layer.groups if outer else 1)
