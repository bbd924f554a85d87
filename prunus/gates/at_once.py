"""Compute all gated weights of a model at once, before its first layer runs.

Only plain training is served so. Without gradients, under torch.func, checkpointing or a compiler, and in several
processes, weights are computed one by one when they are read. Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.autograd.forward_ad
from torch import Tensor, nn
from torch._C import _autograd  # pyright: ignore[reportAttributeAccessIssue]: torch has no annotations for it
from torch.nn.utils import parametrize

from prunus.gates.product import apply_gates
from prunus.surgery import Held


class _Made(NamedTuple):
    """A weight computed for a call, and its inputs with their versions, which count changes in place."""

    weight: Tensor
    original: Tensor
    values: Tensor
    versions: tuple[int, int]


_made: WeakKeyDictionary[nn.Module, dict[str, _Made]] = WeakKeyDictionary()  # for the calls in progress


class AtOnce:
    """The hooks by which a model computes all its gated weights at once when it is called.

    Args:
        model: The model with gates.
        gates: A module whose `values` are the gates (N,).
        weights: Weights whose only parametrisation is a step with `places`.
    """

    def __init__(self, model: nn.Module, gates: nn.Module, weights: Sequence[Held]):
        self.gates, self.weights = gates, list(weights)
        for weight in weights:
            _use_made(type(weight.module), weight.attribute)
        model.register_forward_pre_hook(self.make)
        model.register_forward_hook(self.forget, always_call=True)

    def make(self, *_: Any) -> None:
        """Compute the weights for a call."""
        self.forget()  # weights of a call that was interrupted
        weights = [weight for weight in self.weights if _is_plain(weight)]
        if not weights or not _plain_training():
            return
        values = cast(Tensor, self.gates.values)
        once = list(dict.fromkeys(weight.steps for weight in weights))  # tied weights have several names
        made = apply_gates(values, [steps.original for steps in once], [steps[0].places for steps in once])
        of = {
            steps: _Made(weight, steps.original, values, (steps.original._version, values._version))
            for steps, weight in zip(once, made, strict=True)
        }
        for weight in weights:
            _made.setdefault(weight.module, {})[weight.attribute] = of[weight.steps]

    def forget(self, *_: Any) -> None:
        """Drop the computed weights: from now on they are computed when they are read."""
        forget(weight.module for weight in self.weights)


def forget(modules: Iterable[nn.Module]) -> None:
    """Drop the weights that calls have computed for these modules."""
    for module in modules:
        _made.pop(module, None)


def remove_hooks(model: nn.Module) -> None:
    """Remove the hooks of AtOnce from a model; they are searched, because handles could not be copied with it."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(owner := getattr(hook, "__self__", None), AtOnce):
                owner.forget()
                del hooks[key]
                model._forward_hooks_always_called.pop(key, None)


def several_processes() -> bool:
    """Whether this process trains together with others."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and torch.distributed.get_world_size() > 1


def _plain_training() -> bool:
    # DistributedDataParallel would wait for gradients of unused weights, too; the others cannot see inside the node
    return torch.is_grad_enabled() and not (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]: public, says its documentation
        or several_processes()
    )


def _is_plain(weight: Held) -> bool:
    """Whether it still has exactly one step: a copy may have become plain, or another step may have been added."""
    return parametrize.is_parametrized(weight.module, weight.attribute) and len(weight.steps) == 1


def _use_made(kind: type, attribute: str) -> None:
    """Make the parametrised attribute of a class return the weight computed for the call in progress, if there is one.

    Reading it through torch's property costs as much as a small layer: its data has left the cache by then.
    """
    alone = vars(kind)[attribute]

    def read(module: nn.Module) -> Tensor:
        made = None if torch.compiler.is_compiling() else _made.get(module, {}).get(attribute)
        if made and made.versions == (made.original._version, made.values._version):
            # checkpointing reads it again after the call, and must then compute it in the same way
            if _autograd._top_saved_tensors_default_hooks(True) is None:
                return made.weight
        return alone.fget(module)

    setattr(kind, attribute, property(read, alone.fset))
