"""Visual prompts: numbers that are added to every picture and learned, while the network that reads it is frozen.

    pad       a frame along the border         Bahng et al., arXiv:2203.17274; zero at first, as in VPNs
    fixed     a square in the upper left corner
    random    a square, somewhere else in every step

The prompt is added to the pictures as the network gets them, normalised; what it is added to stays to be seen.
Shapes: pictures (B, C, H, W).
"""

import io
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from prunus.errors import UserError, unknown

Kind = Literal["pad", "fixed", "random"]
How = Literal["add", "replace"]
PAD = 16 / 224  # of a picture's shorter side: 16 pixels of 224, 2 of 32 (VPNs' best)
PATCH = 1 / 4  # of a picture's shorter side (ours)


class Prompt(nn.Module):
    """A prompt for pictures of `shape` (C, H, W).

    size: of the frame's width or the square's side, in pixels; None: 16 of 224, a quarter of the side.
    how: add it, or replace what is there by it. speed: how many times as fast it learns as other parameters, under an
    optimiser for which the size of gradients does not count (Adam): the prompt is `speed * values`.
    Raises UserError for a prompt that does not fit on the picture.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        kind: Kind = "pad",
        size: int | None = None,
        how: How = "add",
        speed: float = 1.0,
    ):
        super().__init__()
        if kind not in get_args(Kind):
            raise unknown("prompt", kind, get_args(Kind))
        self.shape, self.kind, self.how, self.speed = tuple(shape), kind, how, speed
        self.size = fitting(self.shape, kind, size)
        planes, height, width = self.shape
        square = torch.zeros(1, height, width)
        if kind == "pad":
            square[:] = 1.0
            square[:, self.size : height - self.size, self.size : width - self.size] = 0.0
        else:
            square[:, : self.size, : self.size] = 1.0
        self.register_buffer("frame", square, persistent=False)
        self.values = nn.Parameter(torch.zeros(planes, height, width))

    def canvas(self) -> Tensor:
        """(C, H, W): the prompt, zero where it does not reach."""
        return self.speed * self.values * self.frame

    def forward(self, x: Tensor) -> Tensor:
        """The pictures with the prompt on them. Raises UserError for pictures of another shape, or of whole numbers,
        to which nothing small can be added."""
        if x.shape[1:] != self.shape or not x.is_floating_point():
            raise UserError(
                f"the prompt was made for float pictures of shape {self.shape}, but got {tuple(x.shape[1:])}, "
                f"{x.dtype}; bring all pictures to one size (image_size), or go without (prompt=none)."
            )
        canvas, frame = self.canvas(), self.frame
        if self.kind == "random":
            _, height, width = self.shape
            down, right = (int(torch.randint(side - self.size + 1, ())) for side in (height, width))
            canvas, frame = (
                F.pad(
                    t[:, : self.size, : self.size],
                    (right, width - right - self.size, down, height - down - self.size),
                )
                for t in (canvas, frame)
            )
        under = x if self.how == "add" else x * (1 - frame).to(x.dtype)
        return under + canvas.to(x.dtype)

    @torch.no_grad()
    def png(self) -> bytes:
        """The prompt as a PNG file: gray is zero."""
        canvas = self.canvas().cpu()
        pixels = (127.5 + 127.5 * canvas / canvas.abs().max().clamp_min(1e-12)).round().byte()
        pixels = pixels.permute(1, 2, 0)[..., : 3 if len(canvas) >= 3 else 1]
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1).numpy()).save(file, "PNG")
        return file.getvalue()


class Prompted(nn.Module):
    """A network behind a prompt."""

    def __init__(self, prompt: Prompt, network: nn.Module):
        super().__init__()
        self.prompt, self.network = prompt, network

    def forward(self, x: Tensor) -> Any:
        """What the network makes of the pictures with the prompt on them."""
        return self.network(self.prompt(x))


def picture_shape(example: Any) -> tuple[int, int, int]:
    """The shape (C, H, W) of the pictures in an example of a network's input. Raises UserError if it is none."""
    if (
        isinstance(example, (tuple, list, dict)) and len(example) == 1
    ):  # arguments of the network, by place or name
        example = next(iter(example.values() if isinstance(example, dict) else example))
    if isinstance(example, Tensor) and example.dim() == 4 and example.is_floating_point():
        return tuple(example.shape[1:])
    seen = (
        f"{tuple(example.shape)} {example.dtype}" if isinstance(example, Tensor) else type(example).__name__
    )
    raise UserError(
        "a visual prompt is added to pictures: the example should be one float tensor (B, C, H, W), but is "
        f"{seen}. Go without: prompt=none."
    )


def fitting(shape: tuple[int, int, int], kind: Kind, size: int | None) -> int:
    """The size of a prompt in pixels. Raises UserError if it does not fit."""
    side = min(shape[1:])
    most = (side - 1) // 2 if kind == "pad" else side
    if size is None:
        size = max(1, min(round(PAD * side), side // 4)) if kind == "pad" else max(1, round(PATCH * side))
    if not 1 <= size <= most:
        what = "a frame" if kind == "pad" else "a square"
        room = f"{what} of 1 to {most} pixels fits" if most else f"{what} does not fit"
        raise UserError(
            f"a prompt of {size} pixels on pictures of {shape[1]}x{shape[2]}: {room}. Give "
            "prompt_size, larger pictures (image_size), or go without (prompt=none)."
        )
    return size
