"""Degradations: what an image loses before a network restores it.

A degradation has a part that is the same every time (`shrink`), and a part that is drawn (`disturb`).
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from prunus.data.bicubic import resize, to_bytes
from prunus.options import Checked, Range

Sigma = Annotated[float, Range(0, 255, above=True, hint="usual values are 15, 25, 50 and 70, of 0..255")]
Scale = Annotated[int, Range(2, 8, hint="usual values are 2, 3 and 4, the clean side over the degraded one")]


class Degradation:
    """The base of all degradations; it changes nothing.

    scale: the side of the clean image over that of the degraded one.
    """

    scale: int = 1

    def shrink(self, clean: np.ndarray) -> np.ndarray:
        """Return the degraded image uint8 (H / scale, W / scale, C) of a clean one uint8 (H, W, C)."""
        return clean

    def disturb(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return images float32 (..., C, H, W) in 0..1 with what `rng` draws."""
        return x


@dataclass(frozen=True)
class Noise(Checked, Degradation):
    """Additive white Gaussian noise, neither cut off at 0 and 255 nor rounded, as DnCNN and DHP add it.

    Args:
        sigma: Its standard deviation on the scale 0..255.

    Raises:
        UserError: sigma does not lie between 0 and 255.
    """

    sigma: Sigma

    def disturb(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Add noise."""
        return x + np.float32(self.sigma / 255) * rng.standard_normal(x.shape, np.float32)


@dataclass(frozen=True)
class Downscaling(Checked, Degradation):
    """Bicubic downscaling with antialiasing, rounded to 8 bits as image files are; see bicubic.py.

    Args:
        scale: The side before over the side after.

    Raises:
        UserError: scale does not lie between 2 and 8.
    """

    scale: Scale  # pyright: ignore[reportIncompatibleVariableOverride]: frozen, where the base has a constant

    def shrink(self, clean: np.ndarray) -> np.ndarray:
        """Downscale an image whose sides are multiples of `scale`."""
        height, width = clean.shape[:2]
        return to_bytes(resize(clean, height // self.scale, width // self.scale))
