"""Carry the state of an optimiser (momentum, averages) over to a smaller model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from prunus.errors import UserError
from prunus.graph import Graph, Keep, axes
from prunus.surgery.copies import checked_tensors, effective_tensors, resize
from prunus.surgery.slicing import shape_differences, slice_tensor


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

    State tensors that have their parameter's shape are cut; others (step counts) are copied.

    Args:
        graph: The graph of `model`.
        keep: axis -> indices that stayed.
        model: The original, whose parameters the optimiser holds.
        small: The shrunk model.
        optimizer: The optimiser; it is not changed.
        ema: An averaged copy of the original; it is not changed.

    Returns:
        A new optimiser of the same class over `small`'s parameters, and the shrunk average; None for one not given.

    Raises:
        FileError: `ema` is not a copy of the traced model.
        UserError: The optimiser holds parameters that are not the model's or are parametrised, its state does not
            have its parameters' shapes, or `small` is not this keep of the traced model.
    """
    keep = graph.check_keep(keep)
    small_ema = None if ema is None else resize(ema, graph, keep, checked_tensors(ema, graph))
    if optimizer is None:
        return None, small_ema
    wrong = shape_differences({n: graph.shape(n, keep) for n in graph.layouts}, effective_tensors(small))
    if wrong:
        raise UserError(
            f"the small model is not this keep of the traced one: {'; '.join(wrong[:3])}. Give the model that "
            "`shrink` made with this keep."
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = dict(small.named_parameters())
    groups, pairs = [], []
    for group in optimizer.param_groups:
        unknown = [tuple(p.shape) for p in group["params"] if names.get(id(p)) not in graph.layouts]
        if unknown:
            raise UserError(
                f"the optimiser holds parameters that are not the traced model's: shapes {unknown[:3]}. Give the "
                "optimiser of this model."
            )
        group_names = [names[id(p)] for p in group["params"]]
        pairs += [(p, name) for p, name in zip(group["params"], group_names, strict=True)]
        groups.append({**group, "params": [parameters[name] for name in group_names]})
    carried = type(optimizer)(groups, **{k: v for k, v in optimizer.defaults.items() if k in ("lr",)})
    for old, name in pairs:
        carried.state[parameters[name]] = {
            key: _cut_state(value, old, graph.layouts[name], keep, f"{key} of {name}")
            for key, value in optimizer.state.get(old, {}).items()
        }
    return carried, small_ema


def _cut_state(value: Any, parameter: torch.Tensor, layouts: list[axes.Layout], keep: Keep, what: str) -> Any:
    """One entry of optimiser state, cut in the dimensions in which it has the parameter's size, not 1."""
    if not isinstance(value, torch.Tensor) or value.numel() == 1:
        return copy.deepcopy(value)
    if value.dim() != parameter.dim() or any(
        a not in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True)
    ):
        raise UserError(
            f"the optimiser's {what} has shape {tuple(value.shape)}, expected the parameter's "
            f"{tuple(parameter.shape)} (or 1 in some dimensions); start a new optimiser for the small model."
        )
    cut = [1 if n == 1 else layout for n, layout in zip(value.shape, layouts, strict=True)]
    return slice_tensor(value, cut, keep).clone()
