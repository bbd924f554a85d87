"""Bicubic resizing as MATLAB's imresize does it, by which images for super-resolution are made.

Each side is a matrix of weights over pixels: Keys' cubic kernel with a = -0.5, and where the image gets smaller the
kernel is stretched by the scale, so that it averages instead of leaving pixels out. Beyond its borders the image is
continued as in a mirror. Source: Keys, IEEE Trans. ASSP 1981; imresize of MATLAB. Pillow and torch (antialias=True) use
the same kernel, but cut it off at the borders.
"""

import numpy as np

A = -0.5  # of Keys' kernel
SUPPORT = 2.0  # pixels to each side of the center, before the kernel is stretched


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image.

    Args:
        image: (H, W, C), of any type of number.
        height: The height of the result in pixels.
        width: The width of the result in pixels.

    Returns:
        float64 (height, width, C), neither rounded nor cut off.
    """
    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float64), columns, optimize=True)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Round an image to whole numbers from 0 to 255, as files of 8 bits hold them; halves go up, as in MATLAB."""
    return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)


def weights(before: int, after: int) -> np.ndarray:
    """Make the matrix (after, before) that resizes one side of an image; every row sums to 1."""
    scale = after / before
    stretch = max(1.0, 1 / scale)
    centers = (np.arange(after) + 0.5) / scale - 0.5
    first = np.floor(centers - SUPPORT * stretch).astype(int)
    taps = first[:, None] + np.arange(int(np.ceil(2 * SUPPORT * stretch)) + 2)
    values = cubic((centers[:, None] - taps) / stretch)
    values /= values.sum(1, keepdims=True)
    found = np.zeros((after, before))
    np.add.at(found, (np.arange(after)[:, None], mirrored(taps, before)), values)
    return found


def cubic(x: np.ndarray) -> np.ndarray:
    """Evaluate Keys' cubic kernel at distances in pixels."""
    x = np.abs(x)
    near = (A + 2) * x**3 - (A + 3) * x**2 + 1
    far = A * x**3 - 5 * A * x**2 + 8 * A * x - 4 * A
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def mirrored(positions: np.ndarray, size: int) -> np.ndarray:
    """Return the pixels that positions outside 0..size-1 show in a mirror whose edge is that of the image."""
    around = positions % (2 * size)
    return np.minimum(around, 2 * size - 1 - around)
