"""The reference networks of the pruning papers that torchvision lacks, by name: zoo.build("resnet56")."""

from collections.abc import Callable
from functools import partial

from torch import nn

from prunus.errors import UserError, unknown
from prunus.zoo.densenet import densenet40
from prunus.zoo.digits import digits_resnet
from prunus.zoo.language import decoder_tiny, encoder_tiny
from prunus.zoo.mobilenet import MobileNetV1, MobileNetV2
from prunus.zoo.plain import conv6, fcn, mlp
from prunus.zoo.resnet import bottleneck_resnet, cifar_resnet, resnet18, resnet50, resnext50
from prunus.zoo.restoration import DnCNN, UNet, edsr, srresnet, unet_segmenter
from prunus.zoo.vgg import vgg_bn
from prunus.zoo.vit import vit_tiny
from prunus.zoo.wrn import wide_resnet

DEPTHS = (20, 32, 44, 56, 110)
SCALES = (2, 3, 4)  # of super-resolution
SIDES = (64, 224)  # pixels; image sizes with MobileNets of their own, besides 32

# name -> f(classes, in_width)
NETWORKS = {
    **{f"resnet{depth}": partial(cifar_resnet, depth) for depth in DEPTHS},
    **{f"resnet{depth}_projection": partial(cifar_resnet, depth, shortcut="projection") for depth in DEPTHS},
    **{f"resnet{depth}_bottleneck": partial(bottleneck_resnet, depth) for depth in (110, 164)},
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnext50": resnext50,
    "wrn_16_8": partial(wide_resnet, 16, 8),
    **{f"vgg{depth}_bn": partial(vgg_bn, depth) for depth in (11, 16, 19)},
    "densenet40": densenet40,
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v2": MobileNetV2,
    **{f"mobilenet_v1_{side}": partial(MobileNetV1, side=side) for side in SIDES},
    **{f"mobilenet_v2_{side}": partial(MobileNetV2, side=side) for side in SIDES},
    "digits_resnet": digits_resnet,
    "unet_segmenter": unet_segmenter,  # (B, classes, H, W), a class for every pixel
}
# name -> f(classes, in_shape): some parameters' sizes depend on the image's
FIXED_SIZE = {"conv6": conv6, "vit_tiny": vit_tiny}
# name -> f(classes, in_shape): inputs of any shape, such as rows of a table (columns,)
FLAT = {"fcn": fcn, "mlp": mlp}
# name -> f(in_width): from images to images
TO_IMAGES: dict[str, Callable[[int], nn.Module]] = {
    **{f"srresnet_x{scale}": partial(srresnet, scale) for scale in SCALES},
    **{f"edsr_x{scale}": partial(edsr, scale) for scale in SCALES},
    **{f"edsr_baseline_x{scale}": partial(edsr, scale, blocks=16, width=64) for scale in SCALES},
    "dncnn": DnCNN,
    "unet": UNet,
}
# name -> f(vocabulary, length): from tokens to the next ones
TO_TOKENS: dict[str, Callable[[int, int], nn.Module]] = {"decoder_tiny": decoder_tiny}
# name -> f(vocabulary, length, classes): from tokens to classes
TO_CLASSES: dict[str, Callable[[int, int, int], nn.Module]] = {"encoder_tiny": encoder_tiny}
NATIVE: dict[str, tuple[int, ...]] = {  # all others: (3, 32, 32)
    "digits_resnet": (1, 8, 8),
    "fcn": (1, 28, 28),
    "mlp": (16,),
    "dncnn": (1, 64, 64),
    "unet": (1, 128, 128),
    "unet_segmenter": (3, 128, 128),
    **{f"mobilenet_v{version}_{side}": (3, side, side) for version in (1, 2) for side in SIDES},
}
MIN_SIDE = {"vgg11_bn": 16, "vgg16_bn": 16, "vgg19_bn": 16}  # all others: 8


def native_shape(name: str) -> tuple[int, ...]:
    """Look up the shape of the inputs that a network was designed for.

    Args:
        name: A network of the zoo.

    Returns:
        (channels, height, width) of images; (columns,) of rows of a table.

    Raises:
        UserError: The zoo has no such network; the message suggests the nearest names.
    """
    check(name)
    return NATIVE.get(name, (3, 32, 32))


def build(name: str, classes: int = 10, in_shape: tuple[int, ...] | None = None) -> nn.Module:
    """Build a network of the zoo, initialised by torch's global seed.

    Args:
        name: A network of the zoo, for example "resnet56".
        classes: The number of classes, or of other outputs; networks from images to images have none.
        in_shape: The shape of an input, (channels, height, width) of images; `native_shape(name)` if None.

    Returns:
        A network that maps (B, *in_shape) to (B, classes), for segmentation to (B, classes, H, W), or to images.

    Raises:
        UserError: The name is unknown, the network reads images and is asked for other inputs, or the images are too
            small for it.
    """
    shape = in_shape or native_shape(name)
    check(name)
    if name in FLAT:
        return FLAT[name](classes, shape)
    if len(shape) != 3:
        raise UserError(
            f"zoo:{name} reads images (channels, height, width), but an input has the shape {tuple(shape)}; zoo:mlp "
            "reads rows of a table."
        )
    channels, height, width = shape
    if name in TO_IMAGES:
        return TO_IMAGES[name](channels)
    if min(height, width) < MIN_SIDE.get(name, 8):
        raise UserError(
            f"zoo:{name} needs larger images than {height}x{width}: sides of at least "
            f"{MIN_SIDE.get(name, 8)}; give image_size=32."
        )
    if name in FIXED_SIZE:
        return FIXED_SIZE[name](classes, (channels, height, width))
    return NETWORKS[name](classes, channels)


def build_of_text(name: str, *, vocabulary: int, length: int, classes: int | None = None) -> nn.Module:
    """Build a network of the zoo that reads text, initialised by torch's global seed.

    Args:
        name: A network of the zoo, for example "decoder_tiny".
        vocabulary: The number of tokens that there are.
        length: The number of tokens that a text has at most.
        classes: The number of classes of texts; None: the network scores the next token.

    Returns:
        A network that maps tokens (B, T) to the scores of classes (B, classes), or of tokens (B, T, vocabulary).

    Raises:
        UserError: There is no such network; the message suggests the nearest names.
    """
    if classes is None:
        if name not in TO_TOKENS:
            raise unknown("zoo network from tokens to the next ones", name, TO_TOKENS)
        return TO_TOKENS[name](vocabulary, length)
    if name not in TO_CLASSES:
        raise unknown("zoo network from texts to classes", name, TO_CLASSES)
    return TO_CLASSES[name](vocabulary, length, classes)


def check(name: str) -> None:
    """Raise UserError, suggesting the nearest names, unless the zoo has `name`."""
    known = {**NETWORKS, **FIXED_SIZE, **FLAT, **TO_IMAGES}
    of_text = {**dict.fromkeys(TO_TOKENS, "lm"), **dict.fromkeys(TO_CLASSES, "text")}
    if name in of_text:
        raise UserError(f"zoo:{name} reads text, not images; take it with --task {of_text[name]}.")
    if name not in known:
        raise unknown("zoo network", name, known)
