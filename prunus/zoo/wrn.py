"""Wide residual networks for 32x32 images: Zagoruyko & Komodakis, BMVC 2016, arXiv:1605.07146, table 1.

Norm and ReLU come before each convolution; three stages of widths 16k, 32k, 64k, depth 6n + 4. Where the width
changes, the shortcut is a 1x1 convolution of the first norm's output. With 10 classes:

    wrn_16_8    10,961,370 parameters    1,548.1 M multiply-adds

Shapes: images (B, in_width, 32, 32); output (B, classes).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from prunus.zoo.resnet import init

STEM = 16


class PreactBlock(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice, with a shortcut."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.changes = stride != 1 or in_width != width
        if self.changes:
            self.shortcut = nn.Conv2d(in_width, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        carried = self.shortcut(y) if self.changes else x
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + carried


class WideResNet(nn.Module):
    """Stem, three stages of pre-activation blocks (the last two halve the side), norm, global average, linear."""

    def __init__(self, blocks: int, factor: int, classes: int, in_width: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, STEM, 3, padding=1, bias=False)
        layers, before = [], STEM
        for i in range(3):
            width = STEM * 2**i * factor
            for j in range(blocks):
                layers.append(PreactBlock(before, width, 2 if i and not j else 1))
                before = width
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(before)
        self.linear = nn.Linear(before, classes)
        self.apply(init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.conv1(x))
        return self.linear(F.relu(self.bn(x)).mean((2, 3)))


def wide_resnet(depth: int, factor: int, classes: int, in_width: int) -> WideResNet:
    """Build the network of `depth` = 6n + 4 layers, `factor` times as wide."""
    return WideResNet((depth - 4) // 6, factor, classes, in_width)
