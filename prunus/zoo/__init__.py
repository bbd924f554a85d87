"""The reference networks of the pruning papers that torchvision lacks, by name: zoo.build("resnet56")."""

from functools import partial

from torch import nn

from prunus.errors import UserError, unknown
from prunus.zoo.densenet import densenet40
from prunus.zoo.digits import digits_resnet
from prunus.zoo.mobilenet import mobilenet_v2
from prunus.zoo.resnet import cifar_resnet
from prunus.zoo.vgg import vgg16_bn

DEPTHS = (20, 32, 44, 56, 110)

# name -> f(classes, in_width)
NETWORKS = {
    **{f"resnet{depth}": partial(cifar_resnet, depth) for depth in DEPTHS},
    **{f"resnet{depth}_projection": partial(cifar_resnet, depth, shortcut="projection") for depth in DEPTHS},
    "vgg16_bn": vgg16_bn,
    "densenet40": densenet40,
    "mobilenet_v2": mobilenet_v2,
    "digits_resnet": digits_resnet,
}


def native_shape(name: str) -> tuple[int, int, int]:
    """The shape (planes, height, width) of the pictures the network was made for."""
    check(name)
    return (1, 8, 8) if name == "digits_resnet" else (3, 32, 32)


def build(name: str, classes: int = 10, in_shape: tuple[int, int, int] | None = None) -> nn.Module:
    """A freshly initialised network (by torch's global seed); `in_shape`: the pictures', native if not given.

    Maps (B, *in_shape) to (B, classes). Raises UserError for an unknown name or a shape that is too small.
    """
    planes, height, width = in_shape or native_shape(name)
    check(name)
    if min(height, width) < 8 or (name == "vgg16_bn" and min(height, width) < 16):
        raise UserError(f"zoo:{name} needs larger pictures than {height}x{width}; give image_size=32.")
    return NETWORKS[name](classes, planes)


def check(name: str) -> None:
    """Raise UserError, with the nearest names, unless the zoo has `name`."""
    if name not in NETWORKS:
        raise unknown("zoo network", name, NETWORKS)
