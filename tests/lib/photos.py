"""Folders of small random images, each different from all others."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8), seed: int = 0) -> Path:
    """Write gray images as folder/CLASS/NUMBER.png, as many of each class as `counts` says; returns the folder."""
    rng = np.random.default_rng([seed, len(counts), *map(ord, next(iter(counts)))])
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = rng.integers(0, 256, size[::-1]).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder
