"""ResNets for 32x32 pictures: He et al., CVPR 2016, arXiv:1512.03385, section 4.2.

3 stages of n basic blocks, widths 16, 32, 64, depth 6n + 2, global average, one linear layer.
With zero-padded shortcuts and 10 classes:

    resnet20     269,722 parameters    40.6 M multiply-adds
    resnet32     464,154               68.9 M
    resnet44     658,586               97.2 M
    resnet56     853,018              125.5 M
    resnet110  1,727,962              252.9 M

`resnet18` is the network of four stages of widths 64 to 512 (table 1 of the paper) in the form that is used for small
pictures: the 3x3 stem, no pooling, projection shortcuts. 11,173,962 parameters, 555.4 M multiply-adds.

Shapes: pictures (B, 3, 32, 32), or any (B, in_width, H, W); output (B, classes).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Every second pixel, with `front` zero planes put before and `back` behind; no parameters (option A)."""

    def __init__(self, front: int, back: int):
        super().__init__()
        self.front, self.back = front, back

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.front, self.back))


def projection(in_width: int, width: int, stride: int) -> nn.Sequential:
    """A strided 1x1 convolution and its norm (option B)."""
    conv = nn.Conv2d(in_width, width, 1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is carried."""

    def __init__(self, in_width: int, width: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if stride == 1 and in_width == width:
            self.shortcut = nn.Identity()
        elif shortcut == "projection":
            self.shortcut = projection(in_width, width, stride)
        else:
            front = (width - in_width) // 2
            self.shortcut = PadShortcut(front, width - in_width - front)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem of the first stage's width, stages (all but the first halve the side), and a linear layer."""

    def __init__(self, blocks, widths, classes: int, in_width: int = 3, shortcut: str = "pad"):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = [f"layer{i}" for i in range(1, len(widths) + 1)]
        before = widths[0]
        for i, name in enumerate(self.stages):
            setattr(self, name, stage(blocks[i], before, widths[i], 2 if i else 1, shortcut))
            before = widths[i]
        self.linear = nn.Linear(before, classes)
        self.apply(init)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.linear(x.mean((2, 3)))


def stage(blocks: int, in_width: int, width: int, stride: int, shortcut: str) -> nn.Sequential:
    """`blocks` basic blocks; the first one changes the width and takes the stride."""
    first = BasicBlock(in_width, width, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(width, width, 1, shortcut) for _ in range(blocks - 1)))


@torch.no_grad()
def init(module: nn.Module) -> None:
    """He's initialisation for convolutions, 1 for norms' scales, small normal weights for linear layers."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


def cifar_resnet(depth: int, classes: int, in_width: int, shortcut: str = "pad") -> ResNet:
    """The network of `depth` = 6n + 2 layers; `shortcut` is "pad" or "projection"."""
    n = (depth - 2) // 6
    return ResNet((n, n, n), (16, 32, 64), classes, in_width, shortcut)


def resnet18(classes: int, in_width: int) -> ResNet:
    """ResNet-18 for small pictures."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), classes, in_width, shortcut="projection")
