"""MobileNetV1 (Howard et al. 2017, arXiv:1704.04861, table 1) and MobileNetV2 (Sandler et al., CVPR 2018,
arXiv:1801.04381, table 2), for three image sizes.

Widths and repetitions are the papers'. For small images some strides are removed, as in DHP (Li et al., ECCV 2020,
arXiv:2003.13683): at 64 pixels (Tiny-ImageNet) V2's second stage keeps the side, at 32 (CIFAR) so does the stem of
both. V1 has no other stride to remove, so at 64 it is the network for 224.
`width` multiplies the width of every layer.

    mobilenet_v1         10 classes    3,217,226 parameters    46.3 M multiply-adds
    mobilenet_v1_64     200            3,411,976               46.5
    mobilenet_v1_224  1,000            4,231,976              568.7
    mobilenet_v2         10            2,236,682               88.0
    mobilenet_v2_64     200            2,480,072               88.2
    mobilenet_v2_224  1,000            3,504,872              300.8

Shapes: images (B, in_width, H, W); output (B, classes).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from prunus.zoo.resnet import init

STEM = 32
# V1: channels and stride of each separable convolution
SEPARABLE = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)
# V2: expansion, channels, repetitions, stride of the first repetition
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
HEAD = 1280


def conv_norm(in_width: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Build a convolution without bias, and its norm."""
    conv = nn.Conv2d(in_width, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width)]


class Separable(nn.Module):
    """Filter each channel (3x3 depthwise), then mix the channels (1x1)."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        depthwise = [*conv_norm(in_width, in_width, 3, stride, groups=in_width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*depthwise, *conv_norm(in_width, width, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class InvertedResidual(nn.Module):
    """Widen (1x1), filter each channel (3x3 depthwise), narrow (1x1, linear); the input is added if shapes agree."""

    def __init__(self, in_width: int, width: int, stride: int, expansion: int):
        super().__init__()
        hidden = in_width * expansion
        widen = [*conv_norm(in_width, hidden, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        depthwise = [*conv_norm(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*widen, *depthwise, *conv_norm(hidden, width, 1))
        self.carries = stride == 1 and in_width == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.carries else self.layers(x)


class MobileNetV1(nn.Module):
    """MobileNetV1: stem, 13 separable convolutions, global average, linear layer. arXiv:1704.04861, table 1.

    Args:
        classes: The number of classes.
        in_width: The number of the image's channels.
        side: The image's side in pixels: 32, 64 or 224.
        width: The factor on the width of every layer.
    """

    def __init__(self, classes: int, in_width: int = 3, side: int = 32, width: float = 1.0):
        super().__init__()
        before = scale_width(STEM, width)
        stem = conv_norm(in_width, before, 3, 1 if side <= 32 else 2)
        self.stem = nn.Sequential(*stem, nn.ReLU(inplace=True))
        blocks = []
        for channels, stride in SEPARABLE:
            blocks.append(Separable(before, scale_width(channels, width), stride))
            before = scale_width(channels, width)
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(before, classes)
        self.apply(init)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class MobileNetV2(nn.Module):
    """MobileNetV2: stem, 17 inverted residuals, 1x1 convolution, global average, linear. arXiv:1801.04381, table 2.

    Args:
        classes: The number of classes.
        in_width: The number of the image's channels.
        side: The image's side in pixels: 32, 64 or 224.
        width: The factor on the width of every layer.
    """

    def __init__(self, classes: int, in_width: int = 3, side: int = 32, width: float = 1.0):
        super().__init__()
        before = scale_width(STEM, width)
        stem = conv_norm(in_width, before, 3, 1 if side <= 32 else 2)
        self.stem = nn.Sequential(*stem, nn.ReLU6(inplace=True))
        blocks = []
        for number, (expansion, channels, repetitions, stride) in enumerate(STAGES):
            for i in range(repetitions):
                halves = i == 0 and stride == 2 and not (number == 1 and side <= 64)
                stride_here = 2 if halves else 1
                blocks.append(InvertedResidual(before, scale_width(channels, width), stride_here, expansion))
                before = scale_width(channels, width)
        self.blocks = nn.Sequential(*blocks)
        head = max(HEAD, scale_width(HEAD, width))  # narrower networks keep 1280, as in the paper
        self.head = nn.Sequential(*conv_norm(before, head, 1), nn.ReLU6(inplace=True))
        self.linear = nn.Linear(head, classes)
        self.apply(init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def scale_width(channels: int, width: float) -> int:
    """Scale a number of channels to the nearest multiple of 8, or to the next one if that is over a tenth too low."""
    nearest = max(8, int(channels * width + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels * width else nearest + 8
