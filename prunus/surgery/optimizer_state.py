"""Carry the state of an optimiser (momentum, averages) over to a smaller model."""

from __future__ import annotations

import copy
from collections import defaultdict
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from prunus.errors import UserError
from prunus.graph import Graph, Keep, axes, copy_model, parametrised, plain_model
from prunus.surgery.copies import checked_tensors, resize
from prunus.surgery.effective import effective_tensors
from prunus.surgery.slicing import shape_differences, slice_tensor
from prunus.surgery.structure import Structure

_LOST = nn.Parameter(torch.empty(0))  # in the place of a parameter of a block that is skipped


def carry_over(
    graph: Graph,
    keep: Keep,
    model: nn.Module,
    small: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    ema: nn.Module | None = None,
) -> tuple[torch.optim.Optimizer | None, nn.Module | None]:
    """Cut an optimiser's state and an averaged copy of the model with the same indices as the model.

    State tensors that have their parameter's shape are cut; others (step counts) are copied. The optimiser's
    constructor is not called: its settings and own attributes are copied, also those of optimisers inside it.
    Parameters outside the model (a learned weight of the loss) stay the same objects, with a copy of their state.

    What refers to the old optimiser: a GradScaler goes on as it is, because between two steps it holds nothing of an
    optimiser. Make a learning-rate scheduler anew on the carried optimiser, then give it the old one's state:
    `scheduler.load_state_dict(old_scheduler.state_dict())`. Hooks on the optimiser's steps are called as before.

    Args:
        graph: The graph of `model`.
        keep: axis -> indices that stayed.
        model: The original, whose parameters the optimiser holds.
        small: The shrunk model.
        optimizer: The optimiser; it is not changed.
        ema: An averaged copy of the original, or torch's AveragedModel around one; it is not changed.

    Returns:
        A new optimiser of the same class over `small`'s parameters, and the shrunk average; None for one not given.

    Raises:
        FileError: `ema` is not a copy of the traced model.
        UserError: None of the optimiser's parameters is the model's, one is behind a parametrisation of unknown
            dimensions, its state does not have its parameters' shapes or cannot be copied, or `small` is not this keep
            of the traced model.
    """
    model, small = plain_model(model), plain_model(small)
    keep = graph.check_keep(keep)
    small_ema = None if ema is None else _shrink_average(ema, graph, keep)
    if optimizer is None:
        return None, small_ema
    structure = Structure.of(graph, keep, small)
    shapes = structure.renamed({n: graph.shape(n, keep) for n in graph.layouts})
    wrong = shape_differences(shapes, effective_tensors(small))
    if wrong:
        raise UserError(
            f"the small model is not this keep of the traced one: {'; '.join(wrong[:3])}. Give the model that "
            "`shrink` made with this keep."
        )
    return _Carrier(graph, keep, model, small, structure).optimizer(optimizer), small_ema


