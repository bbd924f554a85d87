"""What a model says about a file: a value, how it is printed, and an image that is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map_only


@dataclass(frozen=True)
class Prediction:
    """A class and its probability, 0 to 1."""

    class_name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one file.

    Args:
        value: What `Saved.predict` returns for it, such as a list of `Prediction`.
        columns: The headings of its rows.
        rows: The rows that are printed, each with a text for every column.
        json: The same as plain JSON.
        image: An image that is written; None: there is none.
    """

    value: Any
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    json: dict[str, Any]
    image: Image.Image | None = None


def ranking(probabilities: Tensor, class_names: tuple[str, ...], most: int) -> Answer:
    """Make the answer of the likeliest classes.

    Args:
        probabilities: The probability of each class (classes,).
        class_names: Their names.
        most: How many to name.

    Returns:
        The answer; its value is a list of `Prediction`, the likeliest first.
    """
    shares, order = probabilities.sort(descending=True)
    found = [
        Prediction(class_names[label], share)
        for label, share in zip(order[:most].tolist(), shares[:most].tolist(), strict=True)
    ]
    return Answer(
        value=found,
        columns=("class", "probability"),
        rows=tuple((each.class_name, f"{100 * each.probability:.1f} %") for each in found),
        json={"classes": [{"class": each.class_name, "probability": each.probability} for each in found]},
    )


def picture(image: Image.Image) -> Answer:
    """Make the answer that is an image."""
    width, height = image.size
    return Answer(
        value=image,
        columns=("image",),
        rows=((f"{width}x{height} pixels",),),
        json={"size": [width, height]},
        image=image,
    )


def plain(value: Any) -> Answer:
    """Make the answer of whatever a user's own function returned: an image, a mapping, tensors, or anything else."""
    if isinstance(value, Image.Image):
        return picture(value)
    if isinstance(value, Mapping):
        known = {str(name): _plain(each) for name, each in value.items()}
        rows = tuple((name, str(each)) for name, each in known.items())
        return Answer(value=value, columns=("what", "answer"), rows=rows, json=known)
    return Answer(
        value=value, columns=("answer",), rows=((str(_plain(value)),),), json={"answer": _plain(value)}
    )


def _plain(value: Any) -> Any:
    """Tensors as lists of numbers."""
    return tree_map_only(Tensor, torch.Tensor.tolist, value)
