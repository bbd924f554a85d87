"""Small networks from images to images, and folders of images for them."""

from pathlib import Path

import torch
from torch import nn

from tests.lib.pictures import write_pictures


class Denoiser(nn.Module):
    """Three convolutions, with norms, to the noise."""

    def __init__(self, in_shape: tuple[int, int, int] = (1, 16, 16), width: int = 8):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_shape[0], width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, in_shape[0], 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.body(x)


class Enlarger(nn.Module):
    """Two convolutions and a pixel shuffle, beside the enlarged input."""

    def __init__(self, in_shape: tuple[int, int, int] = (3, 8, 8), scale: int = 2, width: int = 8):
        super().__init__()
        self.enlarge = nn.Upsample(scale_factor=scale, mode="nearest")
        self.body = nn.Sequential(
            nn.Conv2d(in_shape[0], width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
            nn.Conv2d(width, in_shape[0], 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.enlarge(x) + self.body(x)


def arguments(folder: Path, task: str) -> list[str]:
    """The arguments of `prunus run` for a few seconds of a task on generated images below `folder`."""
    gray = {"denoise": 1, "sr": 3}[task]
    images = write_pictures(folder / f"images-{task}", 12, channels=gray)
    common = ["--data", f"imagefolder:{images}", "--base-epochs", "3", "--epochs", "2"]
    own = {
        "denoise": ["--sigma", "40", "--model", "tests.lib.restoring:Denoiser", "--patch", "16"],
        "sr": ["--scale", "2", "--model", "tests.lib.restoring:Enlarger", "--patch", "16"],
    }[task]
    return ["run", "--task", task, *common, *own, "--patches", "4", "--batch-size", "8"]
