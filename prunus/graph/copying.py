"""Deep copies of models: what cannot be copied is refused, and functions that a model holds act on its copy.

A hook, a partial or a forward that was set on the object may reach the model through its arguments or the variables
that it closes over. In a copy these are the copy's own modules.
"""

from __future__ import annotations

import copy
import sys
import sysconfig
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from prunus.errors import UserError
from prunus.graph.modules import list_modules


def copy_model(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a model deeply, with the objects whose id is in `memo` replaced by its values.

    Raises UserError naming the attribute if one cannot be copied.
    """
    with _Detached():
        return _Copier(model, memo).module(model)


class _Detached(TorchFunctionMode):
    """Lets copy.deepcopy copy tensors that autograd made (a kept activation) without their history."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


_ATOMIC = (int, float, bool, str, type(None), type)
_OWN_WAY = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__")
_CALLABLE = (FunctionType, MethodType, partial)
_CONTAINERS = (dict, OrderedDict, list, tuple)
_COMPILED = "_compiled_call_impl"  # set by model.compile(): calls the model that it was compiled for


@lru_cache(maxsize=256)
def _copies_itself(kind: type[nn.Module]) -> bool:
    """Whether a class of modules has a way of its own to be copied."""
    return any(getattr(kind, way, None) is not getattr(nn.Module, way, None) for way in _OWN_WAY)


class _Copier:
    """Copies like copy.deepcopy, but without its detour over pickling for each module's many empty dicts.

    copy.deepcopy shares functions; here those that reach the model are made anew for the copy.
    """

    def __init__(self, model: nn.Module, memo: dict[int, Any]):
        self.memo = memo
        self.own = {id(module): module for _, module in list_modules(model)}.keys() | memo.keys()

    def module(self, module: nn.Module) -> nn.Module:
        if id(module) in self.memo:
            return self.memo[id(module)]
        kind = type(module)
        if _copies_itself(kind):
            return self._attempt(module, "", module)  # by its own way
        new = self.memo[id(module)] = kind.__new__(kind)
        for name, value in vars(module).items():
            if name == _COMPILED:
                continue
            if name == "_modules":
                value = {n: child if child is None else self.module(child) for n, child in value.items()}
            elif isinstance(value, (dict, set, list)) and not value:
                value = self.memo.setdefault(id(value), type(value)())  # a handle may point to it
            elif not isinstance(value, _ATOMIC) and not _is_plain(value):
                if name == "forward":
                    self._check_forward(module, value)
                value = self._attempt(module, name, value)
            new.__dict__[name] = value
        return new

    def _attempt(self, module: nn.Module, name: str, value: Any) -> Any:
        """Copy an attribute of a module, or name it in the error."""
        try:
            return self.value(value) if name else copy.deepcopy(module, self.memo)
        except UserError:
            raise
        except Exception as error:  # any error that an attribute's __deepcopy__ raises
            what = f"its attribute {name!r}, a {type(value).__name__}," if name else "it"
            raise UserError(
                f"this {type(module).__name__} cannot be copied: {what} refuses ({type(error).__name__}: {error}). "
                "Remove it for the time of the call (a lock, an open file, an iterator), or give its class a "
                "__deepcopy__."
            ) from error

    def value(self, value: Any) -> Any:
        """The copy of any value."""
        if id(value) in self.memo:
            return self.memo[id(value)]
        if isinstance(value, nn.Module) and id(value) in self.own:
            return self.module(value)
        if isinstance(value, RemovableHandle):
            return self._handle(value)
        if isinstance(value, _CALLABLE) or type(value) in _CONTAINERS:
            return self._rebuilt(value) if self.reaches(value) else copy.deepcopy(value, self.memo)
        return copy.deepcopy(value, self.memo)

    def reaches(self, value: Any) -> bool:
        """Whether functions or containers in `value` hold a module, a tensor or the handle of a hook of the model."""
        return any(id(part) in self.own or isinstance(part, RemovableHandle) for part in _parts(value))

    def _rebuilt(self, value: Any) -> Any:
        new: Any
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            new = MethodType(self.value(value.__func__), self.value(value.__self__))
        elif isinstance(value, partial):
            keywords = {name: self.value(item) for name, item in value.keywords.items()}
            new = partial(self.value(value.func), *map(self.value, value.args), **keywords)
            new.__dict__.update({name: self.value(item) for name, item in vars(value).items()})
        elif isinstance(value, tuple):
            new = tuple(map(self.value, value))
        elif isinstance(value, list):
            new = self.memo[id(value)] = []
            new += map(self.value, value)
        else:
            new = self.memo[id(value)] = type(value)()
            new.update({self.value(key): self.value(item) for key, item in value.items()})
        return self.memo.setdefault(id(value), new)

    def _function(self, function: FunctionType) -> Any:
        plain = getattr(function, "_torchdynamo_orig_callable", None)
        if plain is not None:  # compiled, for the model that it closes over
            return self.value(plain)
        cells = function.__closure__ or ()
        new_cells = tuple(self.memo.setdefault(id(cell), CellType()) for cell in cells)
        new = FunctionType(
            function.__code__, function.__globals__, function.__name__, closure=new_cells or None
        )
        self.memo[id(function)] = new
        new.__module__, new.__qualname__ = function.__module__, function.__qualname__
        new.__defaults__ = self._shared(function.__defaults__)
        new.__kwdefaults__ = self._shared(function.__kwdefaults__)
        new.__dict__.update({name: self._shared(item) for name, item in vars(function).items()})
        for cell, new_cell in zip(cells, new_cells, strict=True):
            content = _content(cell)
            if content is not _EMPTY:
                new_cell.cell_contents = self._shared(content)
        return new

    def _handle(self, handle: RemovableHandle) -> RemovableHandle:
        """The handle of the copy's hook: it removes that one, not the original's."""
        new = self.memo[id(handle)] = RemovableHandle.__new__(RemovableHandle)
        new.id, new.hooks_dict_ref = handle.id, self._weak(handle.hooks_dict_ref)
        new.extra_dict_ref = tuple(map(self._weak, handle.extra_dict_ref))
        return new

    def _weak(self, reference: Any) -> Any:
        """A reference to the copy of what is referred to, which the memo keeps until its module holds it."""
        hooks = reference()
        return reference if hooks is None else weakref.ref(self.value(hooks))

    def _shared(self, value: Any) -> Any:
        """The copy of something that a function holds, if it reaches the model; otherwise the same object."""
        return self.value(value) if self.reaches(value) else value

    def _check_forward(self, module: nn.Module, forward: Any) -> None:
        """Raise UserError if a forward set on the object finds the model where a copy cannot be put in its place."""
        for function in _parts(forward):
            if isinstance(function, FunctionType):
                for place, found in _out_of_reach(function):
                    if isinstance(found, nn.Module) and id(found) in self.own:
                        raise UserError(
                            f"the forward of this {type(module).__name__} was replaced on the object by "
                            f"{function.__qualname__}, which finds the model in {place}, so that it would always run "
                            "the original. Let it take the model as an argument: "
                            f"model.forward = functools.partial({function.__name__}, model)."
                        )


def _is_plain(value: Any) -> bool:
    """Whether a value is a tuple of numbers and words (a stride), which copies can share."""
    return type(value) is tuple and all(isinstance(part, _ATOMIC) for part in value)


_EMPTY = object()


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return _EMPTY


def _out_of_reach(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The objects that a function finds where no copy can be put in their place, each with words for the place."""
    for name in _names(function.__code__):
        yield f"the global variable {name}", function.__globals__.get(name)
    for part in map(_content, function.__closure__ or ()):
        if not isinstance(part, (nn.Module, type, *_CALLABLE)):
            for name, found in getattr(part, "__dict__", {}).items():
                yield f"the attribute {name} of a {type(part).__name__} that it closes over", found


def _names(code: CodeType) -> Iterator[str]:
    """The global names that a function reads, with those of the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _parts(value: Any) -> list[Any]:
    """A value, and what is in it if it is a function or a container, however deep."""
    found, seen, waiting = [], set(), [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, _ATOMIC) or id(part) in seen:
            continue
        seen.add(id(part))
        found.append(part)
        if isinstance(part, FunctionType):
            waiting += [_content(cell) for cell in part.__closure__ or ()]
            waiting += [part.__defaults__, part.__kwdefaults__, vars(part)]
        elif isinstance(part, MethodType):
            waiting += [part.__func__, part.__self__]
        elif isinstance(part, partial):
            waiting += [part.func, part.args, part.keywords, vars(part)]
        elif isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, (list, tuple, set)):
            waiting += part
    return found


# ------------------------------------------------------------------------------------------ hooks
def remove_foreign_hooks(model: nn.Module) -> None:
    """Remove, in place, the forward hooks that do not belong to a model.

    A hook belongs to the model if it comes from the same installed library as one of the model's classes (it collects
    the hidden states that the forward returns, say). The others are the user's, and may expect data. Those of torch,
    whose classes are in every model, are tools (counters, observers), and so are ours.
    """
    libraries = {_library(type(module).__module__) for _, module in list_modules(model)} - {
        "",
        "torch",
        "prunus",
    }
    for _, module in list_modules(model):
        for key, hook in list(module._forward_hooks.items()):
            if _library(_origin(hook)) not in libraries:
                del module._forward_hooks[key]
                module._forward_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_always_called.pop(key, None)


def _origin(hook: Any) -> str:
    """The name of the Python module that a hook was written in."""
    while isinstance(hook, partial):
        hook = hook.func
    return getattr(hook, "__module__", None) or type(hook).__module__


@lru_cache(maxsize=256)
def _library(module: str) -> str:
    """The top-level package of a Python module if it is installed, otherwise "": it is the user's own code."""
    package = module.partition(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None)
    installed = [Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")]
    return package if file and any(Path(file).is_relative_to(place) for place in installed) else ""
