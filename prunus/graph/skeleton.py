"""Skeletons: models whose tensors have shapes but no data, and how to run them.

A skeleton is a copy of a model on torch's meta device: nothing is computed and no weight is copied. Integer
tensors, and what is made from them alone, stay real, so that masks, indices and Python control flow just work;
where real and abstract tensors meet, the result is abstract.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only

from prunus.graph import op, operators
from prunus.graph.copying import copy_model, remove_foreign_hooks
from prunus.graph.modules import list_modules
from prunus.graph.names import full_name
from prunus.graph.op import put_tag, tag_of
from prunus.graph.operators import SHAPE_KEEPING, Args, Kwargs
from prunus.graph.outputs import quiet_config
from prunus.graph.turns import one_at_a_time

OWN_NAMES: Mapping[str, str] = MappingProxyType(
    {}
)  # each tensor is known by the name that it has in its model


def make_skeleton(model: nn.Module, real: bool = False) -> nn.Module:
    """Copy a model without its data: in evaluation mode, without hooks of others, parametrisations resolved.

    No caches of keys and values are returned by it.

    Args:
        model: The model, which is left untouched.
        real: Share the parameters' data and copy the buffers', for models that the meta device cannot run.

    Returns:
        The copy, of the same class; unless `real`, its floating-point and complex tensors are on the meta device.

    Raises:
        UserError: An attribute of the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in named_tensors(model).values():
        data = tensor.detach()
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(data if real else data.to("meta"), requires_grad=False)
        else:
            memo[id(tensor)] = data.to("meta") if op.is_inexact(data) and not real else data.clone()
    bare = copy_model(model, memo).eval()
    quiet_config(bare)
    resolved: dict[nn.Module, nn.Parameter] = {}
    remove_foreign_hooks(bare)
    for _, module in list_modules(bare):
        if parametrize.is_parametrized(module):
            resolve_parametrisations(module, resolved)
    return bare


