"""Exporting a finished run."""

from pathlib import Path
from typing import Any

from prunus.export import export_model, store
from prunus.run.lock import sole_writer
from prunus.run.saved import original_model, single_shape


def export_run(folder: Path, result: dict[str, Any]) -> list[str]:
    """Export the model of a finished run into its folder.

    Args:
        folder: The run's folder.
        result: Its result.json.

    Returns:
        A sentence for each file that was written.

    Raises:
        UserError: The model was not given by a SPEC, so it cannot be built again, or another process writes into the
            folder.
        PruningError: An exported model computes something else than the model.
    """
    original = original_model(result, "call prunus.export.export_model with the model")
    shape = single_shape(result, "export")
    with sole_writer(folder):
        return export_model(folder, store.load(folder, original), shape)
