"""Random networks: a program drawn as plain data, and the module it builds.

A program is (entry, steps, token steps, head). A step is (kind, a, b) or (kind, a, b, steps): the numbers choose widths
and variants, so a failing program prints as its own reproduction. Maps are (2, C, 4, 4), tokens (2, T, C).
"""

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.lib.random_blocks import (
    GATES,
    Attention,
    CellLoop,
    Concat,
    Dense,
    Experts,
    GatedMLP,
    Halves,
    LastDim,
    Mean,
    PadShortcut,
    Part,
    Permute,
    Recurrent,
    Residual,
    RMSNorm,
    Scale,
    Shuffle,
    ShuffleRest,
    SpatialGate,
    SqueezeExcite,
    Standardise,
    Tied,
    Tokens,
    Twice,
    UnitLength,
)
from tests.lib.random_functions import DRAWS, PLACES, SPACES, Apply, Drawn, InTraining

WIDTHS = (4, 6, 3, 8, 2, 12, 5)
ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.GELU, nn.Identity, nn.Tanh, nn.SiLU)


def pick(number, options):
    return options[number % len(options)]


# ---------------------------------------------------------------------- steps on maps: (module, width)
def map_norm(number, width):
    groups = 2 if width % 2 == 0 else 1
    return pick(number, (
        lambda: nn.Identity(),
        lambda: nn.BatchNorm2d(width),
        lambda: nn.InstanceNorm2d(width, affine=True),
        lambda: nn.BatchNorm2d(width, affine=False),
        lambda: nn.GroupNorm(groups, width),
        lambda: LastDim(nn.LayerNorm(width)),
    ))()  # fmt: skip


def conv(width, a, b, steps):
    out = pick(a, WIDTHS)
    layer = nn.Conv2d(width, out, *pick(b, ((3, 1, 1), (1,))), bias=bool(a % 3))
    layer = {5: spectral_norm, 6: weight_norm}.get(b % 7, nn.Identity())(layer)
    return nn.Sequential(layer, map_norm(a + b, out), pick(b, ACTIVATIONS)()), out


def grouped(width, a, b, steps):
    groups = pick(a, (2, 3, 4))
    inner, out = groups * pick(b, (1, 2, 3)), groups * pick(a + b, (2, 1, 3))
    kind = nn.ConvTranspose2d if b % 4 == 3 else nn.Conv2d
    layer = kind(inner, out, 3, padding=1, groups=groups)
    return nn.Sequential(nn.Conv2d(width, inner, 1), nn.ReLU(), layer), out


def depthwise(width, a, b, steps):
    out = width * pick(a, (1, 2))
    return nn.Sequential(nn.Conv2d(width, out, 3, padding=1, groups=width), map_norm(b, out)), out


def transposed(width, a, b, steps):
    out = pick(a, WIDTHS)
    if b % 2:
        return nn.ConvTranspose2d(width, out, 3, padding=1), out
    return nn.Sequential(nn.ConvTranspose2d(width, out, 2, stride=2), nn.MaxPool2d(2)), out


def shuffle(width, a, b, steps):
    groups = pick(a, (2, 3))
    out = groups * pick(b, (2, 3, 1))
    return nn.Sequential(nn.Conv2d(width, out, 1), pick(a + b, (Shuffle, ShuffleRest))(groups)), out


def pixels(width, a, b, steps):
    if b % 2:
        return nn.Sequential(nn.PixelUnshuffle(2), nn.Upsample(scale_factor=2)), 4 * width
    out = pick(a, (2, 3))
    return nn.Sequential(nn.Conv2d(width, 4 * out, 1), nn.PixelShuffle(2), nn.AvgPool2d(2)), out


def halves(width, a, b, steps):
    out = pick(a, WIDTHS)
    how = pick(b, GATES)
    return nn.Sequential(nn.Conv2d(width, 2 * out, 1), Halves(how, out, 1)), out


def part(width, a, b, steps):
    out = pick(a, WIDTHS) + 1
    first = 1 + b % (out - 1)
    layer, after = conv(first, b, a, ())
    return nn.Sequential(nn.Conv2d(width, out, 1), Part(layer, [first, out - first])), out - first + after


