"""Bicubic resizing against Pillow, against torch, and against the formula written out pixel by pixel."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from prunus.data import resize, to_bytes
from tests.lib.pictures import picture

BORDER = 3  # pixels of the smaller image in which a mirrored border differs from one that is cut off


def kernel(x: float) -> float:
    """Keys' cubic convolution kernel, a = -1/2, as in his paper (equation 15)."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def plain(line: list[float], size: int) -> list[float]:
    """One line resized: a weighted mean around the center of each new pixel, the line mirrored at both ends."""
    step = len(line) / size
    wide = max(step, 1.0)
    mirrored = line[::-1] + line + line[::-1]
    found = []
    for number in range(size):
        center = (number + 0.5) * step - 0.5
        taps = range(math.floor(center - 2 * wide), math.ceil(center + 2 * wide) + 1)
        shares = [kernel((tap - center) / wide) for tap in taps]
        values = [mirrored[tap + len(line)] for tap in taps]
        found.append(sum(s * v for s, v in zip(shares, values, strict=True)) / sum(shares))
    return found


@pytest.mark.parametrize("size", [3, 8, 11, 16, 24, 37, 48])
def test_a_line_is_resized_as_the_formula_says(size):
    line = np.random.default_rng(size).uniform(0, 255, 24)
    ours = resize(line[:, None, None], size, 1)[:, 0, 0]
    assert np.abs(ours - plain(line.tolist(), size)).max() < 1e-10
    across = resize(line[None, :, None], 1, size)[0, :, 0]
    assert np.abs(across - ours).max() < 1e-10


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_away_from_the_border_pillow_and_torch_agree(scale):
    image = picture(scale, 60, 84)
    height, width = 60 // scale, 84 // scale
    ours = resize(image, height, width)
    pillow = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    theirs = np.stack([np.asarray(p.resize((width, height), Image.Resampling.BICUBIC)) for p in pillow], -1)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    torchs = (
        F.interpolate(x, size=(height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
    )
    inside = np.s_[BORDER:-BORDER, BORDER:-BORDER]
    assert np.abs(ours - theirs)[inside].max() < 1e-3
    assert np.abs(ours - torchs)[inside].max() < 1e-10
    assert np.abs(ours - torchs).max() > 0.01  # at the border they cut the kernel off


def test_without_antialiasing_it_would_be_another_image():
    image = picture(0, 64, 64)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    plain = F.interpolate(x, scale_factor=0.25, mode="bicubic")[0].permute(1, 2, 0).numpy()
    assert np.abs(resize(image, 16, 16) - plain).max() > 1


def test_an_even_image_stays_and_rounding_is_that_of_files():
    even = np.full((12, 20, 1), 93, np.uint8)
    assert np.abs(resize(even, 3, 5) - 93).max() < 1e-10
    assert to_bytes(np.array([-3.0, 0.49, 0.5, 254.5, 300.0])).tolist() == [0, 0, 1, 255, 255]
