"""A model as model.pte, ExecuTorch's format for phones and other devices, with the kernels of XNNPACK."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.errors import PrunusError, UserError, one_line
from prunus.export.files import CHECK_BATCH, check_outputs
from prunus.export.programs import export_program, missing_of, quietly
from prunus.files import write_atomic
from prunus.graph import evaluation_mode
from prunus.inputs import call, random_batch, take_examples, tensors_in

PTE = "model.pte"


def missing_for_executorch() -> str:
    """Say that ExecuTorch is missing, and how to install it; empty if it is there."""
    return missing_of("executorch", ["executorch"])


def export_executorch(folder: str | Path, model: nn.Module, example: Any) -> str:
    """Write a model as model.pte after comparing its outputs in ExecuTorch's own runtime.

    The file takes one input at a time, of the example's sizes: memory is planned before it runs. What XNNPACK has no
    kernel for runs on ExecuTorch's portable ones.

    Args:
        folder: The folder to write to.
        model: A model on the processor that returns tensors; it runs in evaluation mode, and keeps its own.
        example: One input with a batch dimension of 1: a tensor, or a tuple or dict of arguments.

    Returns:
        A line for the user: how far the outputs are from the model's.

    Raises:
        PrunusError: torch cannot export the model, or ExecuTorch cannot convert or run it.
        PruningError: The file computes something else than the model.
        UserError: ExecuTorch is not installed.
    """
    if missing := missing_for_executorch():
        raise UserError(f"{PTE} cannot be made: {missing}.")
    other = take_examples(random_batch(example, CHECK_BATCH), slice(1))
    with evaluation_mode(model), torch.no_grad():
        program = export_program(model, example)
        expected = tensors_in(call(model, other))
    try:
        with quietly():
            data, outputs = _convert(program, other)
    except Exception as error:  # whatever ExecuTorch raises for an operator, or at running it
        raise PrunusError(f"ExecuTorch cannot express or run this model: {one_line(error)}") from error
    line = check_outputs(PTE, outputs, expected)
    write_atomic(Path(folder) / PTE, lambda temporary: temporary.write_bytes(data))
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(example))
    return f"{line} It takes inputs of {shapes} only."


def _convert(program: torch.export.ExportedProgram, inputs: Any) -> tuple[bytes, list[torch.Tensor]]:
    """Convert a program; returns the contents of the file, and its outputs for inputs."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (  # pyright: ignore[reportMissingImports]
        XnnpackPartitioner,
    )
    from executorch.exir import to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]
    from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    data = bytes(lowered.to_executorch().buffer)
    method = Runtime.get().load_program(data).load_method("forward")
    return data, [output.clone() for output in method.execute(tensors_in(inputs))]
