"""Networks as people bring them: other ways in training, random numbers, seldom operators, recurrence, memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import prunus
from tests.lib.cases import Cases, answers

CASES = Cases()


# ------------------------------------------------------------------------------------------------ training
class Distribution(nn.Module):
    """Logits of bins in training, and their mean in evaluation."""

    def __init__(self, bins=8):
        super().__init__()
        self.bins = bins
        self.a, self.b = nn.Conv2d(3, 20, 3, 2, 1), nn.Conv2d(20, 24, 3, 2, 1)
        self.sides = nn.Conv2d(24, 4 * bins, 1)
        self.register_buffer("centres", torch.arange(float(bins)))

    def forward(self, x):
        logits = self.sides(self.b(self.a(x).relu()).relu())
        if self.training:
            return logits
        n, _, h, w = logits.shape
        return logits.view(n, 4, self.bins, h * w).softmax(2).transpose(2, 3) @ self.centres


@CASES.add("a.weight", "b.weight")
def logits_in_training():
    return Distribution(), torch.randn(2, 3, 12, 12)


class Auxiliary(nn.Module):
    """A second head that only training runs, over features in the middle, with dropout and batch norm."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 24, 3, padding=1),
        )
        self.side = nn.Sequential(nn.Conv2d(16, 12, 1), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(12, 4, 1))
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(24, 4)

    def forward(self, x):
        x = self.norm(self.a(x)).relu()
        out = self.head(self.drop(self.b(x).relu().mean((2, 3))))
        return (out, self.side(x).mean((2, 3))) if self.training else out


@CASES.add("a.weight", "b.weight", "side.0.weight")
def head_of_training_alone():
    return Auxiliary(), torch.randn(4, 3, 8, 8)


class Quantiser(nn.Module):
    """The nearest of some vectors, which follow running averages in training."""

    def __init__(self, dim, entries=10):
        super().__init__()
        self.entries = entries
        self.register_buffer("book", torch.randn(entries, dim))
        self.register_buffer("sums", self.book.clone())
        self.register_buffer("counts", torch.ones(entries))

    def forward(self, x):
        flat = x.permute(0, 2, 3, 1).flatten(0, 2)
        apart = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ self.book.t() + self.book.pow(2).sum(1)
        nearest = apart.argmin(1)
        if self.training:
            with torch.no_grad():
                hot = F.one_hot(nearest, self.entries).to(x.dtype)
                self.counts.mul_(0.99).add_(hot.sum(0), alpha=0.01)
                self.sums.mul_(0.99).add_(hot.t() @ flat, alpha=0.01)
                self.book.copy_(self.sums / self.counts[:, None])
        found = F.embedding(nearest, self.book).view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)
        return x + (found - x).detach(), (found.detach() - x).pow(2).mean()


class VectorCode(nn.Module):
    def __init__(self, code=12):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 20, 4, 2, 1), nn.Conv2d(20, code, 3, padding=1)
        self.quantise, self.c = Quantiser(code), nn.Conv2d(code, 20, 3, padding=1)
        self.up = nn.ConvTranspose2d(20, 3, 4, 2, 1)

    def forward(self, x):
        code, loss = self.quantise(self.b(self.a(x).relu()))
        return self.up(self.c(code).relu()), loss


@CASES.add("a.weight", "c.weight", same_as_masked=False)
def quantiser_with_averages():
    return VectorCode(), torch.randn(2, 3, 8, 8)


def normed(new):
    """Convolutions with weight norm and spectral norm, of torch's new kind or of its old one."""
    weight_norm = parametrizations.weight_norm if new else nn.utils.weight_norm
    spectral_norm = parametrizations.spectral_norm if new else nn.utils.spectral_norm
    layers = [weight_norm(nn.Conv1d(4, 16, 3, padding=1)), spectral_norm(nn.Conv1d(16, 24, 3, padding=1))]
    layers.insert(1, nn.LeakyReLU(0.1))
    return nn.Sequential(
        *layers, nn.ReLU(), weight_norm(nn.ConvTranspose1d(24, 8, 4, 2, 1), dim=1), nn.Conv1d(8, 2, 1)
    )


