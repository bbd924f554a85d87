"""Large images are answered by parts: how far networks see, and that the parts joined are the whole answer."""

import pytest
import torch
from torch import nn

from prunus.tasks import Restorer, _tiles, sight, tiled
from prunus.zoo.restoration import DnCNN, UNet, edsr
from tests.lib.restoring import Denoiser, Enlarger

STEP = _tiles.STEP


def steep(model: nn.Module) -> nn.Module:
    """The model with larger weights, so that what is far away matters, and norms that have seen data."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn_like(module.running_mean) / 10
    return model.eval()


NETWORKS = {
    "convolutions": (lambda: Denoiser((1, 8, 8)), 1, 1),
    "dncnn": (lambda: DnCNN(1, layers=3, width=6), 1, 1),
    "pooling and transposed convolutions": (lambda: UNet(1, depth=3, width=4), 1, 1),
    "pixel shuffle": (lambda: Enlarger((3, 8, 8), scale=3), 3, 3),
    "edsr": (lambda: edsr(4, 3, blocks=1, width=4), 3, 4),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_parts_joined_are_the_whole(name):
    make, channels, scale = NETWORKS[name]
    model = steep(make())
    x = torch.rand(1, channels, 2 * STEP + 41, 3 * STEP + 7)
    with torch.no_grad():
        whole = model(x)
        found = sight(model, channels, scale)
        joined = tiled(model, x, scale, found, tile=STEP)
        narrow = tiled(model, x, scale, 0, tile=STEP)
    size = float(whole.abs().max())
    assert joined.shape == whole.shape
    assert float((joined - whole).abs().max()) < 1e-5 * size
    assert float((narrow - whole).abs().max()) > 1e-3 * size  # without a margin it would be wrong


@pytest.mark.parametrize(
    ("layers", "distance"),
    [
        ([nn.Conv2d(1, 1, 3, padding=1)], 1),
        ([nn.Conv2d(1, 1, 1)], 0),
        ([nn.Conv2d(1, 2, 5, padding=2), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1)], 3),
        ([nn.Conv2d(1, 1, 3, padding=8, dilation=8)], 8),
        ([nn.Conv2d(1, 1, (1, 7), padding=(0, 3))], 3),
        ([nn.Conv2d(1, 1, (9, 1), padding=(4, 0))], 4),
        ([nn.MaxPool2d(7, 1, 3)], 3),
        ([nn.Conv2d(1, 1, 3, padding=70, dilation=70)], 70),
    ],
)
def test_sight_is_that_of_the_layers(layers, distance):
    assert sight(nn.Sequential(*layers), 1, 1) == distance


def test_sight_does_not_depend_on_weights_and_leaves_the_model_alone():
    model = Denoiser((1, 8, 8)).train()
    for parameter in model.parameters():
        parameter.data.zero_()
    assert sight(model, 1, 1) == 3
    assert model.training and all(p.dtype is torch.float32 for p in model.parameters())


class Global(nn.Module):
    """Subtracts the mean of the whole image."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[int, ...]] = []

    def forward(self, x):
        self.calls.append(tuple(x.shape))
        return x - x.mean((2, 3), keepdim=True)


def test_a_network_that_sees_the_whole_image_is_given_it_whole():
    model = Global()
    assert sight(model, 1, 1) is None
    x = torch.rand(1, 1, 40, 50)
    assert torch.equal(Restorer(model, limit=100)(x), model(x))
    assert model.calls == [(1, 1, 40, 50)] * 2  # sight is measured on a copy


def test_only_images_above_the_limit_are_answered_by_parts(monkeypatch):
    measured = []
    monkeypatch.setattr(_tiles, "sight", lambda *args: measured.append(args) or sight(*args))
    model, x = steep(Denoiser((1, 8, 8))), torch.rand(1, 1, 30, 600)
    with torch.no_grad():
        restore = Restorer(model, limit=30 * 600)
        assert torch.equal(restore(x), model(x)) and not measured
        restore = Restorer(model, limit=30 * 600 - 1)
        answers = [restore(x) for _ in range(2)]
        assert torch.allclose(answers[0], model(x), atol=1e-5) and torch.equal(*answers)
    assert len(measured) == 1
