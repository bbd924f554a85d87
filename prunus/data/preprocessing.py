"""What turns an image into a model's input, as data that is stored with a run."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunus.data.decode import Encoded, decode, pixels
from prunus.errors import FileError
from prunus.files import Real, check_json, expand_home

# Channels -> mean and standard deviation over 0..1. For colour ImageNet's, which published weights expect.
NORMS = {1: ((0.3,), (0.35,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
LARGEST = 2**15  # pixels; a stored size beyond it is damage
CENTER = 0.875  # of the shorter side: what is cut out of large images


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image is read: cut, resized, normalised.

    Args:
        channels: 1 for gray, 3 for colour.
        size: The height and width in pixels to which the image is resized.
        mean: The mean of each channel over 0..1, which is subtracted.
        std: The standard deviation of each channel over 0..1, by which is divided.
        crop: The side of the central square that is cut out first, as a share of the shorter side; None: the whole
            image is used.
        interpolation: The way of resizing, a name of `PIL.Image.Resampling` in small letters.
    """

    channels: int
    size: tuple[int, int]
    mean: tuple[Real, ...]
    std: tuple[Real, ...]
    crop: float | None = None
    interpolation: str = "bilinear"

    def read(self, image: str | Path | bytes | Image.Image) -> Tensor:
        """Read one image as the model does.

        Args:
            image: A file, the bytes of one, or an open image.

        Returns:
            The image, float32 (1, C, H, W).

        Raises:
            UserError: The image is missing or damaged.
        """
        data: Encoded = expand_home(image) if isinstance(image, str | Path) else image
        name = str(data) if isinstance(data, Path) else "(given)"
        decoded = decode(name, data, self.channels)
        # as a batch of one that is channels-last in memory, as batches of data sets are
        return self.normalise(torch.from_numpy(self.resize(decoded, self.box(decoded))[None].copy()))

    def box(self, image: Image.Image) -> tuple[float, float, float, float] | None:
        """Return the box (left, top, right, bottom) that is cut out of an image; None: the whole image."""
        return None if self.crop is None else center_box(image.size, self.crop)

    def resize(self, image: Image.Image, box: tuple[float, float, float, float] | None) -> np.ndarray:
        """Resize a box of a decoded image to (H, W, C), 0..255."""
        height, width = self.size
        if box is not None or image.size != (width, height):
            way = Image.Resampling[self.interpolation.upper()]
            image = image.resize((width, height), way, box, reducing_gap=None if box is None else 2.0)
        return pixels(image, self.channels)

    def normalise(self, x: Tensor) -> Tensor:
        """Normalise pixels (B, H, W, C), 0..255, to float32 (B, C, H, W)."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        # (pixel / 255 - mean) / std as one multiplication and one addition; a view, so channels-last in memory
        return (x * (1 / (255 * std)) + -mean / std).permute(0, 3, 1, 2)

    def check(self) -> None:
        """Raise ValueError unless the fields fit together and can be used."""
        fits = {
            "channels": self.channels in NORMS,
            "size": len(self.size) == 2 and all(type(n) is int and 0 < n <= LARGEST for n in self.size),
            "mean": len(self.mean) == self.channels and all(map(math.isfinite, self.mean)),
            "std": len(self.std) == self.channels and all(0 < s < math.inf for s in self.std),
            "crop": self.crop is None or 0 < self.crop <= 1,
            "interpolation": self.interpolation.upper() in Image.Resampling.__members__,
        }
        wrong = [f"{name} is {getattr(self, name)!r}" for name, good in fits.items() if not good]
        if wrong:
            raise ValueError(", ".join(wrong))

    @classmethod
    def from_json(cls, values: dict[str, Any], file: Path) -> Self:
        """Make it from what a file stores; FileError if that does not fit, or says more than is known here."""
        made = check_json(values, cls, f"the preprocessing of images in {file}")
        try:
            if unknown := sorted(values.keys() - {field.name for field in fields(cls)}):
                raise ValueError(f"unknown: {', '.join(map(repr, unknown))}")
            made.check()
            return made
        except ValueError as error:
            raise FileError(
                f"{file} holds no preprocessing of images ({error}); copy the run again."
            ) from error


def center_box(size: tuple[int, int], share: float) -> tuple[float, float, float, float]:
    """The square in the center (left, top, right, bottom) whose side is `share` of the image's shorter side."""
    side = min(size) * share
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    return left, top, left + side, top + side
