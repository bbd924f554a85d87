"""Lookahead scores against brute force: remove each weight alone from a linear block, see how its matrix moves."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.errors import UserError
from prunus.sparse import masks
from prunus.sparse import scores as weight_scores

torch.set_default_dtype(torch.float32)


class Block(nn.Module):
    """A linear map in three layers, the middle one called `w`. `inputs`: shapes of independent inputs."""

    inputs = ((1, 5),)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.build()
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.running_var, 0.5, 2)
        self.double().eval()

    def example(self):
        return tuple(torch.randn(shape, dtype=torch.float64) for shape in self.inputs)


class Chain(Block):
    def build(self):
        self.a, self.w, self.c = nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.c(self.w(self.a(x)))


class Normed(Chain):
    def build(self):
        super().build()
        self.norm_a, self.norm_w = nn.BatchNorm1d(4), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.c(self.norm_w(self.w(self.norm_a(self.a(x)))))


class First(Chain):
    def forward(self, x):
        return self.a(self.w(x))

    def build(self):
        self.w, self.a = nn.Linear(5, 6), nn.Linear(6, 3)


class Last(Chain):
    def build(self):
        self.a, self.w = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.w(self.a(x))


class SumAndFan(Block):
    inputs = ((1, 5), (1, 3))

    def build(self):
        self.a, self.b, self.w = nn.Linear(5, 4), nn.Linear(3, 4), nn.Linear(4, 6)
        self.c, self.d = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x, y):
        z = self.w(self.a(x) + self.b(y))
        return torch.cat([self.c(z), self.d(z)], 1)


class Residual(Block):
    """The skip connection goes around `w`: half of what reads its sum comes past it."""

    inputs = ((1, 5),)

    def build(self):
        self.a, self.w, self.c = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.a(x)
        return self.c(x + self.w(x))


class Concatenated(Block):
    inputs = ((1, 5), (1, 3))

    def build(self):
        self.a, self.b, self.w, self.c = nn.Linear(5, 4), nn.Linear(3, 2), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x, y):
        return self.c(self.w(torch.cat([self.a(x), self.b(y)], 1)))


class Split(Block):
    """What reads the two halves of `w` differs."""

    def build(self):
        self.a, self.w, self.c, self.d = nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        one, two = self.w(self.a(x)).chunk(2, 1)
        return torch.cat([self.c(one), self.d(two)], 1)


class Grouped(Block):
    inputs = ((1, 3, 2, 2),)

    def build(self):
        self.a = nn.Conv2d(3, 4, 1)
        self.w = nn.Conv2d(4, 6, 1, groups=2)
        self.norm, self.c = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        return self.c(self.norm(self.w(self.a(x))))


class Depthwise(Block):
    inputs = ((1, 3, 4, 4),)

    def build(self):
        self.a, self.w, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.c(self.w(self.a(x)))


class Pointwise(Block):
    """A 1x1 convolution between two depthwise ones of a single place: nothing overlaps."""

    inputs = ((1, 4, 2, 2),)

    def build(self):
        self.a, self.w, self.c = (
            nn.Conv2d(4, 4, 1, groups=4),
            nn.Conv2d(4, 6, 1),
            nn.Conv2d(6, 6, 1, groups=3),
        )

    def forward(self, x):
        return self.c(self.w(self.a(x)))


class Transposed(Block):
    inputs = ((1, 3, 2, 2),)

    def build(self):
        self.a = nn.Conv2d(3, 4, 1)
        self.w = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.c = nn.Conv2d(6, 3, 1)

    def forward(self, x):
        return self.c(self.w(self.a(x)))


class Flattened(Block):
    inputs = ((1, 3, 2, 2),)

    def build(self):
        self.a, self.w, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Linear(20, 3)

    def forward(self, x):
        return self.c(self.w(self.a(x)).flatten(1))


class FlattenedBefore(Block):
    inputs = ((1, 3, 2, 2),)

    def build(self):
        self.a, self.w, self.c = nn.Conv2d(3, 4, 1), nn.Linear(16, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.c(self.w(self.a(x).flatten(1)))


class Pooled(Block):
    inputs = ((1, 3, 4, 4),)

    def build(self):
        self.a, self.w, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Linear(5, 3)

    def forward(self, x):
        return self.c(F.avg_pool2d(self.w(self.a(x)), 2).mean((2, 3)))


class TwoPaths(Block):
    """One path is averaged over four places, the other is not: their weights differ by a factor of 16."""

    inputs = ((1, 3, 2, 2),)

    def build(self):
        self.a, self.w = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
        self.c, self.d = nn.Linear(5, 3), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        z = self.w(self.a(x))
        return torch.cat([self.c(z.mean((2, 3))), self.d(z).flatten(1)], 1)


class Scaled(Block):
    def build(self):
        self.a, self.w, self.c = nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x):
        return self.c(0.5 * self.w(self.a(x)) * self.scale)


class Heads(Block):
    """Values of attention: permuted, viewed by heads, averaged evenly, and projected."""

    inputs = ((1, 3, 5),)

    def build(self):
        self.a, self.w, self.c = nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        v = self.w(self.a(x)).view(1, 3, 2, 3).transpose(1, 2)
        return self.c(v.transpose(1, 2).reshape(1, 3, 6))


TOPOLOGIES = [*Block.__subclasses__(), Normed, First, Last]


def moved(block, name="w.weight"):
    """The squared change of the block's matrix for each weight, were it zero."""
    inputs = block.example()
    parameters = dict(block.named_parameters())
    weight = parameters[name].detach()

    def matrix(changed):
        def run(*inputs):
            return torch.func.functional_call(block, {**parameters, name: changed}, inputs)

        return torch.cat([j.reshape(-1) for j in torch.func.jacrev(run, tuple(range(len(inputs))))(*inputs)])

    dense, change = matrix(weight), torch.empty(weight.numel(), dtype=torch.float64)
    for i in range(weight.numel()):
        without = weight.clone()
        without.view(-1)[i] = 0
        change[i] = (matrix(without) - dense).square().sum()
    return change.view_as(weight)


