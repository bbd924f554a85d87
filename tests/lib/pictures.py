"""Folders of small generated images with edges and gradients, each different from all others."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 40, width: int = 36, channels: int = 3) -> np.ndarray:
    """A wave with a brighter rectangle on it, uint8 (H, W, C)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    slopes, phases = rng.uniform(-0.5, 0.5, (3, 2)), rng.uniform(0, 6, 3)
    waves = [np.sin(x * a + y * b + c) for (a, b), c in zip(slopes, phases, strict=True)]
    image = 110 + 70 * np.stack(waves, -1)[..., :channels]
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    image[top : top + height // 3, left : left + width // 3] += 60
    return np.clip(image, 0, 255).astype(np.uint8)


def write_pictures(folder: Path, count: int, *, seed: int = 0, **size: int) -> Path:
    """Write `count` images of `picture` as folder/NUMBER.png; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = picture(1000 * seed + number, **size)
        Image.fromarray(image.squeeze(-1) if image.shape[2] == 1 else image).save(folder / f"{number}.png")
    return folder
