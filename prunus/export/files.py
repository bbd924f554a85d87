"""A model in formats that need no Prunus: model.pt2 (torch.export) and model.onnx.

Before a file is kept it is run on other inputs than those it was made with, in another batch size, and compared with
the model.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.errors import PruningError
from prunus.export.programs import export_program, missing_for_onnx, open_session, to_onnx
from prunus.files import write_atomic

RELATIVE_TOLERANCE = 1e-3  # of the largest output, because other kernels add in another order
EXPORT_BATCH, CHECK_BATCH = 2, 3


def export_model(folder: Path, model: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """Export a model as model.pt2 and, where onnx is installed, model.onnx; the batch size stays free.

    Args:
        folder: The folder to write to.
        model: A model that maps (B, *shape) to one tensor.
        shape: The shape of one input.

    Returns:
        A line for each file: how far it differs from the model, or why it was not written.

    Raises:
        PrunusError: torch cannot export the model.
        PruningError: An exported file computes something else than the model.
    """
    folder, model = Path(folder), model.eval()
    generator = torch.Generator().manual_seed(0)
    example, other = (torch.randn(n, *shape, generator=generator) for n in (EXPORT_BATCH, CHECK_BATCH))
    program = export_program(model, example, free_batch=True)
    with torch.no_grad():
        expected = model(other)
        written = [check_output("model.pt2", program.module()(other), expected)]
    write_atomic(folder / "model.pt2", lambda temporary: save_program(program, temporary))
    if missing := missing_for_onnx():
        return [*written, f"model.onnx not written: {missing}."]
    return [*written, write_onnx(folder / "model.onnx", program, other, expected)]


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Save a program to an open file, because torch.export.save refuses paths that do not end in .pt2."""
    with path.open("wb") as file:
        torch.export.save(program, file)


def write_onnx(path: Path, program: torch.export.ExportedProgram, other: Tensor, expected: Tensor) -> str:
    """Write a program as ONNX after comparing its output in onnxruntime; returns a line for the user."""
    onnx_program = to_onnx(program)

    def write(temporary: Path) -> None:
        onnx_program.save(temporary)
        session = open_session(temporary.read_bytes())
        (output,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
        lines.append(check_output(path.name, torch.from_numpy(output), expected))

    lines: list[str] = []
    write_atomic(path, write)
    return lines[0]


def check_output(name: str, output: Tensor, expected: Tensor) -> str:
    """Compare an exported model's output with the model's; returns a line for the user, or raises PruningError."""
    error = (output - expected).abs().max().item()
    allowed = RELATIVE_TOLERANCE * max(1.0, expected.abs().max().item())
    if not error <= allowed:
        raise PruningError(
            f"{name} differs from the model by {error:.1e}, allowed is {allowed:.1e}; it was not written."
        )
    return f"{name} written; largest difference from the model {error:.1e}."
