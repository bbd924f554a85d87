"""Inference on images of any size, by parts that overlap where a network cannot take the whole at once.

A part is answered with a margin around it that is at least as wide as the network sees, so that the parts joined equal
the answer to the whole image, up to rounding. Parts begin at multiples of 64 pixels: networks that pool or stride by up
to 64 see each of them as they see the whole.

How far a network sees is measured, not derived: in an image of zeros one half is set to NaN, which spreads through
convolutions, norms, activations and maximums to every output that depends on that half, and to no other. A backward
pass would miss what a maximum or an activation of zero did not let through. One forward pass in double precision shows
both directions of a side. Source: ours.
"""

import copy

import torch
from torch import Tensor, nn

from prunus.train import in_mode

LIMIT_PIXELS = 1024 * 1024  # of the input; larger images are answered by parts
STEP = 64  # pixels; parts begin at multiples
TILE = 512  # pixels; the side of a part without its margin
FIRST, LAST = 128, 4096  # pixels; the longest sides of the images on which sight is measured


class Restorer:
    """A network that answers whole images, by parts if they are large.

    Args:
        model: The network, which maps images (1, C, H, W) to (1, C, scale * H, scale * W).
        scale: How many times larger the sides of its answers are.
        limit: The most pixels that are answered at once.
    """

    def __init__(self, model: nn.Module, scale: int = 1, limit: int = LIMIT_PIXELS):
        self.model, self.scale, self.limit = model, scale, limit
        self._sight: dict[int, int | None] = {}  # by channels

    def __call__(self, x: Tensor) -> Tensor:
        """Answer an image (1, C, H, W)."""
        channels, height, width = x.shape[1:]
        if height * width <= self.limit:
            return self.model(x)
        if channels not in self._sight:
            self._sight[channels] = sight(self.model, channels, self.scale)
        found = self._sight[channels]
        return self.model(x) if found is None else tiled(self.model, x, self.scale, found)


def tiled(model: nn.Module, x: Tensor, scale: int, margin: int, tile: int = TILE) -> Tensor:
    """Answer an image by parts.

    Args:
        model: The network, which maps images (1, C, H, W) to (1, C, scale * H, scale * W).
        x: The image (1, C, H, W).
        scale: How many times larger the sides of the answer are.
        margin: How far the network sees, in pixels of x; see `sight`.
        tile: The side of a part in pixels of x, a multiple of 64.

    Returns:
        The answer, equal to that to the whole image up to rounding.
    """
    height, width = x.shape[-2:]
    margin = -(-margin // STEP) * STEP
    rows = []
    for top in range(0, height, tile):
        parts = []
        for left in range(0, width, tile):
            first = max(0, top - margin), max(0, left - margin)
            part = x[..., first[0] : top + tile + margin, first[1] : left + tile + margin]
            y = model(part)
            begin = [scale * (a - b) for a, b in zip((top, left), first, strict=True)]
            parts.append(y[..., begin[0] :, begin[1] :][..., : scale * tile, : scale * tile])
        rows.append(torch.cat(parts, -1))
    return torch.cat(rows, -2)


@torch.no_grad()
def sight(model: nn.Module, channels: int, scale: int) -> int | None:
    """Measure how far a network sees: the largest distance of an input pixel that an output depends on.

    Args:
        model: The network; a copy is run in evaluation mode and double precision on the processor.
        channels: The channels of its images.
        scale: How many times larger the sides of its answers are.

    Returns:
        The distance in pixels of the input along a side; None if it sees further than 2,048 pixels, as one with a
        pooling of the whole image does.
    """
    double = copy.deepcopy(model).to("cpu").double()
    with in_mode(double, False):
        found = [along(double, channels, scale, dim) for dim in (-2, -1)]
    known = [each for each in found if each is not None]
    return max(known) if len(known) == len(found) else None


def along(model: nn.Module, channels: int, scale: int, dim: int) -> int | None:
    """Measure how far a network sees along one side of the image."""
    side = FIRST
    while side <= LAST:
        half = side // 2
        x = torch.zeros(2, channels, STEP, side, dtype=torch.float64)
        x[0, ..., :half] = x[1, ..., half:] = torch.nan
        y = model(x if dim == -1 else x.mT)
        lost = (y if dim == -1 else y.mT).isnan().any(1).any(1)  # (2, scale * side)
        middle, (ahead, behind) = scale * half, (each.nonzero().flatten().tolist() for each in lost)
        reach = -(-max(ahead[-1] + 1 - middle, middle - behind[0]) // scale)
        if reach < half:
            return reach
        side *= 2
    return None
