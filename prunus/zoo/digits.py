"""A residual network small enough to train in seconds, for 8x8 gray digits in the demo and in tests.

Widths 32, 48, 64, one block per stage, projection shortcuts, on (B, 1, 8, 8):
123,914 parameters, 2.0 M multiply-adds.
"""

from prunus.zoo.resnet import ResNet


def digits_resnet(classes: int, in_width: int) -> ResNet:
    """Build the demo's network: a stem, three basic blocks, a linear layer."""
    return ResNet((1, 1, 1), (32, 48, 64), classes, in_width, shortcut="projection")
