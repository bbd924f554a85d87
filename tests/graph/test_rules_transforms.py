"""Operators that transform, move or draw numbers: spectra, warps, windows, diagonals, random tensors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunus.graph import trace
from tests.lib.rules import check_shrinks, check_stays, halve

GRID = torch.rand(2, 3, 3, 2) - 0.5


def image(h):
    """(N, T, C) as an image (N, C, 2, 2)."""
    return h.transpose(1, 2).unflatten(2, (2, 2))


def tokens(x):
    """An image as (N, T, C)."""
    return x.flatten(2).transpose(1, 2)


def filtered(h):
    """A filter on the frequencies of tokens, as networks that mix by spectra have."""
    spectrum = torch.fft.rfft(h, dim=1, norm="ortho")
    return torch.fft.irfft(spectrum * torch.tensor([1.0, 0.5, 0.2])[:, None], n=4, dim=1, norm="ortho")


def rotated(h):
    """Tokens turned in the complex plane, as rotary positions are."""
    turned = torch.view_as_complex(h.transpose(1, 2).unflatten(2, (2, 2)).contiguous())
    turned = turned * torch.polar(torch.ones(2), torch.tensor([0.3, 0.7]))
    return torch.view_as_real(turned).flatten(2).transpose(1, 2)


SHRINK = {
    "fft of tokens": lambda h: torch.fft.fft(h, dim=1).real,
    "fft of an image": lambda h: tokens(torch.fft.fft2(image(h)).abs()),
    "filter of frequencies": filtered,
    "rotation in the complex plane": rotated,
    "warp": lambda h: tokens(F.grid_sample(image(h), GRID, align_corners=False)),
    "patches put back": lambda h: tokens(F.fold(F.unfold(image(h), 2, padding=1), (2, 2), 2, padding=1)),
    "sliding windows": lambda h: h.unfold(1, 2, 1).mean(-1),
    "rotated image": lambda h: tokens(image(h).rot90(1, (2, 3))),
    "flipped tokens": lambda h: h.flip(1),
    "rolled tokens": lambda h: h.roll(2, 1),
    "a diagonal": lambda h: (h.transpose(1, 2) @ h).diagonal(0, 1, 2),
    "a matrix made of a diagonal": lambda h: (h[:, :1] @ h.transpose(1, 2).mean(2).diag_embed()),
    "distances": lambda h: torch.cdist(h, h + 1.0) @ h,
    "many distances": lambda h: torch.cdist(h, h + 1.0, compute_mode="use_mm_for_euclid_dist") @ h,
    "sums of parts": lambda h: torch.stack([sum(h.unsafe_chunk(2, 1)), sum(h.unsafe_split_with_sizes([2, 2], 1))]),
    "norm of each kept short": lambda h: h.renorm(2, 1, 1.0),
    "the least and the most": lambda h: sum(torch.aminmax(h, dim=1)),
    "cross products of tokens": lambda h: torch.linalg.cross(h[:, :3], h[:, 1:], dim=1),
    "sum without NaN": lambda h: h.nansum(1),
    "matrix times vector": lambda h: torch.addmv(torch.ones(4), h[0], h[1, 0])[:, None] * h[0],
    "product of two vectors": lambda h: h[0, 0].dot(h[1, 1]) * h,
    "sum of products": lambda h: torch.addbmm(h[0] * 0, h @ h.transpose(1, 2), h),
}  # fmt: skip
STAY = {
    "fft of features": (lambda h: torch.fft.fft(h, dim=2).real, "_fft_r2c"),
    "rolled features": (lambda h: h.roll(2, 2), "roll"),
    "flipped features": (lambda h: h.flip(2), "flip"),
    "windows of features": (lambda h: h.unfold(2, 1, 1)[..., 0], "unfold"),
    "a diagonal beside the main one": (lambda h: h.diag_embed(1)[..., :6, :6].sum(2), "diag_embed"),
    "a matrix's exponential": (lambda h: torch.linalg.matrix_exp(h.mT @ h).sum(1), "linalg_matrix_exp"),
}


@pytest.mark.parametrize("name", SHRINK)
def test_units_that_a_transform_leaves_apart_shrink(name):
    check_shrinks(SHRINK[name])


@pytest.mark.parametrize("name", STAY)
def test_units_that_a_transform_moves_or_joins_stay(name):
    check_stays(*STAY[name])


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.both, self.out = (
            nn.Linear(5, 6),
            nn.Linear(5, 4),
            nn.Bilinear(6, 4, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        return self.out(self.both(self.a(x), self.b(x)))


def test_all_dimensions_of_a_bilinear_layer_shrink():
    graph, small = halve(Bilinear(), torch.randn(2, 5))
    assert small.both.weight.shape == (4, 3, 2)
    assert [graph.role("both.weight", dim) for dim in range(3)] == ["produces", "consumes", "consumes"]


class Noise(nn.Module):
    """Adds random numbers that are told their size."""

    def __init__(self, draw):
        super().__init__()
        self.up, self.down, self.draw = nn.Linear(5, 6), nn.Linear(6, 3), draw

    def forward(self, x):
        h = self.up(x)
        return self.down(h + self.draw(h.shape))


class Spectral(nn.Module):
    """A product with complex weights for the low frequencies of an image, as neural operators have."""

    def __init__(self, width):
        super().__init__()
        self.width, self.weight = (
            width,
            nn.Parameter(torch.randn(width, width, 2, 2, dtype=torch.cfloat) / width),
        )

    def forward(self, x):
        n, _, h, w = x.shape
        low = torch.fft.rfft2(x)[:, :, :2, :2]
        spectrum = torch.zeros(n, self.width, h, w // 2 + 1, dtype=torch.cfloat)
        spectrum[:, :, :2, :2] = torch.einsum("nixy,ioxy->noxy", low, self.weight)
        return torch.fft.irfft2(spectrum, s=(h, w))


def test_complex_weights_shrink_on_both_sides():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 1), Spectral(8), nn.GELU(), nn.Conv2d(8, 1, 1))
    graph, small = halve(model, torch.randn(2, 1, 6, 6))
    assert small[1].weight.shape == (4, 4, 2, 2) and small[1].width == 4
    assert [graph.role("1.weight", dim) for dim in range(2)] == ["consumes", "produces"]


DRAWS = {
    "randn": torch.randn,
    "rand": torch.rand,
    "randint": lambda shape: torch.randint(3, shape),
    "normal": lambda shape: torch.normal(0.0, 1.0, shape),
    "an empty tensor, filled": lambda shape: torch.empty(shape).normal_(),
    "exponential numbers": lambda shape: torch.empty(shape).exponential_().log(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_of_a_stated_size_fix_nothing(name):
    assert list(trace(Noise(DRAWS[name]).eval(), torch.randn(2, 5)).axes) == ["up"]


class Standardised(nn.Conv2d):
    """A convolution whose weight is normed over its inputs, as in networks without other norms."""

    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        normed = F.batch_norm(rows, None, None, training=True, momentum=0.0)
        return F.conv2d(x, normed.reshape_as(self.weight), self.bias)


def test_a_weight_that_is_standardised_over_its_inputs_shrinks_on_both_sides():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), Standardised(8, 6, 3), nn.ReLU(), Standardised(6, 4, 1)
    )
    _, small = halve(model, torch.randn(2, 3, 5, 5))
    assert small[2].weight.shape == (3, 4, 3, 3) and small[2].out_channels == 3


def test_what_running_statistics_are_taken_over_stays():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(4), nn.Linear(8, 6), nn.Linear(6, 3))
    graph, small = halve(model, torch.randn(2, 4, 5))
    assert small[0].weight.shape == (8, 5) and small[2].weight.shape == (3, 8)
    assert "batch_norm" in graph.explain("0.weight")