@CASES.add(exports=False)
def norms_behind_weights():
    return normed(new=True), torch.randn(2, 4, 8)


# ------------------------------------------------------------------------------------------ random numbers
class Variational(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.mean, self.spread = nn.Linear(12, 40), nn.Linear(40, 6), nn.Linear(40, 6)
        self.b, self.out = nn.Linear(6, 40), nn.Linear(40, 12)

    def forward(self, x):
        h = self.a(x).relu()
        mean, spread = self.mean(h), self.spread(h)
        code = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        return self.out(self.b(code).relu()).sigmoid(), mean, spread


@CASES.add("a.weight", "b.weight")
def variational_autoencoder():
    return Variational(), torch.rand(3, 12)


class Noisy(nn.Module):
    """Noise for each pixel, scaled for each channel, and a gate sampled between two ways."""

    def __init__(self, c=20):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, c, 3, padding=1),
            nn.Conv2d(c, c, 3, padding=1),
            nn.Conv2d(c, 2, 1),
        )
        self.strength, self.gate = nn.Parameter(torch.full((1, c, 1, 1), 0.1)), nn.Linear(c, 2)

    def forward(self, x):
        x = self.a(x)
        x = x + self.strength * torch.randn(len(x), 1, *x.shape[2:], device=x.device, dtype=x.dtype)
        way = F.gumbel_softmax(self.gate(x.mean((2, 3))), hard=False)[:, :, None, None, None]
        return self.c(way[:, 0] * self.b(x).relu() + way[:, 1] * x)


@CASES.add("a.weight", "b.weight", same_as_masked=False)
def noise_and_a_sampled_way():
    return Noisy(), torch.randn(2, 3, 8, 8)


# ---------------------------------------------------------------------------------------------- operators
class Unpool(nn.Module):
    """The larger of two units, and maxima put back where they were."""

    def __init__(self, c=16):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
        self.mid, self.head = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, 4, 1)

    def forward(self, x):
        x = self.a(x)
        x = torch.stack([x, self.b(x.relu())], -1).amax(-1)
        small, where = F.max_pool2d(x, 2, return_indices=True)
        return self.head(torch.maximum(F.max_unpool2d(self.mid(small), where, 2), x))


@CASES.add("a.weight", "mid.weight", same_as_masked=False)
def unpooling():
    return Unpool(), torch.randn(2, 3, 8, 8)


class Edges(nn.Module):
    """Messages along edges, weighed by attention over the edges of a node, summed at their ends."""

    def __init__(self, a, b):
        super().__init__()
        self.own, self.sent, self.weigh = nn.Linear(a, b), nn.Linear(a, b), nn.Linear(2 * b, 1)

    def forward(self, x, edges):
        start, end = edges
        own, sent = self.own(x), self.sent(x)
        weight = F.leaky_relu(self.weigh(torch.cat([own[end], sent[start]], -1))).exp()
        total = torch.zeros_like(own[:, :1]).index_add(0, end, weight)
        where = end[:, None].expand(-1, sent.shape[1])
        return own + torch.zeros_like(own).scatter_add(0, where, weight * sent[start]) / (total + 1e-6)


class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = Edges(6, 24), Edges(24, 20), nn.Linear(20, 3)

    def forward(self, x, edges):
        return self.head(self.b(self.a(x, edges).relu(), edges).relu())


@CASES.add("a.own.weight", "a.sent.weight", "b.sent.weight")
def messages_along_edges():
    return GraphNet(), (torch.randn(9, 6), torch.randint(9, (2, 25)))


