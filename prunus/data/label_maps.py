"""Label maps, which hold the class of every pixel as a number; and images, each with its label map.

A label map is an image of one number for each pixel: gray of 8 or 16 bits, black and white, or a palette, of which the
number of the colour counts. It is never scaled, and resized by the nearest pixel. JPEG is refused, because it changes
numbers; so are colours, because nothing says which class each stands for.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunus.data.decode import Encoded, damage_error, decode, open_image, pixels, read_bytes
from prunus.data.preprocessing import Preprocessing
from prunus.errors import UserError

MODES = {
    "1",
    "L",
    "P",
    "I",
    "I;16",
    "I;16B",
    "I;16L",
    "I;16N",
}  # Pillow's, of one whole number for each pixel
LARGEST = 2**16  # numbers beyond it are no classes


def read_label_map(name: str, data: Encoded) -> np.ndarray:
    """Read a label map.

    Args:
        name: Its name in messages.
        data: The encoded image.

    Returns:
        The numbers, uint8 or int32 (H, W).

    Raises:
        UserError: It is missing or damaged, holds colours, or is a JPEG.
    """
    image = open_image(name, read_bytes(name, data))
    if image.format == "JPEG":
        raise UserError(f"mask {name} is a JPEG, which changes the numbers of pixels; store masks as PNG.")
    if image.mode not in MODES:
        raise UserError(
            f"mask {name} has the mode {image.mode}; expected one number for each pixel, the class: a gray image or "
            "one with a palette. Convert its colours to the numbers of classes."
        )
    try:
        values = np.asarray(image)
    except Exception as error:  # decoders raise anything on damaged bytes
        raise damage_error(name, error) from error
    if values.max() >= LARGEST:
        raise UserError(f"mask {name} holds the number {values.max()}; classes are below {LARGEST}.")
    return values.astype(np.uint8) if values.max() < 256 else values.astype(np.int32)


class LabelledImages:
    """Images, each with its label map, normalised as classifiers of images read them.

    Args:
        rows: (name, encoded image) by index.
        maps: (name, encoded label map) by index.
        how: The channels and the normalisation.
        size: The side in pixels to which both are resized; None: their own size.
        ignore_index: The number of pixels that do not count; also that of the border around images that are smaller
            than a patch.
        keeps: Whether decoded images are kept in memory.
    """

    def __init__(
        self,
        rows: Sequence[tuple[str, Encoded]],
        maps: Sequence[tuple[str, Encoded]],
        how: Preprocessing,
        *,
        size: int | None,
        ignore_index: int,
        keeps: bool,
    ):
        self.rows, self.maps, self.how = rows, maps, how
        self.size, self.ignore_index, self.keeps = size, ignore_index, keeps
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def described(self) -> str:
        """How images are resized, and which pixels do not count."""
        return f"label maps, size {self.size}, ignored {self.ignore_index}"

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the pixels (H, W, C), 0..255, and the classes (H, W)."""
        if index in self._kept:
            return self._kept[index]
        (name, encoded), (map_name, map_encoded) = self.rows[index], self.maps[index]
        image, classes = decode(name, encoded, self.how.channels), read_label_map(map_name, map_encoded)
        if self.size is not None:
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
            classes = resize_nearest(classes, self.size)
        found = pixels(image, self.how.channels), classes
        if self.keeps:
            self._kept[index] = found
        return found

    def whole(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image float32 (1, C, H, W) and its classes int64 (1, H, W)."""
        image, classes = self.pair(index)
        return self._tensors(image[None], classes[None])

    def patches(
        self, indices: np.ndarray, side: int, rng: np.random.Generator, turn: bool
    ) -> tuple[Tensor, Tensor]:
        """Cut one patch out of each image at a random place, and mirror half of them if `turn` is on.

        An image that is smaller than a patch gets a border of the mean colour, whose pixels do not count.
        """
        count, channels = len(indices), self.how.channels
        numbers = rng.random((count, 3))
        mean = 255 * np.array(self.how.mean, np.float32)
        images = np.broadcast_to(mean, (count, side, side, channels)).copy()
        labels = np.full((count, side, side), self.ignore_index, np.int64)
        for at, (index, (down, right, mirror)) in enumerate(zip(indices.tolist(), numbers, strict=True)):
            image, classes = self.pair(index)
            places = []
            for length, share in zip(classes.shape, (down, right), strict=True):
                room = abs(length - side) + 1  # of the patch in the image, or of the image in the patch
                start = int(share * room)
                places.append((start, 0) if length >= side else (0, start))
            (top, below), (left, beside) = places
            parts = (each[top : top + side, left : left + side] for each in (image, classes))
            part, cut = (each[:, ::-1] if turn and mirror < 0.5 else each for each in parts)
            height, width = cut.shape
            images[at, below : below + height, beside : beside + width] = part
            labels[at, below : below + height, beside : beside + width] = cut
        return self._tensors(images, labels)

    def _tensors(self, images: np.ndarray, classes: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.how.normalise(torch.from_numpy(images.copy())), torch.from_numpy(classes.astype(np.int64))


def resize_nearest(classes: np.ndarray, side: int) -> np.ndarray:
    """Resize a label map (H, W) to a square by the pixel nearest to the middle of each new one."""
    rows, columns = (((np.arange(side) + 0.5) * length / side).astype(int) for length in classes.shape)
    return classes[rows[:, None], columns]
