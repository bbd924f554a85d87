"""What training borrows from a model or the process, and puts back: modes, memory layout, weights, random states."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """`model` in training or evaluation mode; each module's own mode is put back."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def channels_last(model: nn.Module, wanted: bool) -> Iterator[None]:
    """`model` laid out channels-last if `wanted`.

    Put back after, because sums in another layout differ in the last bit, and what is computed after training
    should not depend on whether the weights have been through a file.
    """
    had_it = any(p.dim() == 4 and not p.is_contiguous() for p in model.parameters())
    if wanted:
        model.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        if wanted and not had_it:
            model.to(memory_format=torch.contiguous_format)


@contextmanager
def in_bounds(model: nn.Module) -> Iterator[None]:
    """Keep training on a CPU away from a fault of oneDNN that overwrites memory or gives a wrong gradient.

    The weight gradient of a strided 1x1 convolution, channels-last and in single precision, is computed wrongly by
    oneDNN 3.12 (in torch 2.13; its issue 6035) if there are fewer input channels than it works on at once: 8 with
    AVX2. Pruning may leave so few at any step, so within this context every such convolution sees its images and
    weights in the contiguous layout.
    """
    found = [module for module in model.modules() if isinstance(module, nn.Conv2d) and _strided(module)]
    found = [module for module in found if any(p.device.type == "cpu" for p in model.parameters())]
    last = [
        m for m in found if any(p.dim() == 4 and p.stride() != _plain(p).stride() for p in m.parameters())
    ]
    hooks = [module.register_forward_pre_hook(_plain_images) for module in found]
    for module in last:
        module.to(memory_format=torch.contiguous_format)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in last:
            module.to(memory_format=torch.channels_last)


def _strided(module: nn.Conv2d) -> bool:
    return set(module.kernel_size) == {1} and set(module.stride) != {1}


def _plain(tensor: Tensor) -> Tensor:
    """Return the tensor in the contiguous layout, with the usual strides also of dimensions of size 1."""
    return tensor.to(memory_format=torch.contiguous_format)


def _plain_images(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(map(_plain, inputs))


@contextmanager
def swapped(model_tensors: dict[str, Tensor], others: dict[str, Tensor]) -> Iterator[None]:
    """The values of `others` in place of the model's, and the model's back after."""
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


@contextmanager
def own_randomness() -> Iterator[None]:
    """Random states of torch, numpy and Python may be set at will; the caller's are put back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 (the global one is meant)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def reseed(*numbers: int) -> None:
    """Set every global random state from `numbers`, unrelated for unlike ones."""
    words = np.random.SeedSequence(numbers).generate_state(3).tolist()
    torch.manual_seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002
    random.seed(words[2])
