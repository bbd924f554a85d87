"""Networks as people bring them, whose sizes stand in attributes, configs, shapes and first calls: all must follow."""

import functools
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from tests.lib.cases import Cases, answers

CASES = Cases()


# --------------------------------------------------------------------------------- sizes of other modules
class Generator(nn.Module):
    """A vector becomes a map, sized by what the first layer over it takes in."""

    def __init__(self, widths=(24, 20, 12)):
        super().__init__()
        self.seed = nn.Linear(10, widths[0] * 9)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z):
        x = self.seed(z).relu().reshape(len(z), self.ups[0].in_channels, 3, 3)
        for up in self.ups:
            x = up(x).relu()
        return self.out(x).tanh()


@CASES.add("seed.weight", "ups.0.weight", "ups.1.weight")
def generator():
    return Generator(), torch.randn(3, 10)


class Split(nn.Module):
    """Two halves, and a block over the last of a growing list, all joined at the end."""

    def __init__(self, a, b, blocks=2, by="sizes"):
        super().__init__()
        self.hidden, self.by = b // 2, by
        self.first, self.norm = nn.Conv2d(a, 2 * self.hidden, 1, bias=False), nn.BatchNorm2d(2 * self.hidden)
        self.blocks = nn.ModuleList(nn.Conv2d(self.hidden, self.hidden, 3, padding=1) for _ in range(blocks))
        self.last = nn.Conv2d((2 + blocks) * self.hidden, b, 1)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        parts = list(x.split([self.hidden, self.hidden], 1) if self.by == "sizes" else x.chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]).relu())
        return self.last(torch.cat(parts, 1))


@CASES.add("0.weight", "1.first.weight", "1.blocks.1.weight", "3.blocks.0.weight", "3.last.weight")
def split_stages():
    layers = [
        nn.Conv2d(3, 12, 3, 2, 1),
        Split(12, 20),
        nn.ReLU(),
        Split(20, 28, by="chunks"),
        nn.Conv2d(28, 5, 1),
    ]
    return nn.Sequential(*layers), torch.randn(2, 3, 12, 12)


class Crop(nn.Module):
    """A U-Net without padding: what the encoder kept is cropped to what the decoder has."""

    def __init__(self, c=12):
        super().__init__()
        self.a, self.b, self.mid = nn.Conv2d(1, c, 3), nn.Conv2d(c, 2 * c, 3), nn.Conv2d(2 * c, 2 * c, 3)
        self.up, self.c, self.out = (
            nn.ConvTranspose2d(2 * c, c, 2, 2),
            nn.Conv2d(2 * c, c, 3),
            nn.Conv2d(c, 2, 1),
        )

    def forward(self, x):
        kept = self.a(x).relu()
        x = self.up(self.mid(self.b(F.max_pool2d(kept, 2)).relu()).relu())
        top, left = ((k - s) // 2 for k, s in zip(kept.shape[2:], x.shape[2:], strict=True))
        kept = kept[:, :, top : top + x.size(2), left : left + x.size(3)]
        return self.out(self.c(torch.cat([kept, x], 1)).relu())


@CASES.add("a.weight", "b.weight", "mid.weight", "up.weight", "c.weight")
def cropping_unet():
    return Crop(), torch.randn(2, 1, 22, 22)


# ----------------------------------------------------------------------------------------- sizes in a config
@dataclass
class Config:
    heads: int = 4
    dim: int = 6
    inner: int = 40
    tasks: tuple = (3, 5)


class ConfigBlock(nn.Module):
    def __init__(self, config, width):
        super().__init__()
        self.config = config
        self.qkv, self.out = (
            nn.Linear(width, 3 * config.heads * config.dim),
            nn.Linear(config.heads * config.dim, width),
        )
        self.up, self.down = nn.Linear(width, 2 * config.inner), nn.Linear(config.inner, width)

    def forward(self, x):
        n, t, _ = x.shape
        heads, dim = self.config.heads, self.config.dim
        q, k, v = (y.view(n, t, heads, dim).transpose(1, 2) for y in self.qkv(x).split(heads * dim, -1))
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(n, t, heads * dim))
        gate, value = self.up(x).split(self.config.inner, -1)
        return x + self.down(gate.sigmoid() * value)


class Hydra(nn.Module):
    """One stem and a block with a head for each task; all read one config."""

    def __init__(self, config):
        super().__init__()
        self.stem = nn.Linear(7, 16)
        self.blocks = nn.ModuleList(ConfigBlock(config, 16) for _ in config.tasks)
        self.heads = nn.ModuleList(nn.Linear(16, n) for n in config.tasks)

    def forward(self, x):
        x = self.stem(x)
        return [head(block(x).mean(1)) for block, head in zip(self.blocks, self.heads, strict=True)]


@CASES.add("stem.weight", "blocks.0.qkv.weight", "blocks.1.up.weight")
def hydra():
    return Hydra(Config()), torch.randn(2, 5, 7)


