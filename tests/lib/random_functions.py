"""Functions that random networks apply: to tokens, to maps, with random numbers, in training alone."""

import torch
import torch.nn.functional as F
from torch import nn


def spectrum(x):
    return torch.fft.irfft(torch.fft.rfft(x, dim=1) * 0.5, n=x.shape[1], dim=1)


def summed_at(x):
    where = (torch.arange(x.shape[1], device=x.device) * 3) % 2
    return x + torch.zeros_like(x).index_add(1, where, x)


def put(x):
    where = ((torch.arange(x.shape[1], device=x.device) * 3) % 2)[None, :, None].expand(x.shape)
    return x.scatter_add(1, where, 0.5 * x)


# functions of tokens (N, T, C) in which the places of tokens count, and those of features do not
PLACES = {
    "largest so far": lambda x: x.cummax(1)[0],
    "sorted": lambda x: x.sort(1)[0],
    "median": lambda x: x - x.median(1, keepdim=True)[0],
    "neighbour": lambda x: torch.stack([x, x.roll(1, 1)], -1).max(-1)[0],
    "taken": lambda x: x.gather(1, x.argsort(1, descending=True)),
    "put": put,
    "summed at": summed_at,
    "picked": lambda x: x[:, (torch.arange(x.shape[1], device=x.device) * 2) % x.shape[1]],
    "spectrum": spectrum,
    "near": lambda x: torch.cdist(x, 2 * x.flip(1)).neg().softmax(-1) @ x,
}


def warp(x):
    turned = torch.tensor([[[0.8, 0.3, 0.0], [-0.3, 0.8, 0.1]]], dtype=x.dtype, device=x.device)
    grid = F.affine_grid(turned.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def windows(x):
    n, c, h, w = x.shape
    x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 2, 2).softmax(-1)
    return x.view(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


# functions of maps (N, C, H, W) that treat all channels alike
SPACES = {
    "rolled": lambda x: x.roll((1, 2), (2, 3)),
    "turned": lambda x: x.rot90(1, (2, 3)),
    "warped": warp,
    "unpooled": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "patches": lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1) / 9,
    "frequencies": lambda x: torch.fft.irfft2(0.5 * torch.fft.rfft2(x), s=x.shape[2:]),
    "summed": lambda x: 0.3 * x.cumsum(2),
    "resized": lambda x: F.interpolate(F.adaptive_avg_pool2d(x, 2), x.shape[2:], mode="bilinear"),
    "windows": windows,
}

# functions of (N, ...) that draw random numbers
DRAWS = {
    "noise": lambda x: x + 0.1 * torch.randn_like(x),
    "dropout": lambda x: F.dropout(x, 0.3),
    "paths": lambda x: x * (torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) < 0.7),
    "slopes": lambda x: F.rrelu(x, training=True),
    "chances": lambda x: x * torch.bernoulli(x.sigmoid()),
    "ways": lambda x: x * F.gumbel_softmax(x, dim=1),
}


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Drawn(nn.Module):
    """Random numbers in training, or always."""

    def __init__(self, function, always):
        super().__init__()
        self.function, self.always = function, always

    def forward(self, x):
        return self.function(x) if self.always or self.training else x


class InTraining(nn.Module):
    """A layer that runs in training alone, beside a stream."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + self.layer(x) if self.training else x
