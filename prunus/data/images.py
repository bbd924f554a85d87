"""Sources of images: decoding, normalising, and augmenting in a way that depends on the seed alone.

A source has `read(indices, rng)`, which returns float images (B, C, H, W), augmented if a random generator `rng` is
given: `InMemory` for small images of one size, `Lazy` for large images or mixed sizes, `Tensors` for tensors that a
user has prepared.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunus.errors import UserError

# Channels -> mean and standard deviation over 0..1. For colour ImageNet's, which published weights expect.
NORMS = {1: ((0.3,), (0.35,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
MODES = {1: "L", 3: "RGB"}
DECODERS = 2  # threads


class InMemory:
    """Small images of one size, decoded once. Augmenting shifts them a little and mirrors colour images.

    pixels: uint8 (N, H, W, C).
    """

    slow = False

    def __init__(self, pixels: np.ndarray):
        self.pixels = torch.from_numpy(pixels)
        mean, std = (torch.tensor(values) for values in NORMS[pixels.shape[-1]])
        # (pixel / 255 - mean) / std as one multiplication and one addition
        self.scale, self.offset = 1 / (255 * std), -mean / std

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        x = self.pixels[torch.from_numpy(indices)]
        if rng is not None:
            x = shift_and_mirror(x, rng)
        # a view, so that the batch is channels-last in memory
        return (x * self.scale + self.offset).permute(0, 3, 1, 2)


def shift_and_mirror(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift each image of x uint8 (B, H, W, C) by up to an eighth of its height, filling with black.

    Colour images are mirrored half of the time. Gray images are mostly characters, which a mirror would change: they
    are shifted by up to a fourteenth and never mirrored.
    """
    count, height, width, channels = x.shape
    reach = height // 8 if channels == 3 else max(height // 14, 1)
    top, left = torch.from_numpy(rng.integers(0, 2 * reach + 1, (2, count)))
    mirror = torch.from_numpy(rng.integers(0, 2, count) * (channels == 3))
    rows = top[:, None] + torch.arange(height)
    columns = torch.arange(width).expand(count, -1)
    columns = left[:, None] + torch.where(mirror[:, None] == 1, columns.flip(1), columns)
    padded = torch.nn.functional.pad(x, (0, 0, reach, reach, reach, reach))
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


class Lazy:
    """Large images or mixed sizes, decoded when read. Augmenting crops and mirrors; otherwise the center is cropped.

    rows: (name, the file's bytes or an open image) by index. side: the crops' side in pixels. channels: 1 or 3.
    """

    slow = True

    def __init__(self, rows: Sequence, side: int, channels: int):
        self.rows, self.side, self.channels = rows, side, channels
        self.mean, self.std = (np.array(values, np.float32) for values in NORMS[channels])

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        numbers = [None] * len(indices) if rng is None else rng.random((len(indices), 5))
        with ThreadPoolExecutor(DECODERS) as pool:
            images = list(pool.map(self.read_one, indices.tolist(), numbers))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def read_one(self, index: int, numbers: np.ndarray | None) -> np.ndarray:
        """Decode, crop and normalise an image: float32 (H, W, C). numbers: five in 0..1 choose the augmentation."""
        name, encoded = self.rows[index]
        image = decode(name, encoded, self.channels)
        box = center_box(image.size) if numbers is None else random_box(image.size, numbers)
        image = image.resize((self.side, self.side), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
        if numbers is not None and numbers[4] < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = np.asarray(image, np.float32).reshape(self.side, self.side, self.channels) / 255
        return (x - self.mean) / self.std


def center_box(size: tuple[int, int], share: float = 0.875) -> tuple[float, float, float, float]:
    """The square in the center (left, top, right, bottom) whose side is `share` of the image's shorter side."""
    side = min(size) * share
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    return left, top, left + side, top + side


def random_box(size: tuple[int, int], numbers: np.ndarray) -> tuple[float, float, float, float]:
    """A box of 8 % to 100 % of the area, 3:4 to 4:3, inside the image (Szegedy et al., arXiv:1409.4842, section 6)."""
    area = size[0] * size[1] * (0.08 + 0.92 * numbers[0])
    ratio = np.exp(np.log(4 / 3) * (2 * numbers[1] - 1))
    width, height = min(np.sqrt(area * ratio), size[0]), min(np.sqrt(area / ratio), size[1])
    left, top = (size[0] - width) * numbers[2], (size[1] - height) * numbers[3]
    return left, top, left + width, top + height


def open_image(name: str, data: bytes | Image.Image) -> Image.Image:
    """Open a file's bytes as an image with known size and mode, not decoded. Raises UserError if it is damaged."""
    try:
        return data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise damage_error(name, error) from error


def decode(name: str, data: bytes | Image.Image, channels: int) -> Image.Image:
    """Decode a file's bytes as a gray or colour image. Raises UserError if it is damaged."""
    try:
        return open_image(name, data).convert(MODES[channels])
    except (OSError, SyntaxError) as error:
        raise damage_error(name, error) from error


def damage_error(name: str, error: Exception) -> UserError:
    """Make the error for an image that cannot be decoded."""
    return UserError(f"image {name} cannot be decoded ({error}); repair or remove it.")


class Tensors:
    """Images that a user's own data set returns as float tensors (C, H, W): used unchanged, never augmented."""

    slow = True

    def __init__(self, rows: Sequence):
        self.rows = rows

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        return torch.stack([self.rows[index][1] for index in indices.tolist()]).float()
