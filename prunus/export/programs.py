"""Programs that run a model, torch and onnxruntime, and the conversion of a model to torch.export and ONNX."""

import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from prunus.errors import PrunusError, UserError, one_line
from prunus.graph import evaluation_mode, named_tensors
from prunus.inputs import call, in_words, move, tensors_in

ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")

Call = Callable[[], object]  # runs a model once on its example


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has finished its queue."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's weights."""
    return next((tensor.device for tensor in named_tensors(model).values()), torch.device("cpu"))


def prepare_torch(model: nn.Module, example: Any) -> Call:
    """Prepare to run `model` on its device, on an example: a tensor, a tuple or a dict of arguments.

    Gradients are off, but not by inference mode: sparse matrices cannot multiply in it, and tensors that the model
    caches could not be trained on later.
    """
    device = device_of(model)
    example = move(example, device)

    def run() -> object:
        with torch.no_grad():
            output = call(model, example)
        synchronize(device)
        return output

    return run


def missing_for_onnx() -> str:
    """Say which packages are missing for ONNX, and how to install them.

    Returns:
        Words for a message; empty if nothing is missing.
    """
    return missing_of("onnx", ONNX_NEEDS)


def missing_of(extra: str, packages: Sequence[str]) -> str:
    """Say which packages of an extra of Prunus are missing; see `missing_for_onnx`."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed; pip install 'prunus[{extra}]'" if absent else ""


@contextmanager
def quietly() -> Iterator[None]:
    """Silence what exporters warn of and log about themselves: deprecations, and advice on what was done."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def export_program(
    model: nn.Module, example: Any, *, free_dims: Sequence[int] = ()
) -> torch.export.ExportedProgram:
    """Export a model by torch.export.

    Args:
        model: The model.
        example: Its input: a tensor, a tuple or a dict of arguments.
        free_dims: The dimensions of all inputs that the program leaves free, such as 0, the batch; of tensors with
            fewer dimensions those that they have.

    Returns:
        The program.

    Raises:
        PrunusError: torch cannot export the model; the message holds torch's reason.
    """
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    args = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    dims = {dim: torch.export.Dim("batch") if dim == 0 else torch.export.Dim.DYNAMIC for dim in free_dims}
    shapes = tree_map(lambda leaf: _of_tensor(leaf, dims), kwargs or args) if free_dims else None
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:  # torch.export may raise anything for the user's code
        reason = str(error).strip().splitlines()[0]
        raise PrunusError(f"torch.export cannot export this model: {reason}") from error


def _of_tensor(leaf: Any, dims: dict[int, Any]) -> dict[int, Any] | None:
    """The free dimensions that an argument has."""
    return {dim: free for dim, free in dims.items() if dim < leaf.dim()} if isinstance(leaf, Tensor) else None


def feed_of(session: Any, inputs: Any) -> dict[str, Any]:
    """Return what an onnxruntime session is fed with for inputs: by their own names if it has these, or in order."""
    names = [each.name for each in session.get_inputs()]
    if isinstance(inputs, dict) and inputs.keys() == {*names}:
        inputs = [inputs[name] for name in names]
    return {name: leaf.detach().numpy() for name, leaf in zip(names, tensors_in(inputs), strict=True)}


def to_onnx(program: torch.export.ExportedProgram) -> Any:
    """Convert a program to ONNX.

    Args:
        program: A program of torch.export.

    Returns:
        torch.onnx's ONNXProgram.

    Raises:
        PrunusError: ONNX cannot express the program; the message holds torch's reason.
    """
    with quietly():
        try:
            return torch.onnx.export(program, dynamo=True, verbose=False)
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise PrunusError(f"torch.onnx cannot export this model: {reason}") from error


def open_session(onnx: bytes, *, profile: str = "") -> Any:
    """Open an onnxruntime session on the processor, with as many threads as torch.

    Args:
        onnx: A model in ONNX.
        profile: The path, without its ending, to which to write how long each operator took; empty: not written.

    Returns:
        onnxruntime's InferenceSession.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


class OnnxModel(nn.Module):
    """A model whose answers onnxruntime computes, in the form of those of the model that the file was made of.

    A copy of it is one of that model, in floating point: tasks measure how far a network sees by copies in double
    precision.

    Args:
        onnx: The model in ONNX.
        model: The model that it was made of, on the processor.
        example: One input.
    """

    def __init__(self, onnx: bytes, model: nn.Module, example: Any):
        super().__init__()
        self._session = open_session(onnx)
        self._model = (model,)  # a tuple, so that it is not a part of this one
        with torch.no_grad(), evaluation_mode(model):
            self._leaves, self._form = tree_flatten(call(model, example))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a batch on the processor.

        Raises:
            PrunusError: The file does not take such inputs.
        """
        inputs = kwargs or args  # see inputs.call
        try:
            answers = iter(self._session.run(None, feed_of(self._session, inputs)))
        except Exception as error:  # onnxruntime's own exceptions derive from no common one
            names = ", ".join(each.name for each in self._session.get_inputs())
            raise PrunusError(
                f"the file takes {names}, and refuses {in_words(inputs)} ({one_line(error)})."
            ) from error
        return tree_unflatten(
            [torch.from_numpy(next(answers)) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves],
            self._form,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """Copy the model that the file was made of."""
        return copy.deepcopy(self._model[0], memo)


def prepare_onnxruntime(model: nn.Module, example: Any) -> Call:
    """Prepare to run `model` on an example in onnxruntime, exported for the example's shapes.

    Raises UserError if onnxruntime is not installed, PrunusError if the model cannot be exported.
    """
    if missing := missing_for_onnx():
        raise UserError(f"onnxruntime cannot run here: {missing}.")
    model = model if device_of(model).type == "cpu" else copy.deepcopy(model).cpu()
    example = move(example, torch.device("cpu"))
    onnx = to_onnx(export_program(model, example)).model_proto.SerializeToString()
    session = open_session(onnx)
    return partial(session.run, None, feed_of(session, example))


PROGRAMS: dict[str, Callable[[nn.Module, Any], Call]] = {
    "torch": prepare_torch,
    "onnxruntime": prepare_onnxruntime,
}
