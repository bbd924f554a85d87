"""MobileNetV2 for 32x32 pictures: Sandler et al., CVPR 2018, arXiv:1801.04381, table 2.

The paper's widths and repetitions; for small pictures the stem and the second stage keep the side
(strides 2, 2 -> 1, 1). With 10 classes: 2,236,682 parameters, 88.0 M multiply-adds.
Shapes: pictures (B, in_width, 32, 32); output (B, classes).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from prunus.zoo.resnet import init

# expansion, width, repetitions, stride of the first
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, HEAD = 32, 1280


def conv_norm(in_width: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias and its norm."""
    conv = nn.Conv2d(in_width, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width)]


class InvertedResidual(nn.Module):
    """Widen (1x1), filter each plane (3x3 depthwise), narrow (1x1, linear); the input is added if it fits."""

    def __init__(self, in_width: int, width: int, stride: int, expansion: int):
        super().__init__()
        hidden = in_width * expansion
        widen = [*conv_norm(in_width, hidden, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        depthwise = [*conv_norm(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*widen, *depthwise, *conv_norm(hidden, width, 1))
        self.carries = stride == 1 and in_width == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.carries else self.layers(x)


class MobileNetV2(nn.Module):
    """Stem, 17 inverted residuals, a 1x1 convolution to 1280, global average, linear layer."""

    def __init__(self, classes: int, in_width: int = 3):
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(in_width, STEM, 3), nn.ReLU6(inplace=True))
        blocks, width_before = [], STEM
        for expansion, width, repetitions, stride in STAGES:
            for i in range(repetitions):
                blocks.append(InvertedResidual(width_before, width, stride if i == 0 else 1, expansion))
                width_before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*conv_norm(width_before, HEAD, 1), nn.ReLU6(inplace=True))
        self.linear = nn.Linear(HEAD, classes)
        self.apply(init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def mobilenet_v2(classes: int, in_width: int) -> MobileNetV2:
    """MobileNetV2 of width 1 for small pictures."""
    return MobileNetV2(classes, in_width)
