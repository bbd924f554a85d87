"""The plain networks of the pruning literature, without norms, on which Lookahead was evaluated: Park et al., ICLR
2020, arXiv:2002.04809, section 5. As there, weights start from Glorot's normal initialisation and biases from 0.

    fcn      784-500-500-500-500-10, ReLU    1,149,010 parameters     1.1 M multiply-adds    (1, 28, 28)
    conv6    six 3x3 convolutions in pairs of 64, 128 and 256, each pair followed by a pooling, then linear layers of
             256, 256 (Frankle & Carbin, ICLR 2019, arXiv:1803.03635, figure 2)
                                             2,262,602 parameters   153.9 M multiply-adds    (3, 32, 32)

A smaller one for rows of a table is ours: mlp, N-128-128-outputs, 19,978 parameters for 16 columns and 10 outputs.

Shapes: images (B, *in_shape); output (B, classes).
"""

from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

HIDDEN, HIDDEN_LAYERS = 500, 4  # fully connected network
OF_TABLES = (128, 128)  # widths of the hidden layers for tables
WIDTHS, LINEAR = (64, 128, 256), (256, 256)  # Conv-6


class Plain(nn.Module):
    """Convolutions and poolings (none for `fcn`), then linear layers, all with ReLU but the last."""

    def __init__(self, features: list[nn.Module], widths: list[int]):
        super().__init__()
        self.features = nn.Sequential(*features)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        self.classifier = nn.Sequential(*layers[:-1])
        self.apply(init)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


@torch.no_grad()
def init(module: nn.Module) -> None:
    """Initialise a layer by Glorot's normal initialisation, biases by 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(module.weight)
        assert module.bias is not None  # every layer here has one
        nn.init.zeros_(module.bias)


def fcn(classes: int, in_shape: tuple[int, ...]) -> Plain:
    """Build the fully connected network, with four hidden layers of 500."""
    return Plain([], [prod(in_shape), *[HIDDEN] * HIDDEN_LAYERS, classes])


def mlp(outputs: int, in_shape: tuple[int, ...]) -> Plain:
    """Build a small fully connected network for rows of a table (B, columns)."""
    return Plain([], [prod(in_shape), *OF_TABLES, outputs])


def conv6(classes: int, in_shape: tuple[int, int, int]) -> Plain:
    """Build Conv-6; each of its three poolings halves the side, so the side should be at least 8."""
    in_width, height, width = in_shape
    features: list[nn.Module] = []
    for out_width in WIDTHS:
        for before in (in_width, out_width):
            features += [nn.Conv2d(before, out_width, 3, padding=1), nn.ReLU(inplace=True)]
        features.append(nn.MaxPool2d(2))
        in_width = out_width
    flat = in_width * (height // 2 ** len(WIDTHS)) * (width // 2 ** len(WIDTHS))
    return Plain(features, [flat, *LINEAR, classes])