def assert_proportional(scores, change, tolerance=1e-9):
    ratio = scores / change
    assert ratio.max() <= ratio.min() * (1 + tolerance), f"{ratio.min()} to {ratio.max()}"


@pytest.mark.parametrize("kind", TOPOLOGIES, ids=lambda kind: kind.__name__)
def test_scores_are_what_brute_force_finds(kind):
    block = kind()
    scores = weight_scores.lookahead(block, prunus.trace(block, block.example()))
    assert_proportional(scores["w.weight"], moved(block))


class Kernels(Block):
    """Every neighbour has a kernel: their places overlap."""

    strides, kernels, size = (1, 1, 1), (3, 3, 3), 9

    def build(self):
        (s, t, u), (k, m, n) = self.strides, self.kernels
        self.inputs = ((1, 2, self.size, self.size),)
        self.a, self.w = nn.Conv2d(2, 3, k, stride=s), nn.Conv2d(3, 3, m, stride=t)
        self.c = nn.Conv2d(3, 2, n, stride=u)

    def forward(self, x):
        return self.c(self.w(self.a(x)))


@pytest.mark.parametrize(
    ("strides", "kernels", "size"),
    [
        ((1, 1, 1), (3, 3, 3), 8),
        ((1, 2, 1), (3, 2, 2), 10),
        ((2, 1, 1), (3, 2, 3), 12),
        ((1, 1, 2), (2, 3, 3), 10),
    ],
)
def test_the_exact_form_counts_overlapping_kernels(strides, kernels, size):
    kind = type("Strided", (Kernels,), {"strides": strides, "kernels": kernels, "size": size})
    block = kind()
    graph, change = prunus.trace(block, block.example()), moved(block)
    assert_proportional(weight_scores.lookahead(block, graph, conv="exact")["w.weight"], change)
    papers = weight_scores.lookahead(block, graph)["w.weight"]
    with pytest.raises(AssertionError):  # the paper's form leaves the overlap out
        assert_proportional(papers, change, 0.01)
    row = block.a.weight.square().sum((1, 2, 3))
    column = block.c.weight.square().sum((0, 2, 3))
    papers_formula = block.w.weight.square() * row[None, :, None, None] * column[:, None, None, None]
    assert torch.allclose(papers, papers_formula, rtol=1e-12)


