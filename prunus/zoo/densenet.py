"""DenseNet-40 (growth 12, no bottleneck): Huang et al., CVPR 2017, arXiv:1608.06993, table 2.

A stem of 16 channels, three blocks of 12 layers that each append 12 channels to their input, transitions of
unchanged width. With 10 classes: 1,019,722 parameters (the paper: 1.0 M), 264.8 M multiply-adds.
Shapes: images (B, in_width, 32, 32); output (B, classes).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.zoo.resnet import init

STEM, GROWTH, LAYERS = 16, 12, 12


class DenseLayer(nn.Module):
    """Norm, ReLU and a 3x3 convolution whose `growth` channels are appended to the input's."""

    def __init__(self, in_width: int, growth: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(in_width)
        self.conv = nn.Conv2d(in_width, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Transition(nn.Module):
    """Norm, ReLU, a 1x1 convolution of the same width, and a pooling that halves the image's side."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """Stem, three dense blocks with transitions between them, norm, global average, linear layer."""

    def __init__(self, classes: int, in_width: int = 3):
        super().__init__()
        self.stem = nn.Conv2d(in_width, STEM, 3, padding=1, bias=False)
        self.block1 = dense_block(STEM)
        self.transition1 = Transition(STEM + LAYERS * GROWTH)
        self.block2 = dense_block(STEM + LAYERS * GROWTH)
        self.transition2 = Transition(STEM + 2 * LAYERS * GROWTH)
        self.block3 = dense_block(STEM + 2 * LAYERS * GROWTH)
        width = STEM + 3 * LAYERS * GROWTH
        self.norm = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, classes)
        self.apply(init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition1(self.block1(self.stem(x)))
        x = self.block3(self.transition2(self.block2(x)))
        return self.linear(F.relu(self.norm(x)).mean((2, 3)))


def dense_block(in_width: int) -> nn.Sequential:
    """Build twelve dense layers, each reading 12 channels more than the one before."""
    return nn.Sequential(*(DenseLayer(in_width + i * GROWTH, GROWTH) for i in range(LAYERS)))


def densenet40(classes: int, in_width: int) -> DenseNet:
    """Build DenseNet-40 with growth 12."""
    return DenseNet(classes, in_width)