class Warp(nn.Module):
    """One picture warped by a flow from both."""

    def __init__(self, c=20):
        super().__init__()
        self.a, self.b, self.flow = (
            nn.Conv2d(6, c, 3, padding=1),
            nn.Conv2d(c, c, 3, padding=1),
            nn.Conv2d(c, 2, 1),
        )

    def forward(self, x, y):
        flow = 0.1 * self.flow(self.b(self.a(torch.cat([x, y], 1)).relu()).relu())
        grid = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3).to(x), list(x.shape), align_corners=False)
        return F.grid_sample(y, grid + flow.permute(0, 2, 3, 1), align_corners=False)


@CASES.add("a.weight", "b.weight")
def warp_by_a_flow():
    return Warp(), (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))


class Coupling(nn.Module):
    """A step of a flow: what a checkerboard hides is scaled and shifted by what it shows."""

    def __init__(self, even, c=24):
        super().__init__()
        rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        self.register_buffer("shown", ((rows + columns) % 2 == even).float()[None, None])
        self.a, self.b, self.c = (
            nn.Conv2d(2, c, 3, padding=1),
            nn.Conv2d(c, c, 1),
            nn.Conv2d(c, 4, 3, padding=1),
        )
        self.bound = nn.Parameter(torch.ones(1))

    def forward(self, x):
        scale, shift = self.c(self.b(self.a(self.shown * x).relu()).relu()).chunk(2, 1)
        scale = self.bound * scale.tanh() * (1 - self.shown)
        return x * scale.exp() + shift * (1 - self.shown), scale.flatten(1).sum(1)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(Coupling(i % 2) for i in range(2))

    def forward(self, x):
        total = x.new_zeros(len(x))
        for step in self.steps:
            x, volume = step(x)
            total = total + volume
        return x, total


@CASES.add("steps.0.a.weight", "steps.0.b.weight", "steps.1.b.weight")
def flow_of_checkerboards():
    return Flow(), torch.randn(2, 2, 8, 8)


