"""Exporting a finished run."""

from pathlib import Path

from prunus.errors import UserError
from prunus.export import export_model, store
from prunus.zoo import load_model


def export_run(folder: Path, result: dict) -> list[str]:
    """Export the model of a finished run into its folder; returns what was written, in words.

    result: its result.json. Raises UserError if the model was not given by a SPEC, PruningError if an exported
    one answers otherwise.
    """
    spec, shape = result["settings"]["model"], tuple(result["input"]["shape"])
    if ":" not in spec:
        raise UserError(
            f"{spec} cannot be built from its name; call prunus.export.export_model with the model."
        )
    model = store.load(folder, load_model(spec, classes=result["input"]["classes"], in_shape=shape))
    return export_model(folder, model, shape)
