"""Contexts that restore afterwards what training changes: modes, memory layout, weights, random states."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode.

    Args:
        model: The model.
        training: True for training mode, False for evaluation mode.

    Returns:
        A context manager, after which each module is in its own mode again.
    """
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def channels_last(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Lay out a model channels-last if `wanted`, and contiguously again afterwards.

    Sums in another layout differ in the last bit, and results after training should not depend on whether the
    weights have been through a file.
    """
    had_it = any(p.dim() == 4 and not p.is_contiguous() for p in model.parameters())
    if wanted:
        _lay_out(model, torch.channels_last)
    try:
        yield
    finally:
        if wanted and not had_it:
            _lay_out(model, torch.contiguous_format)


@contextmanager
def avoid_onednn_fault(model: nn.Module) -> Iterator[None]:
    """Avoid, in training on a CPU, a fault of oneDNN that overwrites memory or returns a wrong gradient.

    The weight gradient of a strided 1x1 convolution, channels-last and in single precision, is computed wrongly by
    oneDNN 3.12 (in torch 2.13; its issue 6035) if there are fewer input channels than it processes at once: 8
    with AVX2. Pruning may leave fewer at any step, so within this context every such convolution takes its
    images and weights in the contiguous layout.
    """
    found = [module for module in model.modules() if isinstance(module, nn.Conv2d) and _strided(module)]
    found = [module for module in found if any(p.device.type == "cpu" for p in model.parameters())]
    last = [
        m for m in found if any(p.dim() == 4 and p.stride() != _plain(p).stride() for p in m.parameters())
    ]
    hooks = [module.register_forward_pre_hook(_plain_images) for module in found]
    for module in last:
        _lay_out(module, torch.contiguous_format)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in last:
            _lay_out(module, torch.channels_last)


def _lay_out(module: nn.Module, memory_format: torch.memory_format) -> None:
    module.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]  # torch's stub lacks this form


def _strided(module: nn.Conv2d) -> bool:
    return set(module.kernel_size) == {1} and set(module.stride) != {1}


def _plain(tensor: Tensor) -> Tensor:
    """Return the tensor in the contiguous layout, with the usual strides also of dimensions of size 1."""
    return tensor.to(memory_format=torch.contiguous_format)


def _plain_images(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(map(_plain, inputs))


@contextmanager
def swap_in(model_tensors: dict[str, Tensor], others: dict[str, Tensor]) -> Iterator[None]:
    """Give a model the values of `others`, and its own again afterwards."""
    exchange(model_tensors, others)
    try:
        yield
    finally:
        exchange(model_tensors, others)


@torch.no_grad()
def exchange(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    """Swap the values of two sets of tensors with the same names."""
    for name, other in others.items():
        value = tensors[name].clone()
        tensors[name].copy_(other)
        other.copy_(value)