def resolve_parametrisations(module: nn.Module, resolved: dict[nn.Module, nn.Parameter]) -> None:
    """Replace a module's parametrisations by the tensors that they compute.

    torch's own remove_parametrizations would change the class, which the copy shares with the user's module.

    resolved: results by parametrisation, added to; modules that share one (tied weights) share its result.
    """
    values: dict[str, nn.Parameter] = {}
    parametrizations: Any = module.parametrizations  # a ModuleDict
    for name, steps in parametrizations.items():
        if steps not in resolved:
            with SameDevice():  # a mask is real, what it masks is not
                resolved[steps] = nn.Parameter(getattr(module, name).detach(), requires_grad=False)
        values[name] = resolved[steps]
    plain = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = plain
    for name, value in values.items():
        module.register_parameter(name, value)


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name the parameters and buffers of a model, each once.

    Args:
        model: The model.

    Returns:
        The tensors themselves by name, parameters first; tied ones under their first name.
    """
    parameters: dict[str, torch.Tensor] = {}
    buffers: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for prefix, module in list_modules(model):
        for held, found in ((module._parameters, parameters), (module._buffers, buffers)):
            for name, tensor in held.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[full_name(prefix, name)] = tensor
    return parameters | buffers


_NO_GRADIENTS = "None of the inputs have requires_grad=True"  # torch.utils.checkpoint, if it is reentrant


@contextmanager
def quiet_forward() -> Iterator[None]:
    """Turn off gradients, and what torch has in the place of some operators, which would hide them.

    That is the fused kernels of transformers, and the batch norm of an empty batch (a detector that finds nothing).
    Checkpointing does not warn of inputs without gradients.

    Other threads that ask for the same wait.

    Returns:
        A context manager, after which torch is as it was.
    """
    with one_at_a_time():
        fast, batch_norm = torch.backends.mha.get_fastpath_enabled(), torch.batch_norm
        torch.backends.mha.set_fastpath_enabled(False)
        torch.batch_norm = _batch_norm_or_of_nothing(batch_norm)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", _NO_GRADIENTS)
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            torch.batch_norm = batch_norm


def _batch_norm_or_of_nothing(batch_norm: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """torch's batch norm, but for an empty batch its operator, whose kept statistics then stay as they are."""

    def run(x: torch.Tensor, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> torch.Tensor:
        if x.numel() or mean is None or var is None:
            return batch_norm(x, weight, bias, mean, var, *rest)
        _, momentum, eps, _ = rest
        return torch.native_batch_norm(x, weight, bias, mean, var, False, momentum, eps)[0]

    return run


@contextmanager
def seeded(device: torch.device | None = None) -> Iterator[None]:
    """Let the random numbers of torch, Python and numpy be the same at every entry, and go on as before afterwards.

    Args:
        device: The device on which random numbers are drawn, if not only the CPU.

    Returns:
        A context manager.
    """
    state, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (models draw from this one)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(of_numpy)  # noqa: NPY002


def same_device(args: Args, kwargs: Kwargs, indices: bool = True) -> tuple[Args, Kwargs]:
    """The same arguments, all of their tensors abstract if any is; otherwise results stay real.

    indices: whether integers become abstract too.
    """
    tensors = op.tensors_in(args) + op.tensors_in(kwargs.values())
    abstract = [t.is_meta for t in tensors]
    if any(abstract):
        if not all(abstract):

            def change(tensor: torch.Tensor) -> torch.Tensor:
                counts = not (op.is_inexact(tensor) or tensor.dtype == torch.bool)
                return tensor if counts and not indices else _to_meta(tensor)

            args, kwargs = tree_map_only(torch.Tensor, change, (args, kwargs))
    elif torch.device(kwargs.get("device") or "cpu").type == "meta":
        kwargs = {**kwargs, "device": "cpu"}
    return args, kwargs


_PACK, _INDEX = torch.ops.aten._pack_padded_sequence.default, torch.ops.aten.index.Tensor
_GROUPED = torch.ops.aten._grouped_mm.default
_CONVOLUTION, _MEAN = torch.ops.aten.convolution.default, torch.ops.aten.mean.dim
_ADDMM = torch.ops.aten.addmm.default
_PRODUCTS = {_ADDMM, torch.ops.aten.mm.default, torch.ops.aten.bmm.default}
_BATCH_NORM, _LAYER_NORM = torch.ops.aten.native_batch_norm.default, torch.ops.aten.native_layer_norm.default


@cache
def _keeps_shape(func: Any) -> bool:
    """Whether an operator of torch's own keeps the shape of its first argument if no other is larger."""
    return func.namespace == "aten" and operators.is_a(func, SHAPE_KEEPING)


def compute(func: Any, args: Sequence[Any], kwargs: Kwargs) -> Any:
    """Run an operator; of abstract tensors only the shape is computed.

    For the most common operators that is done here, because their meta kernels, written in Python, would take
    most of the time of a trace.
    """
    first = args[0] if args else None
    if not isinstance(first, torch.Tensor) or not first.is_meta or not first.is_floating_point():
        return func(*args, **kwargs)
    if _keeps_shape(func):
        if all(_broadcasts_to(other, first) for other in args[1:] if isinstance(other, torch.Tensor)):
            return first if operators.name_of(func).endswith("_") else _empty_like(first)
    elif func in _PRODUCTS:
        *_, a, b = args[: 3 if func is _ADDMM else 2]
        if (
            a.shape[-1] == b.shape[-2]
            and a.shape[:-2] == b.shape[:-2]
            and (func is not _ADDMM or first.dim() == 1)
        ):
            return first.new_empty((*a.shape[:-1], b.shape[-1]))
    elif func is _MEAN and len(args) > 2 and isinstance(args[1], (list, tuple)):
        _, dims, keep, *_ = args
        over = {d % first.dim() for d in dims}
        kept = [1 if d in over else n for d, n in enumerate(first.shape)]
        return first.new_empty(kept if keep else [n for d, n in enumerate(kept) if d not in over])
    elif func is _PACK:  # the lengths say how long the result is
        x, lengths, batch_first = args
        return func(x, _real(lengths), batch_first)
    elif func is _INDEX:  # masks say how many numbers they take
        x, indices = args
        return func(x, [place for index in indices for place in _places(index)])
    elif func is _GROUPED and first.dim() == 2 and args[1].dim() == 3:  # torch's takes bfloat16 alone
        return first.new_empty(first.shape[0], args[1].shape[2])
    elif func is _CONVOLUTION:
        x, w, _, stride, padding, dilation, transposed, _, groups = args
        whole = len(stride) == len(padding) == len(dilation) == x.dim() - 2
        if whole and not transposed and x.shape[1] == w.shape[1] * groups:
            sizes = zip(x.shape[2:], w.shape[2:], stride, padding, dilation, strict=True)
            space = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
            return x.new_empty((x.shape[0], w.shape[0], *space))
    elif func is _BATCH_NORM:
        if all(t is None or t.shape == first.shape[1:2] for t in args[1:5]):
            return _empty_like(first), None, None
    elif func is _LAYER_NORM and list(first.shape[-len(args[1]) :]) == list(args[1]):
        if all(t is None or list(t.shape) == list(args[1]) for t in args[2:4]):
            return _empty_like(first), None, None
    return func(*args, **kwargs)


def _empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """Like torch.empty_like, which is slow on the meta device."""
    if tensor.is_contiguous():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor)


def _broadcasts_to(tensor: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether the result of an elementwise operator on both has the shape and type of `target`."""
    shape = tensor.shape
    fits = tensor.dim() <= target.dim() and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(target.shape), strict=False)
    )
    return fits and tensor.dtype == target.dtype


class SameDevice(TorchFunctionMode):
    """Applies `same_device` to functions that compare devices themselves (attention with a real mask).

    Integers stay real, because some of these functions read them (the lengths of packed sequences).
    """

    def __torch_function__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        args, kwargs = same_device(args, kwargs or {}, indices=False)
        return func(*args, **kwargs)


def mixes_devices(bare: nn.Module, example: Any) -> bool:
    """Whether real tensors may meet abstract ones: integer inputs, and the first state of recurrent layers."""
    inputs = [t for t in tree_flatten(example)[0] if isinstance(t, torch.Tensor)]
    recurrent = (nn.RNNBase, nn.RNNCellBase)
    return any(not op.is_inexact(t) for t in inputs) or any(
        isinstance(module, recurrent) for _, module in list_modules(bare)
    )


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """The real tensor from which an abstract one was made; the tensor itself if it was made from none."""
    return getattr(tensor, "_prunus_real", tensor)


def _places(index: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
    """The indices that an index of a tensor stands for: for a real mask, the places at which it is true."""
    if index is None or index.dtype != torch.bool or _real(index).is_meta:
        return [index]
    return [each.to("meta") for each in _real(index).nonzero(as_tuple=True)]


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta:
        return tensor
    with _disable_current_modes():  # a tracer would keep it real
        meta: Any = tensor.to("meta")
    meta._prunus_real = tensor
    tag = tag_of(tensor)
    if tag is not None:
        put_tag(meta, tag)
    return meta
