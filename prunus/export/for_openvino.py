"""A model as model.xml with its weights in model.bin, OpenVINO's own format, in 32 bits."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import PrunusError, UserError, one_line
from prunus.export.files import check_outputs, make_freest_program
from prunus.export.programs import missing_of, quietly
from prunus.files import write_atomic
from prunus.graph import evaluation_mode
from prunus.inputs import tensors_in

XML, BIN = "model.xml", "model.bin"


def missing_for_openvino() -> str:
    """Say that OpenVINO is missing, and how to install it; empty if it is there."""
    return missing_of("openvino", ["openvino"])


def export_openvino(
    folder: str | Path, model: nn.Module, example: Any, free_dims: Sequence[int] = (0,)
) -> str:
    """Write a model as model.xml and model.bin after comparing its outputs in OpenVINO on the processor.

    Args:
        folder: The folder to write to.
        model: A model on the processor that returns tensors; it runs in evaluation mode, and keeps its own.
        example: One input with a batch dimension of 1: a tensor, or a tuple or dict of arguments.
        free_dims: The dimensions of inputs that stay free; those beside the batch only if torch can export them so.

    Returns:
        A line for the user: how far the outputs are from the model's.

    Raises:
        PrunusError: torch cannot export the model, or OpenVINO cannot convert it.
        PruningError: The files compute something else than the model.
        UserError: OpenVINO is not installed.
    """
    if missing := missing_for_openvino():
        raise UserError(f"{XML} cannot be made: {missing}.")
    import openvino  # pyright: ignore[reportMissingImports]: an optional package

    folder = Path(folder)
    with evaluation_mode(model):
        (program, other, expected), why = make_freest_program(model, example, free_dims)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / XML
        try:
            with quietly():
                openvino.save_model(openvino.convert_model(program), made, compress_to_fp16=False)
        except Exception as error:  # whatever OpenVINO's frontend raises
            raise PrunusError(f"OpenVINO cannot convert this model: {one_line(error)}") from error
        line = check_outputs(XML, prepare_openvino(made)(other), expected)
        (folder / XML).unlink(missing_ok=True)  # an old one would not fit to new weights
        for file in (made.with_name(BIN), made):
            write_atomic(folder / file.name, lambda temporary, file=file: shutil.copyfile(file, temporary))
    return f"{line} It takes {why}" if why else line


def prepare_openvino(file: Path, **config: Any) -> Callable[[Any], list[Tensor]]:
    """Prepare to run a file of OpenVINO or ONNX on the processor, in float32, with as many threads as torch.

    Args:
        file: The file.
        config: Further settings of OpenVINO.

    Returns:
        A function that maps a batch of inputs to the tensors of its output.
    """
    import openvino  # pyright: ignore[reportMissingImports]: an optional package

    config |= {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(file), "CPU", config).create_infer_request()

    def run(x: Any) -> list[Tensor]:
        found = request.infer([tensor.numpy() for tensor in tensors_in(x)])
        return [torch.from_numpy(found[number]) for number in range(len(found))]

    return run
