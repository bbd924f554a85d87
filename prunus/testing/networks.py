"""Four tiny networks with one difficulty each, and tiny images for them to classify."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.data import Data, Split, images
from prunus.tasks import Classification
from prunus.train import Recipe

CLASSES, SIDE = 4, 8  # classes; pixels
SIZES = {"train": 128, "val": 32, "test": 32}  # images


class Residual(nn.Module):
    """A stem and a residual block, with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.a, self.norm_a = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.b, self.norm_b = nn.Conv2d(24, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, 4) of images x (B, 1, 8, 8)."""
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))
        return self.head(x.mean((2, 3)))


class Concatenating(nn.Module):
    """Two branches that are concatenated, one of them with a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.left = nn.Conv2d(16, 12, 1)
        self.deep, self.right = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 20, 1)
        self.norm_both, self.point, self.norm_point = (
            nn.BatchNorm2d(32),
            nn.Conv2d(32, 24, 1),
            nn.BatchNorm2d(24),
        )
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, 4) of images x (B, 1, 8, 8)."""
        x = F.relu(self.norm(self.stem(x)))
        x = torch.cat([self.left(x), self.right(F.relu(self.deep(x)))], 1)
        return self.head(F.relu(self.norm_point(self.point(F.relu(self.norm_both(x))))).mean((2, 3)))


class Attending(nn.Module):
    """A transformer block with four heads over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.heads = nn.Linear(SIDE, 32), 4
        self.norm_a, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.norm_m, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, 4) of images x (B, 1, 8, 8), each row of which is a token."""
        x = self.embed(x.squeeze(1))
        q, k, v = self.qkv(self.norm_a(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm_m(x))))
        return self.head(x.mean(1))


class Link(nn.Module):
    """A residual block of one hidden layer, with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Add to features x (B, 8, H, W)."""
        return x + self.down(F.relu(self.up(self.norm(x))))


class Stacked(nn.Module):
    """A stem and six blocks, each of which can be skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.links = nn.Sequential(*(Link() for _ in range(6)))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, 4) of images x (B, 1, 8, 8)."""
        return self.head(F.relu(self.links(self.stem(x))).mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "concatenating": Concatenating,
    "attending": Attending,
    "stacked": Stacked,
}


class TinyClassification(Classification):
    """Classification with recipes that train for a second."""

    def recipe(self, purpose: str) -> Recipe:
        """Return a recipe of three epochs."""
        recipe = Recipe(epochs=3, batch_size=32, lr=0.05, precision="no", channels_last=False)
        return recipe.adapt(**self.recipe_fields)


def tiny_task(network: str, seed: int = 0) -> Classification:
    """Make the task of classifying tiny images, each a class's pattern with noise.

    Args:
        network: A name in `NETWORKS`; its weights are random.
        seed: The seed of weights and images.

    Returns:
        The task: 4 classes, images (1, 8, 8), 128 to train on, 32 each in val and test.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NETWORKS[network]()
    generator = torch.Generator().manual_seed(seed)
    count = sum(SIZES.values())
    patterns = torch.randn(CLASSES, 1, SIDE, SIDE, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    pixels = patterns[labels] + torch.randn(count, 1, SIDE, SIDE, generator=generator)
    source = images.Tensors([(str(number), image) for number, image in enumerate(pixels)])
    ends = np.cumsum([0, *SIZES.values()])
    train, val, test = (
        Split(source, labels[start:stop].numpy(), np.arange(start, stop)) for start, stop in pairwise(ends)
    )
    return TinyClassification(model, Data("tiny images", CLASSES, pixels[:1], train, val, test))
