"""A residual network small enough to be trained in seconds: 8x8 gray digits, for the demo and for tests.

Widths 32, 48, 64, one block a stage, projection shortcuts, on (B, 1, 8, 8):
123,914 parameters, 2.0 M multiply-adds.
"""

from prunus.zoo.resnet import ResNet


def digits_resnet(classes: int, in_width: int) -> ResNet:
    """The demo's network: a stem, three basic blocks, a linear layer."""
    return ResNet((1, 1, 1), (32, 48, 64), classes, in_width, shortcut="projection")
