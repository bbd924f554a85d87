"""Networks from images to images have DHP's sizes, and every width but the images' own can be halved with proof."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus import zoo
from prunus.errors import UserError
from prunus.zoo import load_model

# parameters and multiply-adds in millions for a 128x128 image, in DHP's table 3 (arXiv:2003.13683). It adds what norms
# and activations do, within 1 %, and counts transposed convolutions for every output pixel, which is 4 times.
DHP_SIZES = {
    "srresnet_x4": (3, 1.54, 32_830),
    "edsr_x4": (3, 3.70, 90_370),
    "dncnn": (1, 0.56, 9_130),
    "unet": (1, 7.76, 3_410),
}


@pytest.mark.parametrize("name", DHP_SIZES)
def test_sizes_are_those_that_dhp_starts_from(name):
    channels, params, macs = DHP_SIZES[name]
    model = zoo.build(name, in_shape=(channels, 128, 128)).eval().to("meta")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, channels, 128, 128, device="meta"))
    by_module = {where: sum(found.values()) / 2 for where, found in counter.get_flop_counts().items()}
    transposed = sum(by_module.get(f"UNet.up.{step}", 0) for step in range(4))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == params
    assert (by_module["Global"] + 3 * transposed) / 1e6 == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize(
    "name", ["srresnet_x2", "edsr_x3", "edsr_baseline_x4", "dncnn", "unet", "unet_segmenter"]
)
def test_widths_can_be_halved_with_proof(name):
    torch.manual_seed(0)
    channels = zoo.native_shape(name)[0]
    model, example = zoo.build(name).eval(), torch.randn(1, channels, 16, 16)
    graph = prunus.trace(model, example)
    keep = {axis.name: range(axis.size // 2) for axis in graph.axes.values()}
    small = prunus.shrink(model, graph, keep)
    assert prunus.macs(graph, keep) < 0.3 * prunus.macs(graph)
    assert small(example).shape == model(example).shape


@pytest.mark.parametrize(
    ("name", "scale"), [("edsr_x2", 2), ("edsr_x3", 3), ("srresnet_x4", 4), ("dncnn", 1), ("unet", 1)]
)
def test_images_of_any_size_are_read(name, scale):
    model = zoo.build(name, in_shape=(3, 32, 32)).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 21, 35)).shape == (1, 3, 21 * scale, 35 * scale)


def test_the_segmenter_has_a_logit_for_each_class_and_pixel_and_the_stated_size():
    model = zoo.build("unet_segmenter", classes=21).eval()
    graph = prunus.trace(model, torch.zeros(1, 3, 128, 128))
    assert prunus.params(graph) == 483_077 and round(prunus.macs(graph) / 1e6) == 585
    with torch.no_grad():
        assert model(torch.rand(2, 3, 21, 35)).shape == (2, 21, 21, 35)


def test_networks_of_images_read_no_tables():
    assert zoo.build("mlp", classes=2, in_shape=(5,))(torch.zeros(3, 5)).shape == (3, 2)
    with pytest.raises(
        UserError, match=r"zoo:resnet20 reads images .* has the shape \(5,\); zoo:mlp reads rows"
    ):
        zoo.build("resnet20", in_shape=(5,))


def made(in_shape, scale):
    return torch.nn.Conv2d(in_shape[0], scale, 1)


def test_a_task_without_classes_builds_networks_to_images_alone():
    assert load_model("zoo:edsr_baseline_x2", in_shape=(1, 4, 4)).tail.out_channels == 1
    assert load_model(f"{__name__}:made", in_shape=(3, 8, 8), scale=4, sigma=2).out_channels == 4
    with pytest.raises(
        UserError, match=r"zoo:edsr_4 is no network from images to images.*Did you mean zoo:edsr_x4"
    ):
        load_model("zoo:edsr_4", in_shape=(3, 8, 8))
    with pytest.raises(UserError, match=r"torchvision:resnet18 is no network .* the task has no classes"):
        load_model("torchvision:resnet18", in_shape=(3, 8, 8))
