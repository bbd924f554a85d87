"""All gated weights of a model, made at once before its first layer runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.autograd.forward_ad
from torch import Tensor, nn
from torch._C import _autograd  # pyright: ignore[reportAttributeAccessIssue]: torch has no annotations for it
from torch.nn.utils import parametrize

from prunus.gates.product import gated
from prunus.surgery import Held


class _Made(NamedTuple):
    """A weight that was made for a call, and of what; versions count what is done to tensors in place."""

    weight: Tensor
    original: Tensor
    values: Tensor
    versions: tuple[int, int]


_made: WeakKeyDictionary[nn.Module, dict[str, _Made]] = WeakKeyDictionary()  # of the calls that are under way


class AtOnce:
    """The hooks by which a model makes its gated weights all at once when it is called.

    gates: a module whose `values` are the gates (N,). weights: behind each stands nothing but a step with `places`.
    """

    def __init__(self, model: nn.Module, gates: nn.Module, weights: Sequence[Held]):
        self.gates, self.weights = gates, list(weights)
        for weight in weights:
            _read_made(type(weight.module), weight.attribute)
        model.register_forward_pre_hook(self.make)
        model.register_forward_hook(self.forget, always_call=True)

    def make(self, *_: Any) -> None:
        """Make the weights."""
        self.forget()  # what a call that was interrupted has left
        weights = [weight for weight in self.weights if _is_plain(weight)]
        if not weights or not _plain_training():
            return
        values = cast(Tensor, self.gates.values)
        once = list(dict.fromkeys(weight.steps for weight in weights))  # tied weights are in several places
        made = gated(values, [steps.original for steps in once], [steps[0].places for steps in once])
        of = {
            steps: _Made(weight, steps.original, values, (steps.original._version, values._version))
            for steps, weight in zip(once, made, strict=True)
        }
        for weight in weights:
            _made.setdefault(weight.module, {})[weight.attribute] = of[weight.steps]

    def forget(self, *_: Any) -> None:
        """From here on weights are made where they are read."""
        forget(weight.module for weight in self.weights)


def forget(modules: Iterable[nn.Module]) -> None:
    """Let go of what calls have made of these modules' weights."""
    for module in modules:
        _made.pop(module, None)


def leave(model: nn.Module) -> None:
    """Take the hooks of AtOnce off a model; handles to them could not be copied with it."""
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
    # A wrapper of several processes would wait for the gradients of idle weights, too; the others cannot look inside.
    return torch.is_grad_enabled() and not (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]: public, says its documentation
        or several_processes()
    )


def _is_plain(weight: Held) -> bool:
    """Whether one step stands behind it still: a copy may have been made plain, another step have been added."""
    return parametrize.is_parametrized(weight.module, weight.attribute) and len(weight.steps) == 1


def _read_made(kind: type, attribute: str) -> None:
    """Let the parametrised attribute of a class be what was made for the call under way, if something was.

    torch's way to it would take as long as a small layer, for what it touches is out of the cache between layers.
    """
    alone = vars(kind)[attribute]

    def read(module: nn.Module) -> Tensor:
        made = None if torch.compiler.is_compiling() else _made.get(module, {}).get(attribute)
        if made and made.versions == (made.original._version, made.values._version):
            # a checkpoint will read it again after the call, and has to find the same way to it
            if _autograd._top_saved_tensors_default_hooks(True) is None:
                return made.weight
        return alone.fget(module)

    setattr(kind, attribute, property(read, alone.fset))
