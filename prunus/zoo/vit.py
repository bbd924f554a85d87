"""A vision transformer for 32x32 images: Dosovitskiy et al., ICLR 2021, arXiv:2010.11929, figure 1 and section 3.1.

`vit_tiny` has the widths of DeiT-Ti (Touvron et al., ICML 2021, arXiv:2012.12877, table 1): 12 blocks, a stream of 192,
3 heads of 64, an MLP of 768. Patches have 4x4 pixels; theirs have 16x16, for images of 224x224.
5,362,762 parameters, 365.1 M multiply-adds (19.5 M of them between tokens), with 10 classes.

Shapes: images (B, in_width, H, W) of one size; output (B, classes). T tokens: the class token, then the patches.
"""

import torch
from torch import Tensor, nn

from prunus.zoo.transformer import Block, init

PATCH = 4


class ViT(nn.Module):
    """A patch embedding, blocks, and a linear layer that reads the class token."""

    def __init__(
        self, classes: int, in_shape: tuple[int, int, int], depth: int, width: int, heads: int, hidden: int
    ):
        super().__init__()
        channels, height, side = in_shape
        self.patches = nn.Conv2d(channels, width, PATCH, stride=PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, 1 + (height // PATCH) * (side // PATCH), width))
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, classes)
        self.apply(init)
        for parameter in (self.token, self.places):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)  # (B, T - 1, width)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.places
        return self.linear(self.norm(self.blocks(x))[:, 0])


def vit_tiny(classes: int, in_shape: tuple[int, int, int]) -> ViT:
    """Build DeiT-Ti's network, with patches of 4x4 pixels."""
    return ViT(classes, in_shape, depth=12, width=192, heads=3, hidden=768)
