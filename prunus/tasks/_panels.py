"""Panels of images from which a person can judge what pruning did."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

SIDE = 128  # pixels; of an image its middle is shown, unchanged


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
