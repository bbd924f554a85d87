"""VGGs with batch norm for 32x32 images: Simonyan & Zisserman, ICLR 2015, arXiv:1409.1556, nets A, D and E.

The form is that of the pruning literature: convolutions, four poolings, a global average, one hidden linear layer of
512. With 10 classes:

    vgg11_bn     9,491,530 parameters    153.0 M multiply-adds
    vgg16_bn    14,987,210               313.5 M
    vgg19_bn    20,298,186               398.4 M

Shapes: images (B, in_width, 32, 32), sides at least 16; output (B, classes).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from prunus.zoo.resnet import init

WIDTHS = (64, 128, 256, 512, 512)  # one per stage; the poolings are between stages
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # per stage, by depth
HIDDEN = 512


class VGG(nn.Module):
    """Plain 3x3 convolutions, norms and poolings in one Sequential, then two linear layers."""

    def __init__(self, classes: int, in_width: int = 3, depth: int = 16):
        super().__init__()
        layers: list[nn.Module] = []
        for width, count in zip(WIDTHS, CONVOLUTIONS[depth], strict=True):
            layers += [nn.MaxPool2d(2)] if layers else []
            for _ in range(count):
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


def vgg_bn(depth: int, classes: int, in_width: int) -> VGG:
    """Build the network of `depth` layers (11, 16 or 19) for small images."""
    return VGG(classes, in_width, depth)
