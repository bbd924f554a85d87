"""Models of text from a folder of transformers: config.json, and the weights beside it if there are some.

Weights are read from safetensors files alone, so nothing in them is executed; nothing is downloaded.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.errors import FileError, UserError, one_line
from prunus.files import expand_home, read_json
from prunus.zoo.optional import cannot_import, library

SHOWN = 3  # names in an error


def from_folder(folder: str, classes: int | None) -> nn.Module:
    """Build the model that a folder describes, with its weights if there are some.

    Args:
        folder: The folder with config.json, and perhaps *.safetensors.
        classes: The number of classes of a classifier; None: a causal language model.

    Returns:
        The model in full precision. A classifier of another number of classes than the folder's gets a new last layer.

    Raises:
        FileError: The config is missing or damaged, or the weights are damaged or lack some of the model's.
        UserError: transformers is missing, or cannot build such a model.
    """
    place = expand_home(folder)
    config = read_json(place / "config.json")
    transformers = library("transformers", "hf")
    what, name = "classifier of texts", "AutoModelForSequenceClassification"
    if classes is None:
        what, name = "causal language model", "AutoModelForCausalLM"
    try:
        maker = getattr(transformers, name)
        more: dict[str, Any] = {} if classes is None else {"num_labels": classes}
        made = transformers.AutoConfig.for_model(config.pop("model_type"), **config | more)
        made.pad_token_id = special_token(place, "pad")
        if not has_weights(place):
            return maker.from_config(made)
    except ImportError as error:  # the library imports its parts when they are used
        raise cannot_import("transformers", error, "hf") from error
    except Exception as error:  # whatever a library raises about a config that does not fit its class
        raise UserError(
            f"{folder}/config.json describes no {what} that transformers can build ({one_line(error)})."
        ) from error
    try:
        model, report = maker.from_pretrained(
            place,
            config=made,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=classes is not None,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # whatever a library raises about damaged weights
        raise FileError(
            f"the weights in {folder} cannot be read ({one_line(error)}). Copy them again, beside the config.json that "
            "they were saved with."
        ) from error
    check_complete(folder, model, report, is_classifier=classes is not None)
    return model


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds weights that can be read."""
    return any(folder.glob("*.safetensors"))


def check_complete(folder: str, model: Any, report: dict[str, Any], *, is_classifier: bool) -> None:
    """Raise FileError if weights are missing; of a classifier its last layers may be, which are then new."""
    missing = sorted(report["missing_keys"])
    if is_classifier:
        missing = [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise FileError(
            f"the weights in {folder} lack {', '.join(missing[:SHOWN])}{more} of the model in its config.json; give "
            "the folder of a model of this kind."
        )


def special_token(folder: Path, role: str) -> int | None:
    """Look up the number of a special token in a folder's config.json.

    Args:
        folder: The folder.
        role: "pad", which is the end of a text where the config has none, or "eos", the end.

    Returns:
        The number; None if the config states none, or there is no config.
    """
    path = folder / "config.json"
    config = read_json(path) if path.exists() else {}
    found = config.get(f"{role}_token_id")
    if isinstance(found, list):  # several end a text
        found = next(iter(found), None)
    if found is None and role == "pad":
        return special_token(folder, "eos")
    if found is not None and not (type(found) is int and found >= 0):
        raise FileError(f"{path} should hold a number as {role}_token_id, but holds {found!r}.")
    return found
