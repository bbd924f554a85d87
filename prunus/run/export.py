"""Exporting a finished run."""

from pathlib import Path
from typing import Any

from prunus.errors import UserError
from prunus.export import (
    export_executorch,
    export_model,
    export_openvino,
    export_pretrained,
    missing_for_executorch,
    missing_for_openvino,
    store,
)
from prunus.files import write_json
from prunus.graph import quiet_config
from prunus.run.lock import sole_writer
from prunus.run.reopen import reopen_task

PREPROCESSING = "preprocessing.json"
HF = "hf:"


def export_run(
    folder: Path, result: dict[str, Any], *, openvino: bool = False, executorch: bool = False
) -> list[str]:
    """Export the model of a finished run into its folder, and how its images are read beside it.

    A model that was given as hf:DIR is also written as a folder that transformers loads, with the tokenizer of DIR.

    Args:
        folder: The run's folder.
        result: Its result.json.
        openvino: Whether to write model.xml and model.bin, too.
        executorch: Whether to write model.pte, too.

    Returns:
        A sentence for each file that was written.

    Raises:
        UserError: The model was not given by a SPEC, so it cannot be built again, a package is missing, or another
            process writes into the folder.
        PruningError: An exported model computes something else than the model.
    """
    asked = {missing_for_openvino: openvino, missing_for_executorch: executorch}
    if missing := [words for say, is_asked in asked.items() if is_asked and (words := say())]:
        raise UserError(f"nothing was written: {'; '.join(missing)}.")
    task = reopen_task(folder, result, instead="call prunus.export.export_model with the model")
    known = task.data.fingerprint
    with sole_writer(folder):
        small, given = store.load(folder, task.model), result["settings"]["model"]
        lines: list[str] = []
        if given.startswith(HF):
            source = Path(given.removeprefix(HF)).expanduser()
            lines.append(export_pretrained(folder, small, task.example, source))
        quiet_config(small)  # a program returns no cache
        lines += export_model(folder, small, task.example, task.free_dims)
        if openvino:
            lines.append(export_openvino(folder, small, task.example, task.free_dims))
        if executorch:
            lines.append(export_executorch(folder, small, task.example))
        if known is not None and known.preprocessing is not None:
            write_json(folder / PREPROCESSING, known.preprocessing.to_json())
            lines.append(
                f"{PREPROCESSING} written; it says how an image becomes an input: {known.preprocessing}."
            )
    return lines
