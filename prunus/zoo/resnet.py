"""ResNets for 32x32 images: He et al., CVPR 2016, arXiv:1512.03385, section 4.2.

3 stages of n basic blocks, widths 16, 32, 64, depth 6n + 2, global average, one linear layer.
With zero-padded shortcuts and 10 classes:

    resnet20     269,722 parameters    40.6 M multiply-adds
    resnet32     464,154               68.9 M
    resnet44     658,586               97.2 M
    resnet56     853,018              125.5 M
    resnet110  1,727,962              252.9 M

The bottleneck networks have depth 9n + 2, a stem of 16, stages of widths 64, 128, 256, and projections wherever a
shortcut changes shape. The pruning literature since DHP (Li et al., ECCV 2020, arXiv:2003.13683) calls them ResNet-110
and ResNet-164. Norm and ReLU follow the convolutions.

    resnet110_bottleneck  1,147,738 parameters   167.4 M multiply-adds
    resnet164_bottleneck  1,704,154              247.6 M

`resnet18` and `resnet50` are the networks of four stages in table 1 of the paper, `resnext50` the 32x4d of Xie et al.,
CVPR 2017, arXiv:1611.05431, table 1, in their usual form for small images: 3x3 stem, no pooling, projection shortcuts.

    resnet18    11,173,962 parameters     555.4 M multiply-adds
    resnet50    23,520,842              1,297.8 M
    resnext50   22,992,714              1,344.0 M

Shapes: images (B, 3, 32, 32), or any (B, in_width, H, W); output (B, classes).
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Every second pixel, with `front` zero channels before and `back` after; no parameters (option A)."""

    def __init__(self, front: int, back: int):
        super().__init__()
        self.front, self.back = front, back

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.front, self.back))


def projection(in_width: int, width: int, stride: int) -> nn.Sequential:
    """Build a strided 1x1 convolution and its norm (option B)."""
    conv = nn.Conv2d(in_width, width, 1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


def make_shortcut(in_width: int, width: int, stride: int, shortcut: str) -> nn.Module:
    """Build the shortcut around a block: the identity, or the kind `shortcut` where the shape changes."""
    if stride == 1 and in_width == width:
        return nn.Identity()
    if shortcut == "projection":
        return projection(in_width, width, stride)
    front = (width - in_width) // 2
    return PadShortcut(front, width - in_width - front)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, in_width: int, width: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = make_shortcut(in_width, width, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """Narrow to `width` / `by` (1x1), filter (3x3, strided, in groups), widen (1x1); with a shortcut."""

    def __init__(
        self, in_width: int, width: int, stride: int, shortcut: str, *, by: int = 4, groups: int = 1
    ):
        super().__init__()
        narrow = width // by
        self.conv1 = nn.Conv2d(in_width, narrow, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.conv3 = nn.Conv2d(narrow, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut = make_shortcut(in_width, width, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages (all but the first halve the side), and a linear layer; the stem is as wide as the first stage
    unless `stem` is given."""

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        classes: int,
        in_width: int = 3,
        shortcut: str = "pad",
        block: Callable[..., nn.Module] = BasicBlock,
        stem: int | None = None,
    ):
        super().__init__()
        before = stem or widths[0]
        self.conv1 = nn.Conv2d(in_width, before, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(before)
        self.stages = [f"layer{i}" for i in range(1, len(widths) + 1)]
        for i, name in enumerate(self.stages):
            first = block(before, widths[i], 2 if i else 1, shortcut)
            others = (block(widths[i], widths[i], 1, shortcut) for _ in range(blocks[i] - 1))
            setattr(self, name, nn.Sequential(first, *others))
            before = widths[i]
        self.linear = nn.Linear(before, classes)
        self.apply(init)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.linear(x.mean((2, 3)))


@torch.no_grad()
def init(module: nn.Module) -> None:
    """Initialise a layer: convolutions by He's method, linear layers by small normal weights; norms' scales stay 1."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


def cifar_resnet(depth: int, classes: int, in_width: int, shortcut: str = "pad") -> ResNet:
    """Build the network of `depth` = 6n + 2 layers; `shortcut` is "pad" or "projection"."""
    n = (depth - 2) // 6
    return ResNet((n, n, n), (16, 32, 64), classes, in_width, shortcut)


def bottleneck_resnet(depth: int, classes: int, in_width: int) -> ResNet:
    """Build the network of `depth` = 9n + 2 layers, of bottlenecks, with projections."""
    n, widths = (depth - 2) // 9, (64, 128, 256)
    return ResNet((n, n, n), widths, classes, in_width, shortcut="projection", block=Bottleneck, stem=16)


def resnet18(classes: int, in_width: int) -> ResNet:
    """Build ResNet-18 for small images."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), classes, in_width, shortcut="projection")


def resnet50(classes: int, in_width: int) -> ResNet:
    """Build ResNet-50 for small images."""
    return _four_stages(classes, in_width, Bottleneck)


def resnext50(classes: int, in_width: int) -> ResNet:
    """Build ResNeXt-50 (32x4d) for small images."""
    return _four_stages(classes, in_width, partial(Bottleneck, by=2, groups=32))


def _four_stages(classes: int, in_width: int, block: Callable[..., nn.Module]) -> ResNet:
    blocks, widths = (3, 4, 6, 3), (256, 512, 1024, 2048)
    return ResNet(blocks, widths, classes, in_width, shortcut="projection", block=block, stem=64)
