"""Panels of images from which a person can judge what pruning did."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from prunus.charts import Panels
from prunus.data import Examples
from prunus.inputs import model_device, move
from prunus.metrics import Metric

JUDGED = 16  # examples from which some are chosen
SIDE = 128  # pixels; of an image its middle is shown, unchanged


@dataclass(frozen=True, kw_only=True)
class Case:
    """An example as both models answer it.

    Args:
        number: Its position in the test set.
        images: Name, image (1, C, H, W) of whole numbers 0..255, and the metric, or None where it has no meaning.
        change: The change of the metric by pruning; lower is a greater loss.
    """

    number: int
    images: Sequence[tuple[str, Tensor, float | None]]
    change: float


def first_examples(split: Examples, model: nn.Module) -> Iterator[tuple[int, Any, Any]]:
    """Yield the number, inputs and target of the first examples of a split, each as a batch of one."""
    for number in range(min(JUDGED, len(split))):
        yield number, *move(split.read(np.array([number])), model_device(model))


def compare_cases(cases: Sequence[Case], metric: Metric, note: str) -> list[Panels]:
    """Show the cases that lose most, least, and the median by pruning, each as images side by side.

    Args:
        cases: The cases.
        metric: The metric, for the captions.
        note: One or two sentences that say how to read the images.

    Returns:
        The panels.
    """
    return [
        Panels(
            title=f"Test image {case.number + 1}: {how}",
            note=note,
            panels=[
                panel(name if value is None else f"{name}: {metric.text(value)}", image)
                for name, image, value in case.images
            ],
        )
        for how, case in choose_examples(cases, lambda case: case.change)
    ]


def choose_examples(found: Sequence[Any], change: Callable[[Any], float]) -> list[tuple[str, Any]]:
    """Choose up to three examples: which lose most, least, and the median.

    Args:
        found: The examples.
        change: The change of the metric by pruning; lower is a greater loss.

    Returns:
        How each of them was chosen in words, and the example.
    """
    order = sorted(found, key=change)
    places = {"loses most by pruning": 0, "loses least": len(order) - 1, "the median": len(order) // 2}
    chosen: dict[int, str] = {}
    for how, place in places.items():
        chosen.setdefault(place, how)
    return [(how, order[place]) for place, how in chosen.items() if order]


def panel(caption: str, image: Tensor) -> tuple[str, bytes]:
    """Encode the middle of an image (1, C, H, W) of whole numbers 0..255 as PNG, with its caption."""
    pixels = image[0].permute(1, 2, 0).cpu().numpy().astype(np.uint8)
    top, left = (max(0, (side - SIDE) // 2) for side in pixels.shape[:2])
    part = pixels[top : top + SIDE, left : left + SIDE]
    data = io.BytesIO()
    Image.fromarray(part.squeeze(-1) if part.shape[2] == 1 else part).save(data, format="PNG")
    return caption, data.getvalue()
