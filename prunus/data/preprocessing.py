"""What turns an image into a model's input, as data that is stored with a run."""

import math
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunus.data.decode import MODES, Encoded, decode, pixels
from prunus.data.randomness import own_randomness, reseed
from prunus.errors import FileError, UserError, one_line
from prunus.files import Real, check_json, expand_home
from prunus.specs import user_object

LARGEST = 2**15  # pixels; a stored size beyond it is damage
LATER: dict[str, Any] = {
    "squeeze": False,
    "transform": None,
    "source": None,
}  # fields that version 0.1.0 lacks
ANY_SIZE = (1, 1)  # of a transform that has not been tried yet


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image is read: cut, resized, normalised; or by a transform of the user's own.

    Args:
        channels: 1 for gray, 3 for colour.
        size: The height and width in pixels to which the image is resized, or that the transform gives.
        mean: The mean of each channel over 0..1, which is subtracted.
        std: The standard deviation of each channel over 0..1, by which is divided.
        crop: The part in the center that is cut out first, as a share of the largest that has the shape of `size`;
            None: the whole image is used.
        interpolation: The way of resizing, a name of `PIL.Image.Resampling` in small letters.
        squeeze: Whether the same share of both sides is cut out, which changes the shape of what is seen.
        transform: "package.module:callable", which maps an upright PIL image, gray or RGB, to a float tensor (C, H, W)
            and replaces all of the above; None: there is none.
        source: Where this was taken from, in words; None: it is usual for images without a published network.
    """

    channels: int
    size: tuple[int, int]
    mean: tuple[Real, ...]
    std: tuple[Real, ...]
    crop: float | None = None
    interpolation: str = "bilinear"
    squeeze: bool = False
    transform: str | None = None
    source: str | None = field(default=None, compare=False)

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
        if self.transform is not None:
            with own_randomness():
                return self.transformed(name, data)[None]
        decoded = decode(name, data, self.channels)
        # as a batch of one that is channels-last in memory, as batches of data sets are
        return self.normalise(torch.from_numpy(self.resize(decoded, self.box(decoded))[None].copy()))

    def box(self, image: Image.Image) -> tuple[float, float, float, float] | None:
        """Return the box (left, top, right, bottom) that is cut out of an image; None: the whole image."""
        if self.crop is None:
            return None
        return center_box(image.size, self.crop, None if self.squeeze else (self.size[1], self.size[0]))

    def resize(self, image: Image.Image, box: tuple[float, float, float, float] | None) -> np.ndarray:
        """Resize a box of a decoded image to (H, W, C), 0..255."""
        height, width = self.size
        if box is not None or image.size != (width, height):
            way = Image.Resampling[self.interpolation.upper()]
            image = image.resize((width, height), way, box, reducing_gap=None if box is None else 2.0)
        return pixels(image, self.channels)

    def transformed(self, name: str, data: Encoded, *draw: int) -> Tensor:
        """Decode an image and apply the user's transform, under global random states that depend on `draw` alone.

        Args:
            name: What the image is called in errors.
            data: The encoded image.
            draw: The numbers that determine everything random in it.

        Returns:
            The tensor, float32 (C, H, W).

        Raises:
            UserError: The image is damaged, or the transform fails or returns something else.
        """
        assert self.transform is not None
        image = decode(name, data, self.channels)
        if image.mode == "F":  # 0..255, of more than 8 bits, which transforms do not expect
            image = Image.fromarray(np.asarray(image).round().astype(np.uint8)).convert(MODES[self.channels])
        change = transform_of(self.transform)
        reseed(0, *draw)
        try:
            found = change(image)
        except Exception as error:  # whatever a user's own function raises
            raise UserError(
                f"the transform {self.transform} failed on image {name}: {one_line(error)}"
            ) from error
        if not isinstance(found, Tensor) or found.dim() != 3 or not found.is_floating_point():
            seen = (
                f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            )
            raise UserError(
                f"the transform {self.transform} should return a float tensor (C, H, W), but of image {name} it "
                f"returned {seen}."
            )
        if tuple(found.shape[1:]) != self.size and self.size != ANY_SIZE:
            raise UserError(
                f"the transform {self.transform} gives image {name} {tuple(found.shape[1:])} pixels, but the first "
                f"image {self.size}: it should resize all to one size."
            )
        return found.float()

    def normalise(self, x: Tensor) -> Tensor:
        """Normalise pixels (B, H, W, C), 0..255, to float32 (B, C, H, W), channels-last in memory."""
        return self.scale(x).permute(0, 3, 1, 2)

    def scale(self, x: Tensor) -> Tensor:
        """Normalise pixels (..., C), 0..255, to float32 of the same shape."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        # (pixel / 255 - mean) / std as one multiplication and one addition
        return x * (1 / (255 * std)) + -mean / std

    def __str__(self) -> str:
        kind = "gray" if self.channels == 1 else "colour"
        if self.transform is not None:
            way = f"by the transform {self.transform}"
        else:
            part = "whole" if self.crop is None else f"the central {100 * self.crop:.4g} %"
            mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
            way = f"{part}, {self.interpolation}, mean {mean}, deviation {std}"
        height, width = self.size
        return f"{kind}, {height}x{width} pixels, {way}; from {self.source or 'the usual values for images'}"

    def check(self) -> None:
        """Raise ValueError unless the fields fit together and can be used."""
        fits = {
            "channels": self.channels in MODES,
            "size": len(self.size) == 2 and all(type(n) is int and 0 < n <= LARGEST for n in self.size),
            "mean": len(self.mean) == self.channels and all(map(math.isfinite, self.mean)),
            "std": len(self.std) == self.channels and all(0 < s < math.inf for s in self.std),
            "crop": self.crop is None or 0 < self.crop <= 1,
            "interpolation": self.interpolation.upper() in Image.Resampling.__members__,
            "squeeze": isinstance(self.squeeze, bool),
            "transform": self.transform is None or isinstance(self.transform, str),
            "source": self.source is None or isinstance(self.source, str),
        }
        wrong = [f"{name} is {getattr(self, name)!r}" for name, good in fits.items() if not good]
        if wrong:
            raise ValueError(", ".join(wrong))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON, without those of `LATER` that are usual."""
        return {k: v for k, v in asdict(self).items() if k not in LATER or v != LATER[k]}

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


def center_box(
    size: tuple[int, int], share: float, shape: tuple[int, int] | None = (1, 1)
) -> tuple[float, float, float, float]:
    """Return the box (left, top, right, bottom) of a part in the center of an image.

    Args:
        size: The image's (width, height).
        share: The side of the part, as a share of the largest that fits.
        shape: The (width, height) whose shape the part has; None: that of the image.
    """
    wide, high = (side / max(shape or size) for side in shape or size)
    longest = min(size[0] / wide, size[1] / high) * share
    width, height = longest * wide, longest * high
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height


@cache
def transform_of(spec: str) -> Any:
    """Import a user's transform, "package.module:callable"; UserError if it is not there."""
    return user_object(spec, "transform", ["package.module"])
