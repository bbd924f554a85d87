"""Prune a network for a task of your own: a loss, a metric in its own unit, and a recipe.

The task removes noise from scikit-learn's digits and is judged by the peak signal-to-noise ratio in dB. Training,
pruning, proof, recovery and report work as for images and classes. Run it with `python examples/own_task.py`.
"""

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import prunus
from prunus.data import Data, Split
from prunus.errors import UserError
from prunus.metrics import Metric
from prunus.run import Settings
from prunus.tasks import Task
from prunus.train import Recipe, in_mode


class Denoising(Task):
    """Maps noisy images (B, 1, 8, 8) to clean ones."""

    metric = Metric(key="psnr", unit="dB")  # what is shown; higher is better

    def loss(self, output, target):
        return F.mse_loss(output.float(), target)

    @torch.no_grad()
    def evaluate(self, model, split):
        with in_mode(model, False):  # evaluation mode, and the mode of before afterwards
            errors = [F.mse_loss(model(x), y).item() * len(y) for x, y in split.batches(256)]
        error = sum(errors) / len(split)
        return {"psnr": 10 * math.log10(1 / error), "loss": error}

    def recipe(self, purpose):
        recipe = Recipe(epochs=4, batch_size=64, optimizer="adamw", lr=5e-3, precision="no")
        return recipe.adapt(**self.recipe_fields)

    def check(self, model):
        if model(self.example).shape != self.example.shape:
            raise UserError("a denoiser's output should have the shape of its input.")

    def asked_of_model(self):
        return {}


class Noisy:
    """A source of images: `read` gives those at some indices, the same noise on an image every time."""

    slow = False  # no need to read ahead

    def __init__(self, clean: Tensor):
        self.images = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))

    def read(self, indices, rng):
        return self.images[indices]


def main() -> None:
    """Train, prune to half the multiply-adds, recover."""
    torch.manual_seed(0)
    clean = torch.tensor(load_digits().images[:, None] / 16, dtype=torch.float32)
    source, order = Noisy(clean), np.random.default_rng(0).permutation(len(clean))
    splits = [Split(source, clean[part].numpy(), part) for part in np.split(order, [1200, 1400])]
    data = Data("noisy digits", None, source.images[:1], *splits)
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 1, 3, padding=1)),
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(method="taylor", base_epochs=6)
        result = prunus.prune(task=Denoising(model, data), out=Path(folder, "run"), settings=settings)
    before, after = result.values["before"], result.values["after"]
    print(f"multiply-adds left: {after['macs'] / before['macs']:.0%}")
    print(f"psnr before and after: {before['psnr']:.2f} dB {after['psnr']:.2f} dB")


if __name__ == "__main__":
    main()
