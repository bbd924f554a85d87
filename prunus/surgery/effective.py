"""The tensors that a model computes with."""

from __future__ import annotations

import torch
from torch import nn

from prunus.graph import parametrised, skeleton


def effective_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a model computes with: parameters and buffers, parametrised ones by their value.

    Args:
        model: Any model.

    Returns:
        {name: tensor}; a parametrised tensor (weight norm: g * v / |v|) is under its plain name. Modules that share a
        parametrisation (tied weights under a mask) give one entry, under the first name.
    """
    found = {n: t for n, t in skeleton.named_tensors(model).items() if ".parametrizations." not in f".{n}"}
    for weight in parametrised.weights_behind_steps(model):
        found[weight.name] = parametrised.read_tensor(model, weight.name)
    return found
