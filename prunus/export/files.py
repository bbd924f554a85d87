"""A finished run's model in formats that need no Prunus: model.pt2 (torch.export) and model.onnx.

Each is run on inputs it was not made with, in another batch size, and compared with the model before it stays.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.errors import PruningError
from prunus.export.programs import as_onnx, exported, missing_for_onnx, session
from prunus.files import write_atomic

RELATIVE_TOLERANCE = 1e-3  # of the largest answer: other kernels add in another order
EXPORT_BATCH, CHECK_BATCH = 2, 3


def export_model(folder: Path, model: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """Export `model`, which takes (B, *shape), into `folder`; returns what was written, in words."""
    folder, model = Path(folder), model.eval()
    generator = torch.Generator().manual_seed(0)
    example, other = (torch.randn(n, *shape, generator=generator) for n in (EXPORT_BATCH, CHECK_BATCH))
    program = exported(model, example, free_batch=True)
    with torch.no_grad():
        expected = model(other)
        written = [check("model.pt2", program.module()(other), expected)]
    write_atomic(folder / "model.pt2", lambda temporary: save_program(program, temporary))
    if missing := missing_for_onnx():
        return [*written, f"model.onnx not written: {missing}."]
    return [*written, write_onnx(folder / "model.onnx", program, other, expected)]


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """torch.export.save, which insists on the file's ending unless it is given an open file."""
    with path.open("wb") as file:
        torch.export.save(program, file)


def write_onnx(path: Path, program: torch.export.ExportedProgram, other: Tensor, expected: Tensor) -> str:
    """Write the program as ONNX, run by onnxruntime and compared first."""
    onnx_program = as_onnx(program)

    def write(temporary: Path) -> None:
        onnx_program.save(temporary)
        running = session(temporary.read_bytes())
        (answer,) = running.run(None, {running.get_inputs()[0].name: other.numpy()})
        said.append(check(path.name, torch.from_numpy(answer), expected))

    said: list[str] = []
    write_atomic(path, write)
    return said[0]


def check(name: str, answer: Tensor, expected: Tensor) -> str:
    """A line on how far the exported model's answer is off; PruningError if too far."""
    error = (answer - expected).abs().max().item()
    allowed = RELATIVE_TOLERANCE * max(1.0, expected.abs().max().item())
    if not error <= allowed:
        raise PruningError(
            f"{name} differs from the model by {error:.1e}, allowed {allowed:.1e}; not written."
        )
    return f"{name} written; largest difference from the model {error:.1e}."
