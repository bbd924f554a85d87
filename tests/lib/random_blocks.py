"""What the random networks are made of: one module for each thing that people write in a forward pass."""

import torch
import torch.nn.functional as F
from torch import nn

GATES = ("chunk", "split", "slice", "glu", "pairs")


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class UnitLength(nn.Module):
    """Every token divided by its length, and constants of the same size added."""

    def forward(self, x):
        return F.normalize(x, dim=-1) + torch.zeros(x.shape[-1], dtype=x.dtype, device=x.device)


class LastDim(nn.Module):
    """A layer of tokens applied to a map: N H W C and back."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Shuffle(nn.Module):
    """Channel shuffle, the sizes read off the input."""

    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleRest(Shuffle):
    """The same with -1 in the views."""

    def forward(self, x):
        n, _, h, w = x.shape
        return x.view(n, self.groups, -1, h, w).transpose(1, 2).reshape(n, -1, h, w)


class Halves(nn.Module):
    """A gated unit: one half times the sigmoid of the other, cut in one of several ways."""

    def __init__(self, how, half, dim):
        super().__init__()
        self.how, self.half, self.dim = how, half, dim

    def forward(self, x):
        if self.how == "glu":
            return F.glu(x, self.dim)
        if self.how == "chunk":
            first, second = x.chunk(2, self.dim)
        elif self.how == "split":
            first, second = x.split(self.half, self.dim)
        elif self.how == "slice":
            first, second = x.narrow(self.dim, 0, self.half), x.narrow(self.dim, self.half, self.half)
        else:
            first, second = x.unflatten(self.dim, (-1, 2)).unbind(self.dim if self.dim < 0 else self.dim + 1)
        return first * second.sigmoid()


class Part(nn.Module):
    """A layer over the first channels; the rest pass by."""

    def __init__(self, layer, sizes):
        super().__init__()
        self.layer, self.sizes = layer, sizes

    def forward(self, x):
        first, rest = x.split(self.sizes, 1)
        return torch.cat([rest, self.layer(first)], 1)


class SpatialGate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gate = nn.Conv2d(width, 1, 1)

    def forward(self, x):
        return self.gate(x).sigmoid() * x


class SqueezeExcite(nn.Module):
    def __init__(self, width, squeezed):
        super().__init__()
        self.squeeze, self.excite = nn.Linear(width, squeezed), nn.Linear(squeezed, width)

    def forward(self, x):
        n, c, _, _ = x.shape
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return x * gate.view(n, c, 1, 1).expand_as(x)


class Scale(nn.Module):
    """A learned factor for each channel, and an offset that is a buffer."""

    def __init__(self, *shape):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(shape))
        self.register_buffer("offset", torch.zeros(shape))

    def forward(self, x):
        return x * self.gamma + self.offset


class Standardise(nn.Module):
    """Statistics of each channel as buffers, divided by."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, width, 1, 1))
        self.register_buffer("std", torch.ones(1, width, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


class Residual(nn.Module):
    def __init__(self, body, shortcut, body_first=False):
        super().__init__()
        self.body, self.shortcut, self.body_first = body, shortcut, body_first

    def forward(self, x):
        return self.body(x) + self.shortcut(x) if self.body_first else self.shortcut(x) + self.body(x)


class PadShortcut(nn.Module):
    """Zeros before and after the channels, as many as two attributes say."""

    def __init__(self, front, back):
        super().__init__()
        self.front, self.back = front, back

    def forward(self, x):
        return F.pad(x, (0, 0, 0, 0, self.front, self.back))


class Concat(nn.Module):
    def __init__(self, branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class Dense(nn.Module):
    """Every layer sees all before it."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Twice(nn.Module):
    """One layer used two times, once with its weight transposed."""

    def __init__(self, width):
        super().__init__()
        self.down = nn.Conv2d(width, width + 1, 1)
        self.layer = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        x = self.layer(F.relu(self.layer(x)))
        return F.conv2d(self.down(x).relu(), self.down.weight.transpose(0, 1))


class Attention(nn.Module):
    """How q, k, v come (separate, or fused in one of two orders), how sizes are written, how products are scaled."""

    def __init__(self, width, heads, head_dim, source, sizes, scale):
        super().__init__()
        self.source, self.sizes, self.scaling = source, sizes, scale
        self.num_heads, self.head_dim, self.scale = heads, head_dim, head_dim**-0.5
        inner = heads * head_dim
        if source == "separate":
            self.q, self.k, self.v = (nn.Linear(width, inner) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * inner)
        self.out = nn.Linear(inner, width)

    def sizes_of(self, x, parts):
        """Heads and features of a head in `parts` tensors that lie one after the other in x."""
        if self.sizes == "shape":
            return self.num_heads, x.shape[-1] // parts // self.num_heads
        return -1 if self.sizes == "dim" else self.num_heads, -1 if self.sizes == "heads" else self.head_dim

    def project(self, x):
        n, t, _ = x.shape
        if self.source == "separate":
            found = [layer(x) for layer in (self.q, self.k, self.v)]
            return [y.view(n, t, *self.sizes_of(y, 1)).transpose(1, 2) for y in found]
        x = self.qkv(x)
        heads, dim = self.sizes_of(x, 3)
        if self.source == "three first":
            return x.view(n, t, 3, heads, dim).permute(2, 0, 3, 1, 4)
        return x.view(n, t, heads, 3, dim).permute(3, 0, 2, 1, 4).unbind(0)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.project(x)
        if self.scaling == "fused":
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            scale = q.shape[-1] ** -0.5 if self.scaling == "computed" else self.scale
            x = ((q * scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        inner = self.num_heads * self.head_dim if self.sizes == "attributes" else -1
        return self.out(x.transpose(1, 2).reshape(n, t, inner))


class GatedMLP(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(width, inner),
            nn.Linear(width, inner),
            nn.Linear(inner, width),
        )

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Tokens(nn.Module):
    """A map as tokens, in one of two ways."""

    def __init__(self, permuted):
        super().__init__()
        self.permuted = permuted

    def forward(self, x):
        if self.permuted:
            return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])
        return x.flatten(2).transpose(1, 2)


class Permute(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class Mean(nn.Module):
    def __init__(self, *dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return x.mean(self.dims)


class Recurrent(nn.Module):
    """The states of a recurrent layer at every step."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class CellLoop(nn.Module):
    """A loop over a cell, which makes its first state itself."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state, states = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            states.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(states, 1)


class Experts(nn.Module):
    """Every token through every expert, in one product of a batch; `gate` weighs them."""

    def __init__(self, width, inner, count):
        super().__init__()
        self.gate = nn.Linear(width, count)
        self.up, self.down = (nn.Parameter(torch.randn(count, *s)) for s in ((width, inner), (inner, width)))

    def forward(self, x):
        chosen, index = self.gate(x).topk(1, -1)
        weight = torch.zeros_like(self.gate(x)).scatter(-1, index, chosen.sigmoid())
        each = (x[:, None] @ self.up).relu() @ self.down  # (N, E, T, C)
        return (each * weight.transpose(1, 2)[..., None]).sum(1)


class Tied(nn.Module):
    """Logits by the embedding's own weight."""

    def __init__(self, embedding):
        super().__init__()
        self.weight = embedding.weight

    def forward(self, x):
        return F.linear(x, self.weight)
