"""Labelled pictures and batches of them, in an order and with changes that depend on the seed alone.

A Split is labels and a source of pictures. A source has `read(indices, draw)`, which gives float pictures
(B, C, H, W), changed at random where a generator `draw` is given: `InMemory` for small pictures of one size,
`Lazy` for large or varied ones, `Ready` for tensors a user has prepared.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunus.errors import UserError

# Planes -> mean and standard deviation over 0..1. For colour ImageNet's, which published weights expect.
NORMS = {1: ((0.3,), (0.35,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
MODES = {1: "L", 3: "RGB"}
DECODERS = 2  # threads


class InMemory:
    """Small pictures of one size, decoded once. Training shifts them a little; colour ones are also mirrored.

    pixels: uint8 (N, H, W, C).
    """

    slow = False

    def __init__(self, pixels: np.ndarray):
        self.pixels = torch.from_numpy(pixels)
        mean, std = (torch.tensor(values) for values in NORMS[pixels.shape[-1]])
        # (pixel / 255 - mean) / std as one multiplication and one addition
        self.scale, self.offset = 1 / (255 * std), -mean / std

    def read(self, indices: np.ndarray, draw: np.random.Generator | None) -> Tensor:
        x = self.pixels[torch.from_numpy(indices)]
        if draw is not None:
            x = moved(x, draw)
        # the memory is laid out channels-last already, so this view is, too
        return (x * self.scale + self.offset).permute(0, 3, 1, 2)


def moved(x: Tensor, draw: np.random.Generator) -> Tensor:
    """Each picture of x uint8 (B, H, W, C) shifted by up to an eighth of its height, black coming in.

    Colour ones are mirrored half of the time. Gray ones are mostly signs, which have a right way round: they
    move by up to a fourteenth and are never mirrored.
    """
    count, height, width, planes = x.shape
    reach = height // 8 if planes == 3 else max(height // 14, 1)
    top, left = torch.from_numpy(draw.integers(0, 2 * reach + 1, (2, count)))
    mirror = torch.from_numpy(draw.integers(0, 2, count) * (planes == 3))
    rows = top[:, None] + torch.arange(height)
    columns = torch.arange(width).expand(count, -1)
    columns = left[:, None] + torch.where(mirror[:, None] == 1, columns.flip(1), columns)
    padded = torch.nn.functional.pad(x, (0, 0, reach, reach, reach, reach))
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


class Lazy:
    """Large or varied pictures, decoded when asked for. Training crops and mirrors, else the middle is taken.

    rows: gives for an index (name, file's bytes or open picture).
    """

    slow = True

    def __init__(self, rows: Sequence, side: int, planes: int):
        self.rows, self.side, self.planes = rows, side, planes
        self.mean, self.std = (np.array(values, np.float32) for values in NORMS[planes])

    def read(self, indices: np.ndarray, draw: np.random.Generator | None) -> Tensor:
        numbers = [None] * len(indices) if draw is None else draw.random((len(indices), 5))
        with ThreadPoolExecutor(DECODERS) as pool:
            pictures = list(pool.map(self.one, indices.tolist(), numbers))
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)

    def one(self, index: int, numbers: np.ndarray | None) -> np.ndarray:
        name, encoded = self.rows[index]
        picture = decoded(name, encoded, self.planes)
        box = middle(picture.size) if numbers is None else random_box(picture.size, numbers)
        picture = picture.resize((self.side, self.side), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
        if numbers is not None and numbers[4] < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = np.asarray(picture, np.float32).reshape(self.side, self.side, self.planes) / 255
        return (x - self.mean) / self.std


def middle(size: tuple[int, int], share: float = 0.875) -> tuple[float, float, float, float]:
    """The square in the middle, `share` of the shorter side long."""
    side = min(size) * share
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    return left, top, left + side, top + side


def random_box(size: tuple[int, int], numbers: np.ndarray) -> tuple[float, float, float, float]:
    """A part of 8 % to 100 % of the area, 3:4 to 4:3, that fits (Szegedy et al., arXiv:1409.4842, section 6)."""
    area = size[0] * size[1] * (0.08 + 0.92 * numbers[0])
    ratio = np.exp(np.log(4 / 3) * (2 * numbers[1] - 1))
    width, height = min(np.sqrt(area * ratio), size[0]), min(np.sqrt(area / ratio), size[1])
    left, top = (size[0] - width) * numbers[2], (size[1] - height) * numbers[3]
    return left, top, left + width, top + height


def opened(name: str, data: bytes | Image.Image) -> Image.Image:
    """The picture in a file's bytes, its size and mode known. Raises UserError naming it if it is damaged."""
    try:
        return data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise damaged(name, error) from error


def decoded(name: str, data: bytes | Image.Image, planes: int) -> Image.Image:
    """The picture in a file's bytes, in gray or colour. Raises UserError naming it if it is damaged."""
    try:
        return opened(name, data).convert(MODES[planes])
    except (OSError, SyntaxError) as error:
        raise damaged(name, error) from error


def damaged(name: str, error: Exception) -> UserError:
    """The error for a picture that is none."""
    return UserError(f"picture {name} cannot be decoded ({error}); repair or remove it.")


class Ready:
    """Pictures a user's own data set gives as float tensors (C, H, W): used as they are, never changed."""

    slow = True

    def __init__(self, rows: Sequence):
        self.rows = rows

    def read(self, indices: np.ndarray, draw: np.random.Generator | None) -> Tensor:
        return torch.stack([self.rows[index][1] for index in indices.tolist()]).float()
