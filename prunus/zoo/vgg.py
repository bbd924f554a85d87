"""VGG-16 with batch norm for 32x32 pictures: Simonyan & Zisserman, ICLR 2015, arXiv:1409.1556, net D.

As the pruning literature uses it: 13 convolutions, four poolings, a global average, one hidden linear
layer of 512. With 10 classes: 14,987,210 parameters, 313.5 M multiply-adds.
Shapes: pictures (B, in_width, 32, 32), sides at least 16; output (B, classes).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from prunus.zoo.resnet import init

WIDTHS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
HIDDEN = 512


class VGG(nn.Module):
    """Plain 3x3 convolutions, norms and poolings in one Sequential, then two linear layers."""

    def __init__(self, classes: int, in_width: int = 3):
        super().__init__()
        layers = []
        for width in WIDTHS:
            if width == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                conv = nn.Conv2d(in_width, width, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                in_width = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(in_width, HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, classes),
        )
        self.features.apply(init)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(x.flatten(1))


def vgg16_bn(classes: int, in_width: int) -> VGG:
    """VGG-16-BN for small pictures."""
    return VGG(classes, in_width)
