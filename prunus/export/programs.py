"""Programs that run a model, and how they are timed: side by side, in turns.

Machines are noisy, and slow for seconds at a time. So whatever is compared takes turns, in an order drawn anew each
round, and what is said of one is said relative to another in the same rounds. The time in which the system lets another
program go first does not count: long calls meet that more often than short ones, so shares would be wrong, too. (Linux
alone tells it.) Source: ours.
"""

import copy
import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prunus.errors import PrunusError, UserError
from prunus.graph import skeleton

ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")

Call = Callable[[], object]


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights lie."""
    return next((tensor.device for tensor in skeleton.named_tensors(model).values()), torch.device("cpu"))


def in_torch(model: nn.Module, example: Any) -> Call:
    """`model`, as it is and where it is, run on an example: a tensor, a tuple or a dict of arguments.

    Not in inference mode: sparse matrices cannot multiply in it, and what models cache could not be trained on.
    """
    device = device_of(model)
    example = tree_map_only(Tensor, lambda tensor: tensor.to(device), example)

    def call() -> object:
        with torch.no_grad():
            answer = skeleton.call(model, example)
        synchronize(device)
        return answer

    return call


def missing_for_onnx() -> str:
    """What is not installed of what onnxruntime needs, and how to install it; empty if nothing is missing."""
    absent = [name for name in ONNX_NEEDS if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed; pip install 'prunus[onnx]'" if absent else ""


def exported(model: nn.Module, example: Any, *, free_batch: bool = False) -> torch.export.ExportedProgram:
    """The model as a torch.export program; free_batch: for any number of inputs.

    Raises PrunusError with torch's reason if it cannot be one.
    """
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    args = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    shapes = ({0: torch.export.Dim("batch")},) if free_batch else None
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:  # whatever torch.export stumbles over in the user's code
        reason = str(error).strip().splitlines()[0]
        raise PrunusError(f"torch.export cannot export this model: {reason}") from error


def as_onnx(program: torch.export.ExportedProgram) -> Any:
    """The program as torch.onnx's ONNXProgram. Raises PrunusError with its reason if ONNX cannot express it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        try:
            return torch.onnx.export(program, dynamo=True, verbose=False)
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise PrunusError(f"torch.onnx cannot export this model: {reason}") from error


def session(onnx: bytes, *, profile: str = "") -> Any:
    """onnxruntime's session for a model, on the processor, on as many threads as torch.

    profile: where it writes how long each operator took, a path without its ending.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def in_onnxruntime(model: nn.Module, example: Any) -> Call:
    """`model` exported as it is, for the example's shapes, and run on it by onnxruntime.

    Raises UserError if onnxruntime is not installed, PrunusError if the model cannot be exported.
    """
    if missing := missing_for_onnx():
        raise UserError(f"onnxruntime cannot run here: {missing}.")
    model = model if device_of(model).type == "cpu" else copy.deepcopy(model).cpu()
    example = tree_map_only(Tensor, Tensor.cpu, example)
    onnx = as_onnx(exported(model, example)).model_proto.SerializeToString()
    running = session(onnx)
    leaves = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    names = [each.name for each in running.get_inputs()]
    feed = {name: leaf.detach().numpy() for name, leaf in zip(names, leaves, strict=True)}
    return partial(running.run, None, feed)


PROGRAMS: dict[str, Callable[[nn.Module, Any], Call]] = {
    "torch": in_torch,
    "onnxruntime": in_onnxruntime,
}