def _shrink_average(ema: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    if isinstance(ema, AveragedModel):  # it counts its updates, and has a rule of its own for them
        inner = ema.module
        return copy_model(ema, {id(inner): _shrink_average(inner, graph, keep)})
    return resize(ema, graph, keep, checked_tensors(ema, graph))


class _Carrier:
    """Copies optimisers with the small model's parameters in the place of the original's.

    Parameters of blocks that are skipped leave the optimiser.
    """

    def __init__(self, graph: Graph, keep: Keep, model: nn.Module, small: nn.Module, structure: Structure):
        self.keep, self.layouts = keep, graph.layouts | graph.behind
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        for weight in parametrised.weights_behind_steps(model):
            if weight.only_own:  # a mask: the small model has a plain parameter
                self.names[id(weight.steps.original)] = weight.name
        parameters, modules = dict(small.named_parameters()), dict(small.named_modules())
        now = structure.originals(self.names.values())
        self.parameters = {now.get(name, name): parameter for name, parameter in parameters.items()}
        self.lost = graph.blocks.lost(keep)
        self.memo: dict[int, Any] = {  # by the id of an old object: the one in its place
            id(module): modules[name]
            for name, module in structure.renamed(dict(model.named_modules())).items()
            if name in modules
        }

    def optimizer(self, old: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The copy of an optimiser."""
        if id(old) in self.memo:
            return self.memo[id(old)]
        held = [parameter for group in old.param_groups for parameter in group["params"]]
        self._check(held)
        for parameter in held:
            name = self.names.get(id(parameter))
            self.memo[id(parameter)] = parameter if name is None else self.parameters.get(name, _LOST)
        new = self.memo[id(old)] = type(old).__new__(type(old))
        state = self.memo.setdefault(id(old.state), defaultdict(dict))
        for name, value in vars(old).items():
            if _is_patch(old, name, value):
                continue
            try:
                vars(new)[name] = self._attribute(name, value)
            except UserError:
                raise
            except Exception as error:  # any error that an attribute's __deepcopy__ raises
                raise UserError(
                    f"this {type(old).__name__} cannot be carried over: its attribute {name!r}, a "
                    f"{type(value).__name__}, cannot be copied ({error}); start a new optimiser for the small model."
                ) from error
        for group in new.param_groups:
            group["params"] = [parameter for parameter in group["params"] if parameter is not _LOST]
        for key, entry in old.state.items():
            if isinstance(key, torch.Tensor) and self.memo.get(id(key)) is _LOST:
                continue
            if isinstance(key, torch.Tensor):
                state[self.memo.get(id(key), key)] = self._state(key, entry)
            else:
                state[key] = copy.deepcopy(entry, self.memo)
        return new

    def _attribute(self, name: str, value: Any) -> Any:
        if isinstance(value, torch.optim.Optimizer):
            return self.optimizer(value)
        return copy.copy(value) if name.endswith("_hooks") else copy.deepcopy(value, self.memo)

    def _check(self, held: list[torch.Tensor]) -> None:
        ours = [self.names[id(p)] for p in held if id(p) in self.names]
        if not ours:
            raise UserError(
                "the optimiser holds parameters that are not the traced model's: shapes "
                f"{[tuple(p.shape) for p in held[:3]]}. Give the optimiser of this model."
            )
        there = self.parameters.keys() | self.lost
        behind = [name for name in ours if name not in self.layouts or name not in there]
        if behind:
            raise UserError(
                f"the optimiser holds {behind[0]}, which is behind a parametrisation whose "
                "dimensions are not known; start a new optimiser for the small model."
            )

    def _state(self, parameter: torch.Tensor, entry: Any) -> Any:
        """The state of one parameter, its tensors cut as the parameter is."""
        name = self.names.get(id(parameter))
        if name is None or not isinstance(entry, dict):
            return copy.deepcopy(entry, self.memo)
        layouts = self.layouts[name]
        return {key: self._cut(value, parameter, layouts, f"{key} of {name}") for key, value in entry.items()}

    def _cut(self, value: Any, parameter: torch.Tensor, layouts: list[axes.Layout], what: str) -> Any:
        """One entry of state, cut in the dimensions in which it has the parameter's size, not 1."""
        if isinstance(value, (list, tuple)):
            return type(value)([self._cut(item, parameter, layouts, what) for item in value])
        if not isinstance(value, torch.Tensor) or value.numel() == 1:
            return copy.deepcopy(value, self.memo)
        if value.dim() != parameter.dim() or any(
            a not in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True)
        ):
            raise UserError(
                f"the optimiser's {what} has shape {tuple(value.shape)}, expected the parameter's "
                f"{tuple(parameter.shape)} (or 1 in some dimensions); start a new optimiser for the small model."
            )
        cut = [1 if n == 1 else layout for n, layout in zip(value.shape, layouts, strict=True)]
        return slice_tensor(value, cut, self.keep).clone()


def _is_patch(optimizer: torch.optim.Optimizer, name: str, value: Any) -> bool:
    """Whether an attribute is a method replaced on the object, which would act on it (schedulers count steps so)."""
    return isinstance(value, (FunctionType, MethodType)) and callable(getattr(type(optimizer), name, None))
