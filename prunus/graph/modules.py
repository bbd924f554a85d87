"""The modules of a model: listed without the nested generators of torch, because a trace lists them again and again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def list_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the modules of a model as `named_modules` does, each once.

    Args:
        model: Any model.

    Returns:
        Names and modules, the model itself first, under the name "".
    """
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append((name, module))
        prefix = f"{name}." if name else ""
        for child, inner in reversed(module._modules.items()):
            if inner is not None:
                waiting.append((prefix + child, inner))
    return found


def is_torchs(module: nn.Module) -> bool:
    """Return whether the class of a module is torch's own.

    Args:
        module: Any module.

    Returns:
        Whether torch.nn defines its class.
    """
    return type(module).__module__.startswith("torch.nn.")


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode; afterwards every module returns to the mode it had.

    Args:
        models: The models.
    """
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
