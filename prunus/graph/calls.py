"""The calls of modules in a forward pass: what each was given and returned, and the operations between.

They are recorded by hooks, as are the names of the modules that are running.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn

from prunus.graph.modules import list_modules
from prunus.graph.op import Op, Tag, tag_of
from prunus.graph.operators import Args, Kwargs

Argument = int | str  # of a call: its position, or its keyword


class Call:
    """One call of a module.

    Args:
        name: The name of the module.
        start: The number of the first operation within it.
    """

    __slots__ = ("inputs", "name", "outputs", "start", "stop")

    def __init__(self, name: str, start: int):
        self.name, self.start = name, start
        self.inputs: dict[Argument, Tag] = {}  # the tags of its arguments that are tensors
        self.stop = start  # the number of the first operation after it
        self.outputs: Tag | list[Tag | None] | None = None  # of a tensor, a tuple; None: neither of them


class Modules:
    """The names of the modules that are running, outermost first, and their calls, kept by hooks on a skeleton.

    Args:
        model: The skeleton.
    """

    def __init__(self, model: nn.Module):
        self.stack: list[str] = [""]
        self.ops: list[Op] = []  # the operations so far, which the pass adds
        self.calls: list[Call] = []  # in the order of their ends
        self._open: list[Call] = []
        self._handles: list[Any] = []
        for name, module in list_modules(model):
            if name:
                self._handles += [
                    module.register_forward_pre_hook(self._enter(name), with_kwargs=True),
                    module.register_forward_hook(self._leave, always_call=True),
                ]

    def _enter(self, name: str) -> Callable[[nn.Module, Args, Kwargs], None]:
        def hook(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            self.stack.append(name)
            call = Call(name, len(self.ops))
            for place, value in chain(enumerate(args), kwargs.items()):
                if isinstance(value, torch.Tensor) and (tag := tag_of(value)) is not None:
                    call.inputs[place] = tag
            self._open.append(call)

        return hook

    def _leave(self, module: nn.Module, args: Args, output: Any) -> None:
        self.stack.pop()
        call = self._open.pop()
        call.stop = len(self.ops)
        if isinstance(output, torch.Tensor):
            call.outputs = _tag(output)
        elif type(output) is tuple:
            tags = [_tag(each) for each in output]
            if all(tag is not None or each is None for tag, each in zip(tags, output, strict=True)):
                call.outputs = tags
        self.calls.append(call)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def _tag(value: Any) -> Tag | None:
    return tag_of(value) if isinstance(value, torch.Tensor) else None


def given_argument(place: Argument, args: Args, kwargs: Kwargs) -> Any:
    """Look up one argument of a call.

    Args:
        place: Its position or its keyword.
        args: The arguments that the call was given by position.
        kwargs: Those that it was given by keyword.

    Returns:
        What the call was given there.
    """
    return args[place] if isinstance(place, int) else kwargs[place]


def shared_names(model: nn.Module) -> list[list[str]]:
    """List the names of modules, parameters and buffers that have several, which are tied.

    Args:
        model: Any model.

    Returns:
        For each such module or tensor all of its names.
    """
    found: dict[int, list[str]] = {}
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        name, module = waiting.pop()
        found.setdefault(id(module), []).append(name)
        prefix = f"{name}." if name else ""
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append(prefix + key)
        for key, inner in reversed(module._modules.items()):
            if inner is not None:
                waiting.append((prefix + key, inner))
    return [names for names in found.values() if len(names) > 1]