# -------------------------------------------------------------------------------------- recurrence, experts
class Memory(nn.Module):
    """One convolution for all gates of a recurrent map, called step by step."""

    def __init__(self, a=3, hidden=12):
        super().__init__()
        self.hidden = hidden
        self.gates, self.head = nn.Conv2d(a + hidden, 4 * hidden, 3, padding=1), nn.Conv2d(hidden, 2, 1)

    def forward(self, x):
        h = c = x.new_zeros(len(x), self.hidden, *x.shape[3:])
        for step in range(x.shape[1]):
            i, f, o, g = self.gates(torch.cat([x[:, step], h], 1)).split(self.hidden, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


@CASES.add("gates.weight")
def recurrent_maps():
    return Memory(), torch.randn(2, 3, 3, 6, 6)


class Translator(nn.Module):
    """A GRU reads, another writes with a look at what the first one read."""

    def __init__(self, words=9, embed=12, hidden=20):
        super().__init__()
        self.read, self.write = nn.Embedding(words, embed), nn.Embedding(words, embed)
        self.encoder = nn.GRU(embed, hidden, batch_first=True, bidirectional=True)
        self.bridge, self.decoder = nn.Linear(2 * hidden, hidden), nn.GRU(embed, hidden, batch_first=True)
        self.look, self.join, self.out = (
            nn.Linear(2 * hidden, hidden),
            nn.Linear(2 * hidden, 16),
            nn.Linear(16, words),
        )

    def forward(self, source, target):
        seen, last = self.encoder(self.read(source))
        first = self.bridge(torch.cat([last[0], last[1]], -1)).tanh()[None]
        states, _ = self.decoder(self.write(target), first)
        keys = self.look(seen)
        found = (states @ keys.transpose(1, 2)).softmax(-1) @ keys
        return self.out(self.join(torch.cat([states, found], -1)).tanh())


@CASES.add("encoder.weight_hh_l0", "decoder.weight_hh_l0", "bridge.weight", "join.weight", "read.weight")
def recurrent_encoder_and_decoder():
    return Translator(), (torch.arange(8).view(2, 4), torch.arange(6).view(2, 3))


class Mixture(nn.Module):
    """Experts multiplied by einsum, two of which weigh in for each token, and one that all share."""

    def __init__(self, d=16, inner=20, experts=4):
        super().__init__()
        self.embed, self.route, self.head = nn.Linear(6, d), nn.Linear(d, experts), nn.Linear(d, 3)
        self.up, self.gate = (nn.Parameter(torch.randn(experts, d, inner) * 0.2) for _ in "ab")
        self.down, self.shared = nn.Parameter(torch.randn(experts, inner, d) * 0.2), nn.Linear(d, d)

    def forward(self, x):
        x = self.embed(x)
        scores = self.route(x).softmax(-1)
        best, which = scores.topk(2, -1)
        weight = torch.zeros_like(scores).scatter(-1, which, best / best.sum(-1, keepdim=True))
        inner = F.silu(torch.einsum("ntd,edf->ntef", x, self.gate)) * torch.einsum(
            "ntd,edf->ntef", x, self.up
        )
        return self.head(x + self.shared(x) + torch.einsum("ntef,efd,nte->ntd", inner, self.down, weight))


@CASES.add("embed.weight", "up", "gate", "down")
def mixture_by_einsum():
    return Mixture(), torch.randn(2, 5, 6)


# ------------------------------------------------------------------------------------ memory between calls
class Leaky(nn.Module):
    """A unit that keeps its voltage in a plain attribute from one call to the next."""

    def __init__(self):
        super().__init__()
        self.voltage = 0.0

    def forward(self, x):
        self.voltage = 0.5 * self.voltage + x
        spike = (4 * (self.voltage - 1)).sigmoid()
        self.voltage = self.voltage * (1 - spike)
        return spike


class Spikes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 20), nn.Linear(20, 24), nn.Linear(24, 3)
        self.first, self.second = Leaky(), Leaky()

    def forward(self, x):
        self.first.voltage = self.second.voltage = 0.0
        return sum(self.c(self.second(self.b(self.first(self.a(x))))) for _ in range(3))


@CASES.add(
    "a.weight", "b.weight", same_as_masked=False, exports=False
)  # torch.export refuses such attributes
def memory_in_attributes():
    model, example = Spikes(), torch.randn(2, 6)
    with torch.no_grad():
        model(torch.randn(5, 6))  # what it remembers is of another batch
    return model, example


# -------------------------------------------------------------------------------------------------- tests
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings(
    "ignore:The tensor attributes .*_flat_weights:UserWarning"
)  # torch's, of each recurrent layer
def test_networks_as_they_come_are_pruned_and_proved(name):
    CASES.check(name)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_norms_behind_weights_stay_norms(new):
    torch.manual_seed(0)
    model, x = normed(new).eval(), torch.randn(2, 4, 8)
    graph = prunus.trace(model, x)
    small = prunus.shrink(model, graph, {n: range(a.size // 2) for n, a in graph.axes.items()})
    assert answers(small, x)[0].shape == (2, 2, 16)
    for layer in (small[0], small[2], small[4]):
        assert parametrize.is_parametrized(layer) if new else layer._forward_pre_hooks
    assert [small[i].weight.shape[:2] for i in (0, 2, 4)] == [(8, 4), (12, 8), (12, 4)]


def test_the_codes_width_follows_its_averages():
    torch.manual_seed(0)
    model, x = quantiser_with_averages()
    graph = prunus.trace(model.eval(), x)
    (code,) = [name for name, axis in graph.axes.items() if axis.size == 12]
    small = prunus.shrink(model, graph, {code: range(0, 12, 2)})
    assert small.quantise.book.shape == small.quantise.sums.shape == (10, 6)
    before = small.quantise.book.clone()
    small.train()(x)
    assert small.quantise.book.shape == (10, 6) and not torch.equal(before, small.quantise.book)
