"""Packed models: the module inside of a wrapper, and the packings that hide or change a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from prunus.errors import TraceError, UserError
from prunus.graph.modules import list_modules
from prunus.graph.names import full_name

_COMPILED = "_orig_mod"  # the one child of what torch.compile returns
_TRANSPARENT = "torch.nn.parallel", "torch.optim.swa_utils"  # whose forward pass is that of the module inside
_INSIDE = ["module"], ["_fsdp_wrapped_module"]  # the one child of a wrapper, which its `module` gives
_ONE_BYTE = {
    dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype) and dtype.itemsize == 1
} - {torch.bool}
_PLAIN: Any = torch.Tensor
_QUANTISERS = {"auto_gptq", "gptqmodel", "awq", "aqlm"}  # these pack weights into plain buffers


def unwrap(model: Any) -> Any:
    """Return the module whose forward pass a model's is.

    Args:
        model: A model, perhaps in DistributedDataParallel, DataParallel, torch.compile's or torch's AveragedModel, or
            in several of these.

    Returns:
        The module inside, which has the same parameters under its own names; the model itself if it is in none.
    """
    while isinstance(model, nn.Module):
        names = [name for name, _ in model._modules.items()]  # a scripted module has no dict
        wraps = names == ["module"] and type(model).__module__.startswith(_TRANSPARENT)
        if not wraps and names != [_COMPILED]:
            break
        model = model._modules[names[0]]
    return model


def plain_model(model: Any) -> nn.Module:
    """Return the module inside of a model, checked: its weights can be read and its forward pass observed.

    Args:
        model: What the user gave; see `unwrap`.

    Returns:
        The module inside.

    Raises:
        TraceError: A parameter has no shape yet.
        UserError: It is no nn.Module, or is scripted, quantised, sharded, offloaded or wrapped in parts; the message
            says what to give instead.
    """
    model = unwrap(model)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"expected the model, an nn.Module, but got a {type(model).__name__}; pass the model itself."
        )
    for path, module in list_modules(model):
        what = path or f"this {type(module).__name__}"
        _check_module(module, path, what)
        for name, tensor in (module._parameters | module._buffers).items():
            if tensor is not None:
                name = full_name(path, name)
                _check_tensor(tensor, name)
                if tensor.is_meta and any(hook.offload for hook in _hooks_of_accelerate(module)):
                    raise UserError(
                        f"{name} is not in the model: accelerate has offloaded it (cpu_offload, disk_offload, a "
                        "device_map) and loads it when it is used. Bring the weights back with "
                        "accelerate.hooks.remove_hook_from_module(model, recurse=True), prune, and offload the small "
                        "one."
                    )
    return model


def whole_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gather tensors that are spread over processes (by fully_shard); a call in which all processes take part.

    Args:
        tensors: name -> tensor.

    Returns:
        {name: the whole tensor}; others as they are.
    """
    return {name: _full(tensor) if _is_sharded(tensor) else tensor for name, tensor in tensors.items()}


def _full(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor()


def _is_sharded(tensor: Any) -> bool:
    """Whether a tensor is one of torch.distributed.tensor, which is not imported for those who never shard."""
    return type(tensor).__name__ == "DTensor"


def _check_module(module: nn.Module, path: str, what: str) -> None:
    """Raise UserError if a module is another program's packing."""
    home = type(module).__module__
    if _COMPILED in module._modules:
        raise UserError(
            f"{what} went through torch.compile; give the model as it was before (model.{path}.{_COMPILED} in its "
            "place), and compile the small one."
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError(
            f"{what} is a scripted module (torch.jit), whose operators cannot be observed; give the Python model "
            "that it was made from, and script the small one."
        )
    if (home.startswith("torch.") and ".quantized" in home) or home.partition(".")[0] in _QUANTISERS:
        raise UserError(_quantised(what, type(module).__name__))
    if home.startswith("torch.distributed") and list(module._modules) in _INSIDE:
        inner = full_name(path, "module")
        raise UserError(
            f"{what} is wrapped in {type(module).__name__}, which may spread its weights over processes; give the "
            f"module inside it (model.{inner}) with its weights whole, and wrap the small one."
        )


def _check_tensor(tensor: torch.Tensor, name: str) -> None:
    """Raise an error if a parameter or buffer has no shape, is sharded, or is packed."""
    if torch.nn.parameter.is_lazy(tensor):
        raise TraceError(f"{name} has no shape yet; run the model once on real inputs, then trace it.")
    kind: Any = type(tensor)
    if _is_sharded(tensor):
        raise UserError(
            f"{name} is spread over several processes (a DTensor, by fully_shard or tensor parallelism). Prune the "
            "model before it is sharded, or load its gathered weights (torch.distributed.checkpoint.state_dict."
            "get_model_state_dict with full_state_dict=True) into a plain one; then shard the small one."
        )
    packs = kind.__torch_dispatch__ is not _PLAIN.__torch_dispatch__  # as those of torchao and quanto do
    if packs and not kind.__module__.startswith("torch."):
        raise UserError(_quantised(name, kind.__name__))
    if isinstance(tensor, nn.Parameter) and tensor.dtype in _ONE_BYTE:  # as those of bitsandbytes are
        raise UserError(_quantised(name, str(tensor.dtype)))


def _quantised(what: str, kind: str) -> str:
    return (
        f"{what} is quantised ({kind}): its weights are packed. Prune the model in floating point, then quantise the "
        "small one."
    )


def _hooks_of_accelerate(module: nn.Module) -> Iterator[Any]:
    """The hooks of a module that may move its weights to where it computes."""
    waiting = [vars(module).get("_hf_hook")]
    while waiting:
        hook = waiting.pop()
        waiting += getattr(hook, "hooks", ())  # of one that runs several
        if "offload" in getattr(hook, "__dict__", ()):
            yield hook
