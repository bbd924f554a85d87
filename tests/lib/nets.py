"""Small networks for the tests, each with one difficulty; `NETS` builds them by name with their example."""

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """Identity and projection shortcuts around one stream."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.norm_a = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.norm_b = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c, self.skip = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(8, 12, 1, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))
        x = F.relu(self.c(x) + self.skip(x))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    """Two branches joined, a depthwise convolution, and a flatten with space left."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.depth = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.point = nn.Conv2d(10, 7, 1)
        self.head = nn.Linear(7 * 4 * 4, 5)

    def forward(self, x):
        x = self.depth(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1))
        return self.head(F.avg_pool2d(F.relu(self.point(x)), 2).flatten(1))


class Shuffle(nn.Module):
    """Grouped convolutions with the channels shuffled between them, then pixel shuffle."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.b = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.c = nn.Conv2d(12, 24, 1, groups=2)
        self.up = nn.PixelShuffle(2)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.up(self.c(x)))


class Attention(nn.Module):
    """Fused qkv, a norm over the stream, and an MLP: the usual transformer block."""

    def __init__(self, width=24, heads=3):
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, width // heads, (width // heads) ** -0.5
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.embed = nn.Linear(7, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 40), nn.Linear(40, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        n, t, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, t, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, -1))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class GroupedAttention(nn.Module):
    """Fused qkv, rotary positions, and fewer key-value heads than query heads."""

    def __init__(self, width, heads, kv_heads, head_dim):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.scale = head_dim**-0.5
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim))

    def rotate(self, x):
        t = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
        angle = torch.outer(t, self.inv_freq)
        angle = torch.cat([angle, angle], -1)
        first, second = x.chunk(2, dim=-1)
        return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()

    def forward(self, x):
        n, t, _ = x.shape
        q_size, kv_size = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        q, k, v = self.qkv(x).split([q_size, kv_size, kv_size], dim=-1)
        q = self.rotate(q.view(n, t, self.n_heads, self.head_dim).transpose(1, 2))
        k = self.rotate(k.view(n, t, self.n_kv_heads, self.head_dim).transpose(1, 2))
        v = v.view(n, t, self.n_kv_heads, self.head_dim).transpose(1, 2)
        repeat = self.n_heads // self.n_kv_heads
        k, v = (
            s[:, :, None]
            .expand(n, self.n_kv_heads, repeat, t, self.head_dim)
            .reshape(n, -1, t, self.head_dim)
            for s in (k, v)
        )
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        weights = (q @ k.transpose(-2, -1) * self.scale).masked_fill(~mask, -1e9).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, q_size))


class Decoder(nn.Module):
    """A small language model: RMS norms, grouped-query attention with RoPE, gated MLP, tied embeddings."""

    def __init__(self, vocabulary=50, width=32, layers=2, tied=True):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            block = nn.Module()
            block.norm1, block.norm2 = RMSNorm(width), RMSNorm(width)
            block.attention = GroupedAttention(width, heads=4, kv_heads=2, head_dim=8)
            block.gate, block.up = nn.Linear(width, 48, bias=False), nn.Linear(width, 48, bias=False)
            block.down = nn.Linear(48, width, bias=False)
            self.layers.append(block)
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.layers:
            x = x + block.attention(block.norm1(x))
            y = block.norm2(x)
            x = x + block.down(F.silu(block.gate(y)) * block.up(y))
        return self.head(self.norm(x))


class Norms(nn.Module):
    """Group norm in groups and in one group, instance norm, weight norm, a gate, a per-channel buffer."""

    def __init__(self):
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 12, 3, padding=1))
        self.groups, self.one = nn.GroupNorm(4, 12), nn.GroupNorm(1, 12)
        self.b = nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 10, 3, padding=1))
        self.instance = nn.InstanceNorm2d(10, affine=True)
        self.squeeze, self.excite = nn.Conv2d(10, 4, 1), nn.Conv2d(4, 10, 1)
        self.register_buffer("offset", torch.linspace(0, 1, 10).view(1, 10, 1, 1))
        self.prelu, self.head = nn.PReLU(10), nn.Linear(10, 5)

    def forward(self, x):
        x = self.one(F.relu(self.groups(self.a(x))))
        x = self.prelu(self.instance(self.b(x))) + self.offset
        x = x * self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head(x.mean((2, 3)))


NETS = {
    "residual": (Residual, lambda: torch.randn(2, 3, 8, 8)),
    "concat": (Concat, lambda: torch.randn(2, 3, 8, 8)),
    "shuffle": (Shuffle, lambda: torch.randn(2, 3, 6, 6)),
    "attention": (Attention, lambda: torch.randn(2, 6, 7)),
    "decoder": (Decoder, lambda: torch.arange(14).view(2, 7) % 50),
    "norms": (Norms, lambda: torch.randn(2, 3, 8, 8)),
}


def build(name):
    """A network with weights no two of which are alike, in evaluation mode, and its example."""
    torch.manual_seed(0)
    make, example = NETS[name]
    model = make().eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(torch.empty_like(tensor).uniform_(0.7, 1.3)).add_(
                    torch.empty_like(tensor).uniform_(0, 0.1)
                )
    return model, example()


def share_on_axes(graph):
    """The share of all weights that are in parameters with a dimension that may shrink."""
    sizes = {name: graph.shapes[name].numel() for name in graph.parameters}
    on_axes = {member.tensor for axis in graph.axes for member in graph.members(axis)}
    return sum(n for name, n in sizes.items() if name in on_axes) / sum(sizes.values())


def random_keep(graph, seed=0):
    """Some units of every axis, never all of them where there is a choice."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for name, axis in graph.axes.items():
        count = int(torch.randint(1, axis.size, (1,), generator=generator)) if axis.size > 1 else 1
        keep[name] = sorted(torch.randperm(axis.size, generator=generator)[:count].tolist())
    return keep