def simple(width, a, b, steps):
    return pick(a, (
        lambda: SpatialGate(width),
        lambda: SqueezeExcite(width, 1 + b % 4),
        lambda: Scale(width, 1, 1),
        lambda: Scale(1, width, 1, 1),
        lambda: nn.PReLU(width),
        lambda: Standardise(width),
        lambda: Twice(width),
        lambda: nn.MaxPool2d(3, 1, 1),
        lambda: map_norm(b, width),
    ))(), width  # fmt: skip


def residual(width, a, b, steps):
    body, inner = chain(steps, width)
    if a % 3 == 0 or width > inner:
        return Residual(nn.Sequential(body, nn.Conv2d(inner, width, 1)), nn.Identity()), width
    if a % 3 == 1:
        return Residual(body, nn.Conv2d(width, inner, 1), b % 2), inner
    front = b % (inner - width + 1)
    return Residual(body, PadShortcut(front, inner - width - front), b % 2), inner


def concat(width, a, b, steps):
    branches, outs = zip(*(step(s, width) for s in steps), strict=True)
    if a % 2:
        branches, outs = (*branches, nn.Identity()), (*outs, width)
    return Concat(branches), sum(outs)


def dense(width, a, b, steps):
    layers = []
    for s in steps:
        layer, out = step(s, width)
        layers.append(layer)
        width += out
    return Dense(layers), width


def space(width, a, b, steps):
    return Apply(SPACES[pick(a, sorted(SPACES))]), width


def modal(width, a, b, steps):
    """What training does otherwise; `always`: random numbers are drawn in evaluation too."""
    if a % 3:
        return Drawn(DRAWS[pick(a + b, sorted(DRAWS))], always=b % 4 == 3), width
    return InTraining(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), map_norm(b, width))), width


MAP_STEPS = {
    f.__name__: f
    for f in (conv, grouped, depthwise, transposed, shuffle, pixels, halves, part, simple, space, modal)
}
NESTED = {f.__name__: f for f in (residual, concat, dense)}


def step(drawn, width):
    kind, a, b, *steps = drawn
    return (MAP_STEPS | NESTED)[kind](width, a, b, steps[0] if steps else ())


def chain(steps, width):
    modules = []
    for drawn in steps:
        module, width = step(drawn, width)
        modules.append(module)
    return nn.Sequential(*modules), width


# ------------------------------------------------------------------------ steps on tokens: (module, width)
def linear(width, a, b):
    out = pick(a, WIDTHS)
    norm = pick(b, (nn.Identity, nn.LayerNorm, RMSNorm, lambda _: UnitLength(), nn.RMSNorm))(out)
    return nn.Sequential(nn.Linear(width, out), norm, pick(b, ACTIVATIONS)()), out


def attention(width, a, b):
    module = Attention(
        width,
        heads=pick(a, (2, 3, 4, 1)),
        head_dim=pick(b, (2, 3, 4, 5)),
        source=pick(a + b, ("separate", "three first", "three inside")),
        sizes=pick(a, ("attributes", "heads", "dim", "attributes", "shape")),
        scale=pick(a // 4 + b, ("attribute", "computed", "fused")),
    )
    norm = pick(b, (nn.Identity, nn.Identity, nn.LayerNorm, RMSNorm))(width)
    return Residual(nn.Sequential(norm, module), nn.Identity()), width


def mlp(width, a, b):
    inner = pick(a, WIDTHS)
    if b % 3 == 0:
        return Residual(GatedMLP(width, inner), nn.Identity()), width
    if b % 3 == 1:
        how = pick(a, GATES)
        return nn.Sequential(nn.Linear(width, 2 * inner), Halves(how, inner, -1)), inner
    body = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width), Scale(width))
    return Residual(body, nn.Identity()), width


def recurrent(width, a, b):
    out = pick(a, WIDTHS)
    if b % 5 == 4:
        return CellLoop(pick(a, (nn.LSTMCell, nn.GRUCell, nn.RNNCell))(width, out)), out
    kind, both = pick(b, (nn.LSTM, nn.GRU, nn.RNN)), a % 2 == 1
    layer = kind(width, out + 3, num_layers=1 + b % 2, bidirectional=both, batch_first=True)
    return Recurrent(layer), (out + 3) * (2 if both else 1)


def experts(width, a, b):
    return Residual(Experts(width, pick(a, WIDTHS), 2 + b % 2), nn.Identity()), width


