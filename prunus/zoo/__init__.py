"""The zoo: the reference networks of the pruning papers that torchvision lacks, and models from other libraries.

Its files, in the order in which to read them:

    networks                      builds the networks by name
    resnet                        residual networks
    wrn                           wide residual networks
    transformer                   the parts of transformers
    vgg densenet mobilenet vit    the families of these names
    restoration                   networks from images to images: super-resolution, denoising
    language                      networks that read text
    plain                         networks without shortcuts: fcn, conv6
    digits                        a small network for scikit-learn's digits
    optional                      libraries that may be missing
    pretrained                    a model of text from a folder of transformers
    sources                       a model from a SPEC, weights from a file
    expected                      how published networks expect their images
"""

from prunus.zoo.expected import Expected, Interpolation, expected_images
from prunus.zoo.mobilenet import MobileNetV1, MobileNetV2
from prunus.zoo.networks import NETWORKS, build, build_of_text, native_shape
from prunus.zoo.optional import library
from prunus.zoo.pretrained import has_weights, special_token
from prunus.zoo.sources import load_model, load_weights, stated_images

__all__ = [
    "NETWORKS",
    "Expected",
    "Interpolation",
    "MobileNetV1",
    "MobileNetV2",
    "build",
    "build_of_text",
    "expected_images",
    "has_weights",
    "library",
    "load_model",
    "load_weights",
    "native_shape",
    "special_token",
    "stated_images",
]
