"""The calls of modules in a forward pass: what each was given and returned, and the operations between.

They are recorded by hooks, as are the names of the modules that are running.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        inputs: The tags of its arguments that are tensors.
    """

    __slots__ = ("inputs", "name", "outputs", "start", "stop")

    def __init__(self, name: str, start: int, inputs: dict[Argument, Tag]):
        self.name, self.start, self.inputs = name, start, inputs
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
            given: Mapping[Argument, Any] = {**dict(enumerate(args)), **kwargs}
            tags = {place: tag for place, value in given.items() if (tag := _tag(value)) is not None}
            self._open.append(Call(name, len(self.ops), tags))

        return hook

    def _leave(self, module: nn.Module, args: Args, output: Any) -> None:
        self.stack.pop()
        call = self._open.pop()
        call.stop = len(self.ops)
        if isinstance(output, torch.Tensor):
            call.outputs = _tag(output)
        elif type(output) is tuple and all(each is None or _tag(each) is not None for each in output):
            call.outputs = [_tag(each) for each in output]
        self.calls.append(call)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def _tag(value: Any) -> Tag | None:
    return tag_of(value) if isinstance(value, torch.Tensor) else None


def shared_names(model: nn.Module) -> list[list[str]]:
    """List the names of modules, parameters and buffers that have several, which are tied.

    Args:
        model: Any model.

    Returns:
        For each such module or tensor all of its names.
    """
    found: dict[int, list[str]] = {}
    named = [
        *model.named_modules(remove_duplicate=False),
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, each in named:
        found.setdefault(id(each), []).append(name)
    return [names for names in found.values() if len(names) > 1]