class Lines(Block):
    """Along a line, the middle one with a stride."""

    inputs = ((1, 2, 10),)

    def build(self):
        self.a, self.w, self.c = nn.Conv1d(2, 3, 3), nn.Conv1d(3, 3, 2, stride=2), nn.Conv1d(3, 2, 2)

    def forward(self, x):
        return self.c(self.w(self.a(x)))


class Widening(Lines):
    """The same with transposed convolutions: what is read lies closer than what is written."""

    inputs = ((1, 2, 4),)

    def build(self):
        self.a, self.w = nn.ConvTranspose1d(2, 4, 3), nn.ConvTranspose1d(4, 3, 3, stride=2)
        self.c = nn.ConvTranspose1d(3, 2, 2)


class WideningPlane(Lines):
    inputs = ((1, 2, 2, 3),)

    def build(self):
        self.a, self.w = nn.ConvTranspose2d(2, 3, 2), nn.ConvTranspose2d(3, 2, 3, stride=(2, 1))
        self.c = nn.ConvTranspose2d(2, 2, 2)


@pytest.mark.parametrize("kind", [Lines, Widening, WideningPlane], ids=lambda kind: kind.__name__)
def test_the_exact_form_knows_lines_and_transposed_convolutions_with_strides(kind):
    block = kind()
    scores = weight_scores.lookahead(block, prunus.trace(block, block.example()), conv="exact")
    assert_proportional(scores["w.weight"], moved(block), 1e-8)


def test_exact_and_the_papers_form_agree_beside_single_places():
    block = type("Single", (Kernels,), {"kernels": (1, 3, 1), "size": 5})()
    graph = prunus.trace(block, block.example())
    both = [weight_scores.lookahead(block, graph, conv=form)["w.weight"] for form in ("norm", "exact")]
    assert torch.allclose(*both, rtol=1e-12)


class Attention(nn.Module):
    """softmax(x Q (x K)^T) x V O, one head."""

    def __init__(self, fused=False):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4, bias=False) for _ in range(4))
        self.fused = fused
        self.double()

    def forward(self, x):
        q, k, v = (f(x).unsqueeze(1) for f in (self.q, self.k, self.v))
        if self.fused:
            return self.o(F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return self.o(((q @ k.transpose(-1, -2)).softmax(-1) @ v).squeeze(1))


@pytest.mark.parametrize("fused", [False, True])
def test_queries_look_at_keys_and_values_at_the_projection(fused):
    net = Attention(fused)
    scores = weight_scores.lookahead(net, prunus.trace(net, torch.zeros(1, 3, 4).double()))
    weights = {name: parameter.detach().square() for name, parameter in net.named_parameters()}

    def changes(one, other):  # of W_one^T W_other, for each weight of the first
        return weights[one] * weights[other].sum(1)[:, None]

    assert_proportional(scores["q.weight"], changes("q.weight", "k.weight"))
    assert_proportional(scores["k.weight"], changes("k.weight", "q.weight"))
    assert_proportional(scores["v.weight"], weights["v.weight"] * weights["o.weight"].sum(0)[:, None])
    assert_proportional(scores["o.weight"], weights["o.weight"] * weights["v.weight"].sum(1)[None])


def test_embeddings_feed_and_tied_weights_add_up():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.w, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.table.weight
            self.double()

        def forward(self, tokens):
            return self.head(self.w(self.table(tokens)))

    net = Language()
    graph = prunus.trace(net, torch.zeros(1, 3, dtype=torch.long))
    assert weight_scores.maskable(graph) == ["table.weight", "w.weight"]
    scores = weight_scores.lookahead(net, graph)
    e, w = net.table.weight.detach().square(), net.w.weight.detach().square()
    assert_proportional(scores["w.weight"], w * e.mean(0)[None] * e.sum(0)[:, None])
    as_head, as_table = e * w.sum(1)[None], e * w.sum(0)[None] / 7  # one of 7 rows is picked
    assert torch.allclose(scores["table.weight"], as_head + as_table, rtol=1e-9)


# ------------------------------------------------------------------------------------- invariants
class Deep(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        widths = (6, 8, 7, 9, 5)
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths))
        self.double()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return x


