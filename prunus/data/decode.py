"""Decoding: an encoded image becomes a gray or colour one, upright, its pixels from 0 to 255.

    8 bits and palettes     as they are
    16 and 32 bits          scaled by the range of their type, kept as float: nothing is saturated or rounded
    float                   must lie in 0..1, as torchvision expects, and is scaled by 255
    CMYK, YCbCr             converted to RGB
    alpha                   dropped, as torchvision's ImageFolder does (`convert("RGB")`); nothing is composited
    EXIF orientation        undone, so that an image is read as it is looked at; a damaged EXIF block is ignored

Colour images of more than 8 bits a channel are read by Pillow with 8; those that it cannot read are refused.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from prunus.errors import UserError

Encoded = bytes | Path | Image.Image | None  # None: a row of a table that should hold an image holds none
MODES = {1: "L", 3: "RGB"}
DEEP = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}  # Pillow's modes of one channel of more than 8 bits
GRAY = {"1", "L", "LA", "La"} | DEEP
ORIENTATION = 0x0112  # the tags of EXIF, and of TIFF below
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS, SAMPLE_FORMAT, SIGNED = 258, 339, 2


def read_bytes(name: str, data: Encoded) -> bytes | Image.Image:
    """Read an image's bytes; an open image is returned as it is. Raises UserError if there are none."""
    if data is None:
        raise UserError(f"image {name} is missing; repair or remove the row.")
    try:
        return data.read_bytes() if isinstance(data, Path) else data
    except OSError as error:
        raise UserError(f"image {name} cannot be read: {error}.") from error


def header(name: str, data: Encoded) -> tuple[str, tuple[int, int]]:
    """Read the mode and the upright (width, height) of an image without decoding it; UserError if it is damaged."""
    if isinstance(data, Path):  # of which only the beginning is read
        with open_image(name, data) as image:
            return image.mode, upright_size(image)
    image = open_image(name, read_bytes(name, data))
    return image.mode, upright_size(image)


def open_image(name: str, data: bytes | Path | Image.Image) -> Image.Image:
    """Open an image, not decoded. Raises UserError if it is damaged."""
    if isinstance(data, Image.Image):
        return data
    try:
        return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    except Exception as error:  # decoders raise anything on damaged bytes: struct.error, KeyError, ...
        raise damage_error(name, error) from error


def decode(name: str, data: Encoded, channels: int) -> Image.Image:
    """Decode an image: of mode L or RGB, or F (0..255) where it has one channel of more than 8 bits.

    Raises UserError if it is damaged.
    """
    image = open_image(name, read_bytes(name, data))
    try:
        image.load()
        turn = TURNS.get(orientation(image))  # of a TIFF none: Pillow has turned it when it was decoded
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")  # whose alpha goes below: Pillow warns if it goes here
        image = deep(image) if image.mode in DEEP else image.convert(MODES[channels])
        return image if turn is None else image.transpose(turn)
    except Exception as error:
        raise damage_error(name, error) from error


def pixels(image: Image.Image, channels: int) -> np.ndarray:
    """Return the pixels of a decoded image (H, W, C), 0..255: uint8, or float32 if it has more than 8 bits."""
    values = np.asarray(image).reshape(image.height, image.width, -1)
    return values if values.shape[-1] == channels else values.repeat(channels, -1)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) of an image that is not decoded, as they are when it is upright."""
    turned = image.format != "TIFF" and orientation(image) in (5, 6, 7, 8)
    width, height = image.size
    return (height, width) if turned else (width, height)


def orientation(image: Image.Image) -> int:
    """Return the orientation in an image's EXIF block; 1, which is upright, if there is none or it is damaged."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # the image itself may be whole
        return 1


def deep(image: Image.Image) -> Image.Image:
    """Scale an image of one channel of more than 8 bits to 0..255, mode F."""
    if image.mode == "F":
        values = np.asarray(image)
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"it holds numbers from {low:.6g} to {high:.6g}, but float images should hold 0 to 1"
            )
        return Image.fromarray(values * np.float32(255))
    tags = getattr(image, "tag_v2", {})
    bits, signed = tags.get(BITS, (16,))[0], tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED
    if image.mode == "I" and image.format is None:
        raise ValueError(
            "integers of 32 bits have no usual range; hand in uint8, uint16, or float from 0 to 1"
        )
    values = np.asarray(image).astype(np.int64) if signed or bits < 32 else np.asarray(image).view(np.uint32)
    return Image.fromarray((values * (255 / (2 ** (bits - signed) - 1))).astype(np.float32))


def damage_error(name: str, error: Exception) -> UserError:
    """Make the error for an image that cannot be decoded."""
    if isinstance(error, UnidentifiedImageError):  # whose own words name an address in memory
        return UserError(
            f"image {name} cannot be decoded (it begins like no format that Pillow reads); repair or remove it, or "
            "convert it to JPEG or PNG if it is HEIC or raw."
        )
    return UserError(f"image {name} cannot be decoded ({error}); repair or remove it.")