class Numbered(nn.Module):
    """As many layers as heads, as features of a head: a layer's number must stay, the two sizes must follow."""

    def __init__(self, number, n=4):
        super().__init__()
        self.number, self.n_heads, self.head_dim = number, n, n
        self.qkv, self.out = nn.Linear(n * n, 3 * n * n), nn.Linear(n * n, n * n)

    def forward(self, x, seen):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.n_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))
        seen[self.number] = x.mean()
        return x


class AllEqual(nn.Module):
    def __init__(self, n=4):
        super().__init__()
        self.num_layers = n
        self.embed, self.head = nn.Embedding(n, n * n), nn.Linear(n * n, n)
        self.layers = nn.ModuleList(Numbered(i + 1, n) for i in range(n))

    def forward(self, ids):
        seen, x = {}, self.embed(ids)
        for layer in self.layers[: self.num_layers]:
            x = layer(x, seen)
        return self.head(x) + sum(seen[i + 1] for i in range(self.num_layers))


@CASES.add("embed.weight", "layers.0.qkv.weight", "layers.3.qkv.weight", same_as_masked=False)
def all_sizes_equal():
    return AllEqual(), torch.arange(8).view(2, 4) % 4


# ------------------------------------------------------------------------------------------- attention
class Modulated(nn.Module):
    """A block whose norms are shifted, scaled and gated by a condition."""

    def __init__(self, d, heads):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(d, elementwise_affine=False, eps=1e-6) for _ in "ab")
        self.num_heads, self.head_dim = heads, d // heads
        self.qkv, self.proj, self.ada = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, 6 * d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(approximate="tanh"), nn.Linear(2 * d, d))

    def attend(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(F.silu(c)).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attend(self.norm1(x) * (1 + scale1[:, None]) + shift1[:, None])
        return x + gate2.unsqueeze(1) * self.mlp(self.norm2(x) * (1 + scale2[:, None]) + shift2[:, None])


class Diffusion(nn.Module):
    """Patches of a picture, a time step, a class; patches put together to a picture again."""

    def __init__(self, d=32, heads=4, channels=3, patch=2, side=4):
        super().__init__()
        self.channels, self.patch = channels, patch
        self.embed, self.label = nn.Conv2d(channels, d, patch, patch), nn.Embedding(5, d)
        self.place = nn.Parameter(torch.randn(1, side * side, d) * 0.1)
        self.time = nn.Sequential(nn.Linear(8, d), nn.SiLU(), nn.Linear(d, d))
        self.blocks = nn.ModuleList(Modulated(d, heads) for _ in range(2))
        self.out = nn.Linear(d, patch * patch * channels)

    def forward(self, x, t, y):
        x = self.embed(x).flatten(2).transpose(1, 2) + self.place
        angles = t[:, None] * torch.exp(-torch.arange(4, dtype=t.dtype, device=t.device))
        c = self.time(torch.cat([angles.cos(), angles.sin()], -1)) + self.label(y)
        for block in self.blocks:
            x = block(x, c)
        p, side = self.patch, int(x.shape[1] ** 0.5)
        x = self.out(x).reshape(len(x), side, side, p, p, self.channels)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(len(x), self.channels, side * p, side * p)


@CASES.add(
    "embed.weight", "time.0.weight", "blocks.0.mlp.0.weight", "blocks.1.qkv.weight", same_as_masked=False
)
def diffusion_transformer():
    return Diffusion(), (torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([1, 4]))


class Windows(nn.Module):
    """Attention within windows that are shifted, with a table of biases by relative place."""

    def __init__(self, d=24, heads=3, window=4, shift=2):
        super().__init__()
        self.heads, self.window, self.shift, self.scale = heads, window, shift, (d // heads) ** -0.5
        self.norm, self.qkv, self.proj = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.1)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (at[:, :, None] - at[:, None] + window - 1).permute(1, 2, 0)
        self.register_buffer("index", apart[..., 0] * (2 * window - 1) + apart[..., 1])

    def forward(self, x):
        n, h, w, c = x.shape
        size = self.window
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        y = (
            y.view(n, h // size, size, w // size, size, c)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(-1, size * size, c)
        )
        b, t, _ = y.shape
        q, k, v = self.qkv(y).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(t, t, -1).permute(2, 0, 1)
        y = ((q * self.scale) @ k.transpose(-2, -1) + bias[None]).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(b, t, -1))
        y = y.view(n, h // size, w // size, size, size, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1)
        return x + torch.roll(y, (self.shift, self.shift), (1, 2))


class WindowNet(nn.Module):
    def __init__(self, d=24):
        super().__init__()
        self.embed, self.a, self.b = nn.Conv2d(3, d, 2, 2), Windows(d, shift=0), Windows(d)
        self.merge, self.head = nn.Linear(4 * d, 2 * d), nn.Linear(2 * d, 5)

    def forward(self, x):
        x = self.b(self.a(self.embed(x).permute(0, 2, 3, 1)))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.head(self.merge(torch.cat(corners, -1)).relu().mean((1, 2)))


@CASES.add("embed.weight", "a.qkv.weight", "b.qkv.weight", "merge.weight", same_as_masked=False)
def window_attention():
    return WindowNet(), torch.randn(2, 3, 16, 16)


class Causal(nn.Module):
    """A decoder that makes its mask itself, in one of several ways, and repeats keys for groups of queries."""

    def __init__(self, mask, d=24, heads=6, groups=2, dim=4):
        super().__init__()
        self.mask, self.heads, self.groups, self.dim = mask, heads, groups, dim
        self.embed, self.head = nn.Embedding(11, d), nn.Linear(d, 11, bias=False)
        self.q, self.k, self.v = (nn.Linear(d, n * dim) for n in (heads, groups, groups))
        self.o = nn.Linear(heads * dim, d)
        self.up, self.down = nn.Linear(d, 40), nn.Linear(40, d)

    def forward(self, ids):
        n, t = ids.shape
        x = self.embed(ids)
        q = self.q(x).view(n, t, self.heads, self.dim).transpose(1, 2)
        k, v = (f(x).view(n, t, self.groups, self.dim).transpose(1, 2) for f in (self.k, self.v))
        k, v = (y.repeat_interleave(self.heads // self.groups, dim=1) for y in (k, v))
        scores = q @ k.transpose(2, 3) * 0.5
        x = x + self.o(MASKS[self.mask](scores, t).softmax(-1).matmul(v).transpose(1, 2).reshape(n, t, -1))
        return self.head(x + self.down(F.silu(self.up(x))))


@functools.lru_cache
def kept_mask(t):
    return torch.ones(t, t, dtype=torch.bool).tril()


MASKS = {
    "full": lambda s, t: s + torch.full((t, t), float("-inf"), device=s.device).triu(1),
    "filled": lambda s, t: s.masked_fill(
        torch.ones(t, t, device=s.device).triu(1).bool(), torch.finfo(s.dtype).min
    ),
    "compared": lambda s, t: torch.where(torch.arange(t)[:, None] >= torch.arange(t), s, -1e9),
    "kept": lambda s, t: s.masked_fill(~kept_mask(t), -1e9),
}


def causal(mask):
    return Causal(mask), torch.arange(14).view(2, 7) % 11


for _mask in MASKS:
    CASES.add("embed.weight", "q.weight", "k.weight", "v.weight", "up.weight", name=f"mask {_mask}")(
        functools.partial(causal, _mask)
    )


# ----------------------------------------------------------------------------------------- kept from a call
class Grid(nn.Module):
    """Boxes at the points of a grid, which is made at the first call and kept."""

    def __init__(self, classes=4):
        super().__init__()
        self.made_for, self.outs = None, 4 + classes
        self.a, self.b = nn.Conv2d(3, 20, 3, 2, 1), nn.Conv2d(20, 24, 3, 2, 1)
        self.head = nn.Conv2d(24, self.outs, 1)

    def forward(self, x):
        y = self.head(self.b(self.a(x).relu()).relu())
        n, _, h, w = y.shape
        if self.made_for != y.shape:
            ys, xs = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
            self.points, self.made_for = torch.stack((xs, ys)).reshape(1, 2, h * w), y.shape
        sides, classes = y.view(n, self.outs, h * w).split((4, self.outs - 4), 1)
        near, far = sides.chunk(2, 1)
        return torch.cat([self.points - near, self.points + far, classes.sigmoid()], 1)


@CASES.add("a.weight", "b.weight")
def grid_kept_between_calls():
    return Grid(), torch.randn(1, 3, 16, 16)


@CASES.add("a.weight", "b.weight")
def grid_kept_before_the_trace():
    model, example = grid_kept_between_calls()
    model.eval()
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32)), model(example)
    return model, example


# ------------------------------------------------------------------------------------------------- tests
@pytest.mark.parametrize("name", CASES)
def test_sizes_follow_in_networks_as_they_come(name):
    CASES.check(name)


def test_a_layers_number_is_no_size():
    torch.manual_seed(0)
    model, ids = all_sizes_equal()
    graph = prunus.trace(model.eval(), ids)
    small = prunus.shrink(model, graph, {n: range(a.size // 2) for n, a in graph.axes.items()})
    assert [layer.number for layer in small.layers] == [1, 2, 3, 4] and small.num_layers == 4
    assert [(layer.n_heads, layer.head_dim) for layer in small.layers] == [(2, 2)] * 4
    assert answers(small, ids)[0].shape == (2, 4, 4)


def test_a_shared_config_follows_in_all_that_read_it():
    torch.manual_seed(0)
    model, x = hydra()
    graph = prunus.trace(model.eval(), x)
    small = prunus.shrink(model, graph, {n: range(a.size // 2) for n, a in graph.axes.items()})
    assert small.blocks[0].config is small.blocks[1].config
    assert (small.blocks[0].config.heads, small.blocks[0].config.dim, small.blocks[0].config.inner) == (
        2,
        3,
        20,
    )
    assert (model.blocks[0].config.heads, model.blocks[0].config.inner) == (4, 40)