@pytest.fixture
def deep():
    net = Deep()
    return net, prunus.trace(net, torch.zeros(1, 6).double())


def test_the_papers_variants(deep):
    net, graph = deep
    w = [layer.weight.detach().square() for layer in net.layers]
    base, behind = weight_scores.magnitude(net, graph), weight_scores.lookahead(net, graph, sides="behind")
    before = weight_scores.lookahead(net, graph, sides="before")
    for i in range(4):
        name = f"layers.{i}.weight"
        n = w[i + 1].sum(0)[:, None] if i < 3 else torch.ones(1, dtype=torch.float64)
        p = w[i - 1].sum(1)[None] if i else torch.ones(1, dtype=torch.float64)
        assert torch.allclose(base[name].double(), w[i], rtol=1e-6)
        assert torch.allclose(behind[name], w[i] * n, rtol=1e-12)
        assert torch.allclose(before[name], w[i] * p, rtol=1e-12)


def keep_half(name, scores):
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[scores.flatten().topk(scores.numel() // 2).indices] = True
    return kept.view_as(scores)


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_the_sequential_passes_equal_naive_recomputation(deep, order):
    net, graph = deep
    naive = Deep()
    masks = {}
    for i in range(4) if order == "forward" else reversed(range(4)):
        name = f"layers.{i}.weight"
        masks[name] = keep_half(name, weight_scores.lookahead(naive, graph)[name])
        naive.layers[i].weight.data *= masks[name]
    got = weight_scores.sequential(net, graph, keep_half, order)
    assert all(torch.equal(got[name], mask) for name, mask in masks.items()) and got.keys() == masks.keys()
    once = {name: keep_half(name, score) for name, score in weight_scores.lookahead(net, graph).items()}
    assert any(not torch.equal(once[name], mask) for name, mask in masks.items())


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_sequential_on_a_residual_network_with_norms(order):
    net = nets_resnet()
    graph = prunus.trace(net, torch.zeros(1, 3, 8, 8).double())
    masks = weight_scores.sequential(net, graph, keep_half, order)
    assert list(masks) == weight_scores.maskable(graph)
    names = list(masks)
    ends = names[-1] if order == "backward" else names[0]  # the first to be decided sees the dense network
    assert torch.equal(masks[ends], keep_half(ends, weight_scores.lookahead(net, graph)[ends]))


def nets_resnet():
    from prunus import zoo

    torch.manual_seed(0)
    return zoo.build("resnet20_projection").double().eval()


def test_rescaling_a_hidden_unit_changes_magnitude_but_not_lookahead(deep):
    net, graph = deep
    before, sizes = weight_scores.lookahead(net, graph), weight_scores.magnitude(net, graph)
    net.layers[1].weight.data[2] *= 10
    net.layers[2].weight.data[:, 2] /= 10
    after = weight_scores.lookahead(net, graph)
    for name in ("layers.1.weight", "layers.2.weight"):
        assert torch.allclose(before[name], after[name], rtol=1e-9)
        assert not torch.allclose(sizes[name], weight_scores.magnitude(net, graph)[name])


def test_with_trailing_norms_no_rescaling_under_a_norm_counts():
    net = nets_resnet()
    graph = prunus.trace(net, torch.zeros(1, 3, 8, 8).double())
    options = {"norms": "trailing"}
    before, folded = weight_scores.lookahead(net, graph, **options), weight_scores.lookahead(net, graph)
    for i in range(3):
        block = net.layer1[i]
        for conv, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
            factor = torch.rand(len(conv.weight)).double() + 0.5
            conv.weight.data *= factor.view(-1, 1, 1, 1)
            norm.running_mean *= factor
            norm.running_var.copy_((norm.running_var + norm.eps) * factor**2 - norm.eps)
    after = weight_scores.lookahead(net, graph, **options)
    assert all(torch.allclose(before[name], after[name], rtol=1e-6) for name in before)
    again = weight_scores.lookahead(net, graph)
    assert not all(torch.allclose(folded[name], again[name], rtol=1e-6) for name in folded)


def test_hidden_units_may_be_reordered(deep):
    net, graph = deep
    before = weight_scores.lookahead(net, graph)
    order = torch.tensor([3, 1, 0, 2, 6, 5, 4])
    net.layers[1].weight.data, net.layers[2].weight.data = (
        net.layers[1].weight.data[order],
        net.layers[2].weight.data[:, order],
    )
    after = weight_scores.lookahead(net, graph)
    assert torch.allclose(before["layers.1.weight"][order], after["layers.1.weight"])
    assert torch.allclose(before["layers.3.weight"], after["layers.3.weight"])


def test_every_weight_of_the_zoo_is_scored(zoo_name):
    from prunus import zoo

    net = zoo.build(zoo_name).eval()
    graph = prunus.trace(net, torch.zeros(1, *zoo.native_shape(zoo_name)))
    scores = weight_scores.lookahead(net, graph)
    assert list(scores) == weight_scores.maskable(graph)
    assert set(scores) == {name for name, parameter in net.named_parameters() if parameter.dim() > 1}
    assert all(score.isfinite().all() and (score >= 0).all() for score in scores.values())


@pytest.fixture(params=["resnet20", "resnet20_projection", "vgg16_bn", "densenet40", "mobilenet_v2"])
def zoo_name(request):
    return request.param


def batches_of(shape, count=3):
    torch.manual_seed(1)
    return [(torch.randn(4, *shape), torch.zeros(4, dtype=torch.long)) for _ in range(count)]


def test_wanda_weighs_by_the_inputs_it_saw():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    graph = prunus.trace(net, torch.zeros(1, 6))
    batches = batches_of((6,))
    scores = weight_scores.wanda(net, graph, batches)
    x = torch.cat([x for x, _ in batches])
    hidden = net[1](net[0](x))
    assert torch.allclose(scores["0.weight"], net[0].weight.square() * x.square().mean(0), rtol=1e-4)
    assert torch.allclose(scores["2.weight"], net[2].weight.square() * hidden.square().mean(0), rtol=1e-4)


def test_wanda_sees_convolutions_and_attention():
    from tests.lib.nets import Decoder

    for net, x in ((nets_resnet().float(), torch.randn(2, 3, 8, 8)),):
        graph = prunus.trace(net, x[:1])
        scores = weight_scores.wanda(net, graph, [(x, None)])
        assert list(scores) == weight_scores.maskable(graph)
        stem = net.conv1.weight.square() * x.square().mean((0, 2, 3))[None, :, None, None]
        assert torch.allclose(scores["conv1.weight"], stem, rtol=1e-4)
    net = Decoder().eval()
    tokens = torch.randint(10, (2, 6))
    graph = prunus.trace(net, tokens[:1])
    assert list(weight_scores.wanda(net, graph, [(tokens, None)])) == weight_scores.maskable(graph)


def test_activity_counts_how_often_units_are_on():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    graph = prunus.trace(net, torch.zeros(1, 6))
    batches = batches_of((6,))
    x = torch.cat([x for x, _ in batches])
    on = [(net[:2](x) > 0).float().mean(0), (net[:4](x) > 0).float().mean(0)]
    scores = weight_scores.lookahead(net, graph, activity=weight_scores.active(net, graph, batches))
    w = [net[i].weight.detach().square() for i in (0, 2, 4)]
    assert torch.allclose(scores["0.weight"], w[0] * (on[0] * w[1].sum(0))[:, None], rtol=1e-4)
    # the paper scales the rows of each weight by what passes behind it
    expected = w[1] * (on[0] * w[0].sum(1))[None] * (on[1] * w[2].sum(0))[:, None]
    assert torch.allclose(scores["2.weight"], expected, rtol=1e-4)


def test_activity_without_a_known_activation_function_is_said():
    net = Chain()
    graph = prunus.trace(net, net.example())
    with pytest.warns(UserWarning, match="no activation function of this model is known"):
        assert weight_scores.active(net, graph, []) == {}


def test_dead_scales_do_not_end_in_nan_and_broken_weights_are_named():
    net = nets_resnet().float()
    net.layer1[0].bn2.weight.data.zero_()
    graph = prunus.trace(net, torch.zeros(1, 3, 8, 8))
    assert all(score.isfinite().all() for score in weight_scores.lookahead(net, graph).values())
    net.layer2[0].conv1.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"scores of .* are NaN or infinite, for layer2\.0\.conv1\.weight is"):
        weight_scores.lookahead(net, graph)


@pytest.mark.parametrize("option", ["sides", "norms", "conv", "depthwise"])
def test_unknown_options_are_refused(deep, option):
    net, graph = deep
    with pytest.raises(UserError, match=f"unknown {option} 'odd'"):
        weight_scores.lookahead(net, graph, **{option: "odd"})
    with pytest.raises(UserError, match="unknown order 'odd'"):
        weight_scores.sequential(net, graph, keep_half, "odd")


def test_an_operator_nothing_is_known_of_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.c(torch.linalg.matrix_exp(self.b(self.a(x))))

    net = Odd()
    graph = prunus.trace(net, torch.zeros(1, 4, 4))
    with pytest.warns(UserWarning, match="does not see through linalg_matrix_exp"):
        scores = weight_scores.lookahead(net, graph)
    assert torch.allclose(scores["b.weight"], net.b.weight.square() * net.a.weight.square().sum(1))


def test_half_precision_is_summed_in_single():
    net = nets_resnet().float()
    graph = prunus.trace(net, torch.zeros(1, 3, 8, 8))
    exact = weight_scores.lookahead(net.bfloat16().float(), graph)
    half = weight_scores.lookahead(net.bfloat16(), graph)
    assert all(score.dtype == torch.float32 for score in half.values())
    assert all(torch.allclose(half[name], exact[name], rtol=0.02) for name in exact)


def test_the_model_is_left_as_it_is():
    net = nets_resnet().train()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    graph = prunus.trace(net, torch.zeros(1, 3, 8, 8).double())
    weight_scores.lookahead(net, graph)
    weight_scores.sequential(net, graph, keep_half, "backward")
    assert net.training and all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


class Tabled(nn.Module):
    """Two layers, beside a row of a table in a plain attribute that their answer chooses, as detectors keep anchors."""

    def __init__(self, tabled: bool):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.tables, self.tabled = [torch.randn(3, 3)], tabled

    def forward(self, x):
        y = self.b(self.a(x).relu())
        return y + self.tables[0][y.argmax(1)] if self.tabled else y


@pytest.mark.filterwarnings("ignore:lookahead does not see through argmax:UserWarning")
def test_a_table_in_a_plain_attribute_carries_no_signal():
    found = []
    for tabled in (True, False):
        model = Tabled(tabled).eval()
        graph = prunus.trace(model, torch.randn(2, 4), modes="eval")
        found.append(weight_scores.lookahead(model, graph))
        kept = {name: torch.ones(graph.shapes[name], dtype=torch.bool) for name in ("a.weight", "b.weight")}
        kept["a.weight"][1], kept["b.weight"][:, 3] = False, False
        gone = masks.dead(graph, kept)
        assert gone == {"a": [0, 2, 4, 5]}
    for name in ("a.weight", "b.weight"):  # argmax reads the answer once more, all of it equally
        ratio = found[0][name] / found[1][name]
        assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4)
