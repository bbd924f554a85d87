"""A made-up regression task: small images freed of noise, judged by the peak signal-to-noise ratio in dB."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.data import Data, Split
from prunus.errors import UserError
from prunus.metrics import Metric
from prunus.tasks import Task
from prunus.train import Recipe, in_mode


class Noisy:
    """Images (1, 8, 8) with noise; a source as `prunus.data.Split` reads it."""

    slow = False

    def __init__(self, images: Tensor):
        self.images = images

    def read(self, indices: np.ndarray, draw: np.random.Generator | None) -> Tensor:
        return self.images[indices]


def noisy_waves(count: int = 240) -> Data:
    """Plane waves of random direction and phase with Gaussian noise; the target is the wave without it."""
    generator = torch.Generator().manual_seed(0)
    frequency, phase = (torch.rand(count, n, generator=generator) * 3 for n in (2, 1))
    place = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"))
    waves = torch.sin(torch.einsum("nc,chw->nhw", frequency, place) + phase[:, :, None])[:, None]
    noisy = Noisy(waves + 0.5 * torch.randn(waves.shape, generator=generator))

    def split(start: int, stop: int) -> Split:
        return Split(noisy, waves[start:stop].numpy(), np.arange(start, stop))

    parts = split(0, count // 2), split(count // 2, 3 * count // 4), split(3 * count // 4, count)
    return Data("waves", None, noisy.images[:1], *parts)


class Denoising(Task):
    """Removes noise."""

    metric = Metric(key="psnr", unit="dB")

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output.float(), target)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        device, total = next(model.parameters()).device, 0.0
        with in_mode(model, False):
            for x, y in split.batches(64):
                total += float((model(x.to(device)) - y.to(device)).square().mean((1, 2, 3)).sum())
        error = total / len(split)
        return {self.metric.key: 10 * math.log10(4 / error), "loss": error}

    def recipe(self, purpose: str) -> Recipe:
        epochs = {"scratch": 6, "tune": 3, "recover": 3}[purpose]
        recipe = Recipe(epochs=epochs, batch_size=32, optimizer="adamw", lr=5e-3, precision="no")
        return recipe.adapt(**self.recipe_fields)

    def check(self, model: nn.Module) -> None:
        if model(self.example).shape != self.example.shape:
            raise UserError("a denoiser's output has the shape of its input.")

    def asked_of_model(self) -> dict[str, Any]:
        return {}


def denoiser(width: int = 24) -> nn.Module:
    """Three convolutions, with norms."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 1, 3, padding=1),
    )
