"""Folders of small generated images with the class of every pixel, and networks that answer with it."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

CLASSES = 3


def scene(seed: int, height: int = 24, width: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """A red rectangle and a green one on a gray background, uint8 (H, W, 3), and classes uint8 (H, W), some ignored."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 120, (height, width, 3))
    classes = np.zeros((height, width), np.uint8)
    for number in (1, 2):
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        box = np.s_[top : top + height // 2, left : left + width // 2]
        image[box] = rng.integers(0, 60, 3)
        image[(*box, number - 1)] += 140
        classes[box] = number
    classes[:2, :2] = 255
    return image.astype(np.uint8), classes


def write_scenes(folder: Path, counts: dict[str, int], **size: int) -> Path:
    """Write images and masks, as many of each split as `counts` says; the split "" stands for the folder itself."""
    seed = 0
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, classes = scene(seed := seed + 1, **size)
            Image.fromarray(image).save(folder / split / "images" / f"{number}.png")
            Image.fromarray(classes).save(folder / split / "masks" / f"{number}.png")
    return folder


class Segmenter(nn.Module):
    """Three convolutions with norms, at half the resolution, that answer as torchvision's networks do."""

    def __init__(self, classes: int = CLASSES, width: int = 12):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.head, self.aux = nn.Conv2d(width, classes, 1), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        early = self.stem(x)
        logits = self.head(self.body(early))
        return {"out": F.interpolate(logits, size=x.shape[-2:], mode="bilinear"), "aux": self.aux(early)}


def brightest(x: Tensor) -> Tensor:
    """The classes that a scene's colours stand for, by a rule that needs no training."""
    red, green = x[:, 0] - x[:, 2], x[:, 1] - x[:, 2]
    return torch.stack([torch.full_like(red, 1.0), red, green], 1).argmax(1)
