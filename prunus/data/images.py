"""Sources of images: reading them, and augmenting them in a way that depends on the seed alone.

A source has `read(indices, rng)`, which returns float images (B, C, H, W), augmented if a random generator `rng` is
given: `InMemory` for small images of one size, `Lazy` for large images or mixed sizes, `Transformed` for images that
a user's transform reads, `Tensors` for tensors that a user has prepared.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from prunus.data.decode import decode
from prunus.data.preprocessing import Preprocessing
from prunus.data.randomness import own_randomness
from prunus.data.workers import in_worker
from prunus.machine import cores


class InMemory:
    """Small images of one size, decoded once. Augmenting shifts them a little and mirrors colour images.

    pixels: (N, H, W, C), 0..255, uint8 or float32. how: their normalisation.
    """

    slow = False

    def __init__(self, pixels: np.ndarray, how: Preprocessing):
        self.pixels, self.how = torch.from_numpy(pixels), how

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        x = self.pixels[torch.from_numpy(indices)]
        return self.how.normalise(x if rng is None else shift_and_mirror(x, rng))


def shift_and_mirror(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift each image of x (B, H, W, C) by up to an eighth of its height, filling with black.

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
    """Large images or mixed sizes, decoded when read. Augmenting crops and mirrors.

    rows: (name, encoded image) by index. how: their preprocessing.
    """

    slow = True

    def __init__(self, rows: Sequence, how: Preprocessing):
        self.rows, self.how = rows, how

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        numbers = [None] * len(indices) if rng is None else rng.random((len(indices), 5))
        if in_worker():  # beside others, each on a core of its own
            images = list(map(self.read_one, indices.tolist(), numbers))
        else:
            with ThreadPoolExecutor(cores()) as pool:
                images = list(pool.map(self.read_one, indices.tolist(), numbers))
        return default_collate(images).permute(0, 3, 1, 2)  # made in shared memory by a worker; channels-last

    def read_one(self, index: int, numbers: np.ndarray | None) -> Tensor:
        """Decode, crop, resize and normalise an image: (H, W, C). numbers: five in 0..1 choose the augmentation."""
        name, encoded = self.rows[index]
        image = decode(name, encoded, self.how.channels)
        box = self.how.box(image) if numbers is None else random_box(image.size, numbers)
        x = self.how.resize(image, box)
        mirrored = numbers is not None and numbers[4] < 0.5
        return self.how.scale(torch.from_numpy(np.ascontiguousarray(x[:, ::-1]) if mirrored else x.copy()))


def random_box(size: tuple[int, int], numbers: np.ndarray) -> tuple[float, float, float, float]:
    """A box of 8 % to 100 % of the area, 3:4 to 4:3, inside the image (Szegedy et al., arXiv:1409.4842, section 6)."""
    area = size[0] * size[1] * (0.08 + 0.92 * numbers[0])
    ratio = np.exp(np.log(4 / 3) * (2 * numbers[1] - 1))
    width, height = min(np.sqrt(area * ratio), size[0]), min(np.sqrt(area / ratio), size[1])
    left, top = (size[0] - width) * numbers[2], (size[1] - height) * numbers[3]
    return left, top, left + width, top + height


class Transformed:
    """Images that a user's transform reads. What is random in it depends on the random generator alone.

    rows: (name, encoded image) by index. how: their preprocessing, by a transform.
    """

    slow = False  # a thread that reads ahead would share its random states

    def __init__(self, rows: Sequence, how: Preprocessing):
        self.rows, self.how = rows, how

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        draws = [()] * len(indices) if rng is None else rng.integers(1, 2**32, (len(indices), 1)).tolist()
        with own_randomness():
            read = zip(indices.tolist(), draws, strict=True)
            return torch.stack([self.how.transformed(*self.rows[index], *draw) for index, draw in read])


class Tensors:
    """Images that a user's own data set returns as float tensors (C, H, W): used unchanged, never augmented."""

    slow = True

    def __init__(self, rows: Sequence):
        self.rows = rows

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        return torch.stack([self.rows[index][1] for index in indices.tolist()]).float()
