"""A model of transformers as a folder that its `from_pretrained` loads, with the tokenizer of the one it is from."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.errors import UserError
from prunus.export.configured import check_config
from prunus.export.files import check_outputs
from prunus.graph import evaluation_mode, output_tensors
from prunus.inputs import call

NAME = "pretrained"
BESIDE = (  # what says how a text or an image becomes an input
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "preprocessor_config.json",
    "processor_config.json",
)


def export_pretrained(folder: Path, model: nn.Module, example: Any, source: Path) -> str:
    """Write a model of transformers by its own `save_pretrained`, if its config makes it, and try the folder.

    Args:
        folder: The folder in which a folder `pretrained` is written, as a whole or not at all.
        model: The model.
        example: Inputs.
        source: The folder that the unpruned model is from; its tokenizer and preprocessor come along.

    Returns:
        A line for the user: how far the loaded model differs, or why nothing was written.

    Raises:
        PruningError: The loaded model computes something else.
    """
    try:
        check_config(model)
    except UserError as error:
        return f"{NAME} not written: {error}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{NAME}.") as name:
        written = Path(name) / NAME
        kept: Any = model  # of transformers, as its config has shown
        kept.save_pretrained(written)
        for file in {file for pattern in BESIDE for file in source.glob(pattern) if file.is_file()}:
            shutil.copy(file, written)
        loaded = kept.from_pretrained(written, dtype="auto")
        with torch.no_grad(), evaluation_mode(model), evaluation_mode(loaded):
            outputs, expected = (output_tensors(call(each, example)) for each in (loaded, model))
        line = check_outputs(NAME, outputs, expected)
        shutil.rmtree(folder / NAME, ignore_errors=True)
        written.rename(folder / NAME)
    return line