def places(width, a, b):
    return Apply(PLACES[pick(a, sorted(PLACES))]), width


def drawn(width, a, b):
    if a % 3:
        return Drawn(DRAWS[pick(a + b, sorted(DRAWS))], always=b % 4 == 3), width
    return InTraining(
        nn.Sequential(nn.Linear(width, 1 + b % 5), nn.Dropout(0.3), nn.Linear(1 + b % 5, width))
    ), width


TOKEN_STEPS = {f.__name__: f for f in (linear, attention, mlp, recurrent, experts, places, drawn)}


# ---------------------------------------------------------------------------------------- programs
numbers = st.integers(0, 41)
map_leaf = st.tuples(st.sampled_from(sorted(MAP_STEPS)), numbers, numbers)
map_step = st.recursive(
    map_leaf,
    lambda inner: st.tuples(
        st.sampled_from(sorted(NESTED)), numbers, numbers, st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=4,
)
token_step = st.tuples(st.sampled_from(sorted(TOKEN_STEPS)), numbers, numbers)
map_programs = st.tuples(
    st.just("image"),
    st.lists(map_step, min_size=1, max_size=3),
    st.just([]),
    st.sampled_from(["mean", "flatten", "permute", "map"]),
)
token_programs = st.tuples(
    st.sampled_from(["image", "image permuted", "vectors", "ids"]),
    st.lists(map_leaf, max_size=1),
    st.lists(token_step, min_size=1, max_size=3),
    st.sampled_from(["token mean", "token flatten", "each token", "tied"]),
)
programs = map_programs | token_programs


def build(program):
    """The network of a program with weights no two of which are alike, in double precision and evaluation
    mode, and its example."""
    torch.manual_seed(0)
    entry, steps, token_steps, head = program
    modules = []
    if entry.startswith("image"):
        example = torch.randn(2, 3, 4, 4, dtype=torch.float64)
        body, width = chain([("conv", 0, 0), *steps], 3)
        modules += [body, Tokens(entry == "image permuted")] if token_steps else [body]
    else:
        ids = entry == "ids"
        example = torch.arange(10).view(2, 5) % 7 if ids else torch.randn(2, 5, 7, dtype=torch.float64)
        width = 6
        modules.append(nn.Embedding(7, width) if ids else nn.Linear(7, width))
    for kind, a, b in token_steps:
        module, width = TOKEN_STEPS[kind](width, a, b)
        modules.append(module)
    modules += exits(head, width, modules[0], tokens=16 if entry.startswith("image") else 5)
    model = randomised(nn.Sequential(*modules)).double().eval()
    return model, example


def exits(head, width, first, tokens):
    """The last modules of a network."""
    if head == "tied":
        if not isinstance(first, nn.Embedding):
            head = "each token"
        else:
            return [nn.Linear(width, first.weight.shape[1]), Tied(first)]
    return {
        "mean": lambda: [Mean(2, 3), nn.Linear(width, 3)],
        "flatten": lambda: [nn.Flatten(1), nn.Linear(16 * width, 3)],
        "permute": lambda: [Permute(), nn.Flatten(1), nn.Linear(16 * width, 3)],
        "map": lambda: [nn.Conv2d(width, 2, 1)],
        "token mean": lambda: [Mean(1), nn.Linear(width, 3)],
        "token flatten": lambda: [nn.Flatten(1), nn.Linear(tokens * width, 3)],
        "each token": lambda: [nn.Linear(width, 3)],
    }[head]()


def randomised(model):
    """Norm statistics, scales and offsets too: fresh ones hide permuted indices."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(torch.empty_like(tensor).uniform_(0.7, 1.3)).add_(
                    torch.empty_like(tensor).uniform_(0.01, 0.2)
                )
    return model


def mixes(model):
    """Whether a norm takes statistics over channels, so that zeros in their place are not the same as none."""
    norms = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, RMSNorm, UnitLength)
    return any(isinstance(module, norms) for module in model.modules())


def draws(model):
    """Whether random numbers are drawn in the mode that a model is in."""
    kinds = (nn.Dropout, Drawn) if model.training else Drawn
    found = [each for each in model.modules() if isinstance(each, kinds)]
    return any(model.training or each.always for each in found)
