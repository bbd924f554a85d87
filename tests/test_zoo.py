"""The zoo's networks have the published sizes, read the published weights and can be trained."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prunus import zoo
from prunus.errors import UserError
from prunus.files import read_tensors

WEIGHTS = Path(__file__).parents[2] / "shared" / "weights"

# parameters as in the papers or their usual implementations; multiply-adds of convolutions and linear layers
SIZES = {
    "resnet20": (269_722, 40.55e6),
    "resnet32": (464_154, 68.86e6),
    "resnet44": (658_586, 97.17e6),
    "resnet56": (853_018, 125.49e6),
    "resnet110": (1_727_962, 252.89e6),
    "resnet20_projection": (272_474, 40.81e6),
    "vgg16_bn": (14_987_210, 313.46e6),
    "densenet40": (1_019_722, 264.81e6),
    "mobilenet_v2": (2_236_682, 87.98e6),
    "digits_resnet": (123_914, 2.047e6),
}


@pytest.mark.parametrize("name", SIZES)
def test_size_is_the_papers(name):
    params, macs = SIZES[name]
    model = zoo.build(name, classes=10).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = model(torch.zeros(2, *zoo.native_shape(name)))
    assert output.shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == params
    assert counter.get_total_flops() / 2 / 2 == pytest.approx(macs, rel=1e-3)


@pytest.mark.parametrize("depth", [20, 56])
def test_published_weights_load_strictly(depth):
    file = WEIGHTS / f"cifar10_resnet{depth}.safetensors"
    if not file.exists():
        pytest.skip("the published weights are not beside the project")
    model = zoo.build(f"resnet{depth}")
    model.load_state_dict(read_tensors(file), strict=True)


def test_zero_padded_shortcut_widens_and_halves():
    x = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    y = zoo.resnet.PadShortcut(front=1, back=2)(x)
    assert y.shape == (2, 6, 2, 2)
    assert torch.equal(y[:, 1:4], x[:, :, ::2, ::2])
    assert y[:, 0].abs().sum() == 0 and y[:, 4:].abs().sum() == 0


@pytest.mark.parametrize("name", ["resnet20", "vgg16_bn", "densenet40", "mobilenet_v2", "digits_resnet"])
def test_classes_and_input_planes_are_respected_and_every_parameter_learns(name):
    planes, side = 2, 16
    model = zoo.build(name, classes=7, in_shape=(planes, side, side))
    output = model(torch.randn(4, planes, side, side))
    assert output.shape == (4, 7)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert [n for n, p in model.named_parameters() if p.grad.abs().sum() == 0] == []


def test_initialisation_follows_the_seed():
    def weights(seed):
        torch.manual_seed(seed)
        return zoo.build("digits_resnet").conv1.weight

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_unknown_name_offers_the_nearest():
    with pytest.raises(UserError, match=r"resnet65.*Did you mean resnet56"):
        zoo.build("resnet65")


def test_too_small_pictures_are_refused_in_words():
    with pytest.raises(UserError, match="larger pictures than 8x8"):
        zoo.build("vgg16_bn", in_shape=(3, 8, 8))
