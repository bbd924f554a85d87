"""Networks with a layer whose units come twice, so that a repair can make the loss of half of them good exactly."""

import torch
from torch import nn

import prunus

HALF = 6  # units of the axis that is halved; the second half repeats the first
EXACT = {"ridge": 1e-9}
# Sums in float32 and a ridge of 1e-9 leave about 1e-4 of the outputs; a wrong column or row leaves about 1.
CLOSE = {"rtol": 2e-3, "atol": 2e-3}


class Chain(nn.Module):
    """A layer whose units come twice, something between, and the layer that reads them."""

    def __init__(self, first, between, last):
        super().__init__()
        self.first, self.between, self.last = first, between, last
        with torch.no_grad():
            for layer in (first, *between):
                for tensor in (*layer.parameters(), *layer.buffers()):
                    if tensor.dim() and len(tensor) == 2 * HALF:
                        tensor[HALF:] = tensor[:HALF]

    def forward(self, x):
        return self.last(self.between(self.first(x)))


def images(rank=2, side=6, seed=0, count=64):
    return torch.randn(count, 3, *[side] * rank, generator=torch.Generator().manual_seed(seed))


def chain(last, rank=2, between=None):
    first = getattr(nn, f"Conv{rank}d")(3, 2 * HALF, 3, padding=1)
    return Chain(first, between or nn.Sequential(nn.ReLU()), last), images(rank, 5 if rank == 3 else 6)


class Tokens(nn.Module):
    """Features, of which every second half repeats the first, read by a layer over them."""

    def __init__(self, read):
        super().__init__()
        self.chain = Chain(nn.Linear(5, 2 * HALF), nn.Sequential(nn.GELU()), read)

    def forward(self, x):
        return self.chain(x)


class Times(nn.Module):
    """A product with a weight (I, O), written by hand."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2 * HALF, 4) / 3)

    def forward(self, x):
        return x @ self.weight


TOKENS = torch.randn(40, 7, 5, generator=torch.Generator().manual_seed(0))
CONSUMERS = {
    "convolution": lambda: chain(nn.Conv2d(2 * HALF, 4, 3)),
    "without a bias": lambda: chain(nn.Conv2d(2 * HALF, 4, 3, bias=False)),
    "before a batch norm": lambda: chain(
        nn.Sequential(nn.Conv2d(2 * HALF, 4, 3, bias=False), nn.BatchNorm2d(4))
    ),
    "strided, dilated": lambda: chain(nn.Conv2d(2 * HALF, 4, 3, stride=2, dilation=2, padding=2)),
    "1 dimension": lambda: chain(nn.Conv1d(2 * HALF, 4, 3), rank=1),
    "3 dimensions": lambda: chain(nn.Conv3d(2 * HALF, 4, 2), rank=3),
    "transposed": lambda: chain(nn.ConvTranspose2d(2 * HALF, 4, 3, stride=2, padding=1, output_padding=1)),
    "through a norm": lambda: chain(
        nn.Conv2d(2 * HALF, 4, 1), between=nn.Sequential(nn.BatchNorm2d(2 * HALF), nn.ReLU())
    ),
    "through a depthwise one": lambda: chain(
        nn.Conv2d(2 * HALF, 4, 1),
        between=nn.Sequential(nn.ReLU(), nn.Conv2d(2 * HALF, 2 * HALF, 3, groups=2 * HALF)),
    ),
    "flattened": lambda: chain(
        nn.Sequential(nn.Flatten(), nn.Linear(2 * HALF * 4, 4)), between=nn.Sequential(nn.AvgPool2d(3))
    ),
    "linear": lambda: (Tokens(nn.Linear(2 * HALF, 4)), TOKENS),
    "a matrix on the right": lambda: (Tokens(Times()), TOKENS),
}


def made(kind):
    """A model whose batch norms have the statistics of its images."""
    torch.manual_seed(0)
    model, x = CONSUMERS[kind]()
    for each in model.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


def halved(model, x):
    graph = prunus.trace(model, x[:1])
    name = next(name for name, axis in graph.axes.items() if axis.size == 2 * HALF)
    return graph, {name: list(range(HALF))}
