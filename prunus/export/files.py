"""A model in formats that need no Prunus: model.pt2 (torch.export) and model.onnx.

Before a file is kept it is run on other inputs than those it was made with, in another batch size, and compared with
the model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import PruningError, one_line
from prunus.export.programs import export_program, feed_of, missing_for_onnx, open_session, to_onnx
from prunus.files import write_atomic
from prunus.graph import evaluation_mode
from prunus.inputs import call, random_batch, tensors_in

RELATIVE_TOLERANCE = 1e-3  # of the largest output, because other kernels add in another order
EXPORT_BATCH, CHECK_BATCH = 2, 3
# Times the example's, on which a program with free sizes is checked: sides of images, and the length of texts, which is
# shorter, because a model may know no more places than the example has.
OTHER_SIDES, OTHER_LENGTH = 2, 0.6

# a program, inputs to check it on, and what the model answers to them
Checkable = tuple[torch.export.ExportedProgram, Any, list[Tensor]]


def export_model(folder: Path, model: nn.Module, example: Any, free_dims: Sequence[int] = (0,)) -> list[str]:
    """Export a model as model.pt2 and, where onnx is installed, model.onnx; the batch size stays free.

    Args:
        folder: The folder to write to.
        model: A model that returns tensors; it runs in evaluation mode, and keeps its own.
        example: One input with a batch dimension of 1: a tensor, or a tuple or dict of arguments.
        free_dims: The dimensions of inputs that stay free; those beside the batch only if torch can export them so.

    Returns:
        A line for each file: how far it differs from the model, or why it was not written.

    Raises:
        PrunusError: torch cannot export the model.
        PruningError: An exported file computes something else than the model.
    """
    with evaluation_mode(model):
        return _export(Path(folder), model, example, free_dims)


def _export(folder: Path, model: nn.Module, example: Any, free_dims: Sequence[int]) -> list[str]:
    (program, other, expected), why = make_freest_program(model, example, free_dims)
    lines = [f"The files take {why}"] if why else []
    with torch.no_grad():
        lines.append(check_outputs("model.pt2", tensors_in(call(program.module(), other)), expected))
    write_atomic(folder / "model.pt2", lambda temporary: save_program(program, temporary))
    if missing := missing_for_onnx():
        return [*lines, f"model.onnx not written: {missing}."]
    return [*lines, write_onnx(folder / "model.onnx", program, other, expected)]


def make_freest_program(model: nn.Module, example: Any, free_dims: Sequence[int]) -> tuple[Checkable, str]:
    """Export a model to a program that leaves dimensions free, or the first of them alone where torch refuses.

    Args:
        model: The model, in evaluation mode.
        example: One input.
        free_dims: The dimensions, the batch first.

    Returns:
        What `make_program` returns, and, if only the first is free, a text that says which inputs the program takes,
        and torch's reason; otherwise "".

    Raises:
        PrunusError: torch cannot export the model.
    """
    try:
        return make_program(model, example, free_dims), ""
    except Exception as error:  # whatever torch.export or the user's own code raises for other sides
        if len(free_dims) == 1:
            raise
        made = make_program(model, example, free_dims[:1])
        shapes = ", ".join(str(tuple(tensor.shape[1:])) for tensor in tensors_in(example))
        return made, f"inputs of {shapes} only; with free sides: {one_line(error)}"


def make_program(model: nn.Module, example: Any, free_dims: Sequence[int]) -> Checkable:
    """Export a model to a program that leaves dimensions free.

    Args:
        model: The model.
        example: One input.
        free_dims: The dimensions.

    Returns:
        The program, other inputs, with other sizes of these dimensions, and the model's outputs for them.
    """
    program = export_program(model, random_batch(example, EXPORT_BATCH), free_dims=free_dims)
    stretch = {dim: OTHER_LENGTH if dim == 1 else OTHER_SIDES for dim in free_dims if dim > 0}
    other = random_batch(example, CHECK_BATCH, stretch=stretch)
    with torch.no_grad():
        call(program.module(), other)
        return program, other, tensors_in(call(model, other))


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Save a program to an open file, because torch.export.save refuses paths that do not end in .pt2."""
    with path.open("wb") as file:
        torch.export.save(program, file)


def write_onnx(
    path: Path, program: torch.export.ExportedProgram, other: Any, expected: Sequence[Tensor]
) -> str:
    """Write a program as ONNX after comparing its outputs in onnxruntime; returns a line for the user."""
    onnx_program = to_onnx(program)

    def write(temporary: Path) -> None:
        onnx_program.save(temporary)
        session = open_session(temporary.read_bytes())
        outputs = session.run(None, feed_of(session, other))
        lines.append(check_outputs(path.name, [torch.from_numpy(output) for output in outputs], expected))

    lines: list[str] = []
    write_atomic(path, write)
    return lines[0]


def check_outputs(name: str, outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    """Compare an exported model's outputs with the model's.

    Args:
        name: The exported file.
        outputs: Its outputs.
        expected: Those of the model for the same inputs.

    Returns:
        A line for the user.

    Raises:
        PruningError: They differ.
    """
    error, allowed = largest_difference(outputs, expected)
    if not error <= allowed:
        raise PruningError(
            f"{name} differs from the model by {error:.1e}, allowed is {allowed:.1e}; it was not written."
        )
    return f"{name} written; largest difference from the model {error:.1e}."


def largest_difference(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, float]:
    """Compare outputs.

    Args:
        outputs: The outputs of a program.
        expected: Those of the model.

    Returns:
        The largest difference, infinite for another number or other shapes, and the one that is allowed.
    """
    if [tensor.shape for tensor in outputs] != [tensor.shape for tensor in expected]:
        return torch.inf, 0.0
    pairs = [
        (one.double(), other.double()) for one, other in zip(outputs, expected, strict=True) if other.numel()
    ]
    error = max((float((one - other).abs().max()) for one, other in pairs), default=0.0)
    return error, RELATIVE_TOLERANCE * max(1.0, *(float(other.abs().max()) for _, other in pairs), 1.0)
