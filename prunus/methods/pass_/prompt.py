"""Visual prompts: learned numbers that are added to every image while the network that reads it is frozen.

    pad       a frame along the border         Bahng et al., arXiv:2203.17274; zero initially, as in VPNs
    fixed     a square in the upper left corner
    random    a square at another place in every step

The prompt is added to normalised images, as the network reads them. Shapes: images (B, C, H, W).
"""

import io
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from prunus.errors import UserError, unknown

Kind = Literal["pad", "fixed", "random"]
How = Literal["add", "replace"]
PAD = 16 / 224  # of an image's shorter side: 16 pixels of 224, 2 of 32 (the best in VPNs)
PATCH = 1 / 4  # of an image's shorter side (ours)


class Prompt(nn.Module):
    """A prompt for images of one shape.

    Args:
        shape: (C, H, W).
        kind: "pad", "fixed" or "random".
        size: Width of the frame or side of the square, in pixels; None: 16 of 224, or a quarter of the side.
        how: "add" it to the pixels, or "replace" them.
        speed: How many times as fast as other parameters it learns under an optimiser that ignores the size of
            gradients (Adam): the prompt is `speed * values`.

    Raises:
        UserError: `kind` is unknown, or the prompt does not fit on the image.
    """

    frame: Tensor

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
        channels, height, width = shape
        self.shape, self.kind, self.how, self.speed = (channels, height, width), kind, how, speed
        self.size = fit_size(self.shape, kind, size)
        square = torch.zeros(1, height, width)
        if kind == "pad":
            square[:] = 1.0
            square[:, self.size : height - self.size, self.size : width - self.size] = 0.0
        else:
            square[:, : self.size, : self.size] = 1.0
        self.register_buffer("frame", square, persistent=False)
        self.values = nn.Parameter(torch.zeros(channels, height, width))

    def canvas(self) -> Tensor:
        """The prompt (C, H, W), zero outside of its frame or square."""
        return self.speed * self.values * self.frame

    def forward(self, x: Tensor) -> Tensor:
        """The images with the prompt on them. Raises UserError for images of another shape, or of integers."""
        if x.shape[1:] != self.shape or not x.is_floating_point():
            raise UserError(
                f"the prompt was made for float images of shape {self.shape}, but got {tuple(x.shape[1:])}, "
                f"{x.dtype}; bring all images to one size (image_size), or take prompt=none."
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
        """The prompt as a PNG file; gray is zero."""
        canvas = self.canvas().cpu()
        pixels = (127.5 + 127.5 * canvas / canvas.abs().max().clamp_min(1e-12)).round().byte()
        pixels = pixels.permute(1, 2, 0)[..., : 3 if len(canvas) >= 3 else 1]
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1).numpy()).save(file, "PNG")
        return file.getvalue()


class Prompted(nn.Module):
    """A prompt followed by a network."""

    def __init__(self, prompt: Prompt, network: nn.Module):
        super().__init__()
        self.prompt, self.network = prompt, network

    def forward(self, x: Tensor) -> Any:
        """The network's output for the images with the prompt on them."""
        return self.network(self.prompt(x))


def image_shape(example: Any) -> tuple[int, int, int]:
    """The shape (C, H, W) of the images in an example of a network's input. Raises UserError if it has no images."""
    # a single argument of the network, by position or name
    if isinstance(example, (tuple, list, dict)) and len(example) == 1:
        example = next(iter(example.values() if isinstance(example, dict) else example))
    if isinstance(example, Tensor) and example.dim() == 4 and example.is_floating_point():
        _, channels, height, width = example.shape
        return channels, height, width
    seen = (
        f"{tuple(example.shape)} {example.dtype}" if isinstance(example, Tensor) else type(example).__name__
    )
    raise UserError(
        "a visual prompt is added to images: the example should be one float tensor (B, C, H, W), but is "
        f"{seen}. Take prompt=none."
    )


def fit_size(shape: tuple[int, int, int], kind: Kind, size: int | None) -> int:
    """The size of a prompt in pixels. Raises UserError if it does not fit."""
    side = min(shape[1:])
    most = (side - 1) // 2 if kind == "pad" else side
    if size is None:
        size = max(1, min(round(PAD * side), side // 4)) if kind == "pad" else max(1, round(PATCH * side))
    if not 1 <= size <= most:
        what = "a frame" if kind == "pad" else "a square"
        fits = f"{what} of 1 to {most} pixels fits" if most else f"{what} does not fit"
        raise UserError(
            f"a prompt of {size} pixels on images of {shape[1]}x{shape[2]}: {fits}. Give another prompt_size, larger "
            "images (image_size), or prompt=none."
        )
    return size


def change_first(
    change: Callable[[Tensor], Tensor] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with the first tensor among them changed; as they are without a change."""
    if change is None:
        return args, kwargs
    for place, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:place], change(value), *args[place + 1 :]), kwargs
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            return args, kwargs | {name: change(value)}
    return args, kwargs
