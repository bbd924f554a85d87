"""The proof notices: a wrong index anywhere, wrong weights, outputs that are not numbers. And what norms become."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus import surgery
from prunus.errors import PruningError
from prunus.graph import axes
from prunus.surgery import proof
from tests.lib import nets


def astray(graph, member, axis, other):
    """The graph with one dimension of one tensor on an axis of its own, as a wrong layout would have it."""

    def changed(layout):
        layout = axes.normal(layout)
        if isinstance(layout, axes.Sum):
            return axes.Sum(tuple(map(changed, layout.parts)))
        if isinstance(layout, axes.Product):
            return axes.Product(tuple(map(changed, layout.factors)))
        return other if layout is axis else layout

    layouts = dict(graph.layouts)
    layouts[member.tensor] = list(layouts[member.tensor])
    layouts[member.tensor][member.dim] = changed(layouts[member.tensor][member.dim])
    return dataclasses.replace(graph, layouts=layouts, axes={**graph.axes, other.name: other})


WITHOUT_EFFECT = {("norms", "a.bias"), ("norms", "b.bias")}  # the norm that follows takes them out again


@pytest.mark.parametrize("name", nets.NETS)
def test_one_dimension_cut_elsewhere_is_noticed(name):
    model, example = nets.build(name)
    graph = prunus.trace(model, example)
    for axis, units in graph.axes.items():
        half = units.size // 2
        keep = {axis: list(range(half)), "astray": list(range(units.size - half, units.size))}
        prunus.shrink(model, graph, {axis: keep[axis]})
        for member in graph.members(axis):
            if (name, member.tensor) not in WITHOUT_EFFECT:
                wrong = astray(graph, member, units, axes.Axis(units.size, "astray"))
                with pytest.raises(PruningError):
                    prunus.shrink(model, wrong, keep)


@pytest.mark.parametrize("name", nets.NETS)
def test_rows_in_another_order_are_noticed(name):
    model, example = nets.build(name)
    graph = prunus.trace(model, example)
    keep = nets.random_keep(graph)
    small = prunus.shrink(model, graph, keep)
    for parameter in small.parameters():
        if parameter.dim() and len(parameter) > 1:
            with torch.no_grad():
                before = parameter.clone()
                parameter.copy_(before.roll(1, 0))
                with pytest.raises(PruningError):
                    surgery.verify(model, graph, keep, small)
                parameter.copy_(before)
    assert surgery.verify(model, graph, keep, small).holds


def test_a_failed_proof_names_the_axis_and_leaves_the_model_alone():
    model, example = nets.build("residual")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = prunus.trace(model, example)
    wrong = astray(graph, graph.members("a")[-1], graph.axes["a"], axes.Axis(6, "astray"))
    with pytest.raises(PruningError, match="a, astray"):
        prunus.shrink(model, wrong, {"a": [0, 1], "astray": [2, 5], "stem": [1, 2]})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_refusal_of_many_axes_takes_few_proofs(monkeypatch):
    layers = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(50)]
    model = nn.Sequential(*layers, nn.Linear(6, 2))
    graph = prunus.trace(model, torch.randn(2, 6))
    assert len(graph.axes) == 50
    wrong = astray(graph, graph.members("30.0")[-1], graph.axes["30.0"], axes.Axis(6, "astray"))
    proofs, verify = [], proof.verify
    monkeypatch.setattr(proof, "verify", lambda *given: proofs.append(given) or verify(*given))
    with pytest.raises(PruningError, match=r"It fails on 30\.0 alone"):
        prunus.shrink(model, wrong, {key: [1, 2, 4, 5] for key in graph.axes})
    assert len(proofs) <= 1 + proof.MOST_TO_BLAME


class TwoOutputs(nn.Module):
    """One output times a number, large or not finite, and a plain one."""

    def __init__(self, first):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.register_buffer("first", torch.tensor(first))

    def forward(self, x):
        x = self.a(x)
        return self.b(x) * self.first, self.c(x)


@pytest.mark.parametrize("first", [1.0, 1e12, float("inf"), float("nan")])
def test_one_output_cannot_hide_another(first):
    torch.manual_seed(0)
    model, example = TwoOutputs(first).eval(), torch.randn(3, 5)
    graph = prunus.trace(model, example)
    if first == first:
        prunus.shrink(model, graph, {"a": [0, 2]})
    member = next(m for m in graph.members("a") if m.tensor == "c.weight")
    wrong = astray(graph, member, graph.axes["a"], axes.Axis(6, "astray"))
    with pytest.raises(PruningError):
        prunus.shrink(model, wrong, {"a": [0, 2], "astray": [1, 2]})


def test_no_number_is_no_proof():
    """The deviation of a single unit is 0 / 0, so this model is lost once one is left."""
    model = nn.Sequential(nn.Linear(5, 6), Deviation(), nn.Linear(6, 3)).eval()
    graph = prunus.trace(model, torch.randn(3, 5))
    prunus.shrink(model, graph, {"0": [1, 4]})
    with pytest.raises(PruningError), pytest.warns(UserWarning, match="degrees of freedom"):
        prunus.shrink(model, graph, {"0": [1]})


class Deviation(nn.Module):
    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)


# ----------------------------------------------------------- norms take their statistics over what is kept
KEPT = [1, 2, 6]


def norm_of_eight(norm, keep, kept):
    """A norm between two layers, cut. Returns the output, what the norm gets at `kept`, and what follows it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), norm, nn.Sigmoid(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.uniform_(0.5, 1.5)
    x = torch.randn(4, 5)
    graph = prunus.trace(model, x)
    small = prunus.shrink(model, graph, keep)
    torch.testing.assert_close(prunus.crop(model, graph, keep, x), small(x))
    return (
        small(x),
        model[0](x)[:, kept],
        lambda y: F.linear(y.sigmoid(), model[3].weight[:, kept], model[3].bias),
    )


def standard(y):
    return (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


class Growing(nn.Module):
    """Residual blocks, each of which multiplies the signal, and one of which divides it by what it adds up to."""

    def __init__(self, blocks):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(blocks))
        self.tied = self.convs[-1]
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + 30 * norm(conv(x)).relu()
        return self.last(self.tied(x).mean((2, 3)))


def test_signals_that_would_grow_are_kept_near_one():
    model = Growing(40).eval()
    graph = prunus.trace(model, torch.randn(1, 3, 6, 6))
    keep = {name: range(1, axis.size) for name, axis in graph.axes.items()}
    found = surgery.verify(model, graph, keep, prunus.shrink(model, graph, keep, verify="off"))
    assert found.holds and found.dtype == torch.float32  # else 30 ** 40 overflows


def test_layer_norm_by_hand():
    norm = nn.LayerNorm(8)
    got, y, rest = norm_of_eight(norm, {"0": KEPT}, KEPT)
    torch.testing.assert_close(got, rest(standard(y) * norm.weight[KEPT] + norm.bias[KEPT]))


def test_rms_norm_by_hand():
    norm = nn.RMSNorm(8, eps=1e-3)
    got, y, rest = norm_of_eight(norm, {"0": KEPT}, KEPT)
    torch.testing.assert_close(
        got, rest(y / (y.square().mean(1, keepdim=True) + 1e-3).sqrt() * norm.weight[KEPT])
    )


def test_norm_in_one_group_by_hand():
    norm = nn.GroupNorm(1, 8)
    got, y, rest = norm_of_eight(norm, {"0": KEPT}, KEPT)
    torch.testing.assert_close(got, rest(standard(y) * norm.weight[KEPT] + norm.bias[KEPT]))


def test_norm_in_two_groups_by_hand():
    """Groups are units, and so are the places within every group: these keep 0, 1, 3 of both."""
    norm, kept = nn.GroupNorm(2, 8), [0, 1, 3, 4, 5, 7]
    got, y, rest = norm_of_eight(norm, {"0#1": [0, 1, 3]}, kept)
    y = standard(y.view(4, 2, 3)).view(4, 6)
    torch.testing.assert_close(got, rest(y * norm.weight[kept] + norm.bias[kept]))
    got, y, rest = norm_of_eight(nn.GroupNorm(2, 8, affine=False), {"0#0": [1], "0#1": [1, 2]}, [5, 6])
    torch.testing.assert_close(got, rest(standard(y)))


def test_softmax_over_a_cut_axis_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Softmax(-1), nn.Linear(8, 3)).eval()
    x = torch.randn(4, 5)
    small = prunus.shrink(model, prunus.trace(model, x), {"0": KEPT})
    hidden = model[0](x)[:, KEPT].softmax(-1)
    torch.testing.assert_close(small(x), F.linear(hidden, model[2].weight[:, KEPT], model[2].bias))


class Complex(nn.Module):
    """Layers of complex numbers, whose imaginary parts are multiplied by a number of the model's."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 8, dtype=torch.cfloat), nn.Linear(8, 3, dtype=torch.cfloat)
        self.register_buffer("phase", torch.polar(torch.ones(8), torch.arange(8.0)))
        self.factor = 1.0

    def forward(self, x):
        y = self.b(torch.tanh(self.a(torch.complex(x, x.cos())) * self.phase))
        return torch.complex(y.real, y.imag * self.factor)


def test_complex_outputs_are_compared_in_both_parts():
    torch.manual_seed(0)
    model, x = Complex().eval(), torch.randn(4, 5)
    graph, keep = prunus.trace(model, x), {"a": KEPT}
    small = prunus.shrink(model, graph, keep)
    assert small.phase.shape == (3,) and small.phase.is_complex()
    torch.testing.assert_close(small(x), prunus.mask(model, graph, keep)(x))
    small.factor = 1.1
    assert not surgery.verify(model, graph, keep, small).holds


class Several(nn.Module):
    """Returns its result several times."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.times = nn.Linear(5, 8), nn.Linear(8, 3), 3

    def forward(self, x):
        return [self.b(self.a(x))] * self.times


@pytest.mark.parametrize("times", [2, 4])
def test_another_number_of_outputs_is_noticed(times):
    model = Several()
    graph, keep = prunus.trace(model, torch.randn(4, 5)), {"a": KEPT}
    small = prunus.shrink(model, graph, keep)
    small.times = times
    with pytest.raises(PruningError, match=f"returns {times} tensors, where the original returns 3"):
        surgery.verify(model, graph, keep, small)


def moved(model):
    """The teacher's weights, moved a little towards the student's, in place."""
    for old, new in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
        old.mul_(0.9).add_(new, alpha=0.1)


def replaced(model):
    """The same by other data in the parameter."""
    for old, new in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
        old.data = old.data * 0.9 + new.data * 0.1


class Distilled(nn.Module):
    """A student, whose average a teacher is; its forward pass in training writes to the teacher's weights."""

    def __init__(self, update):
        super().__init__()
        self.student, self.teacher = (
            nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2)
        )
        self.predict = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
        self.update, self.rate = update, 0.1

    def forward(self, x):
        if not self.training:
            return self.student(x)
        with torch.no_grad():
            self.update(self)
            target = self.teacher(x)
        return (self.predict(self.student(x)) - target).square().mean()


def measured(model):
    """The same, as far as a number says that is read off a weight: traced with real tensors."""
    if float(model.student[0].weight.abs().sum()) >= 0:
        moved(model)


@pytest.mark.filterwarnings("ignore:traced with real tensors")
@pytest.mark.parametrize("update", [moved, replaced, measured])
def test_a_forward_pass_may_write_to_parameters(update):
    torch.manual_seed(0)
    model = Distilled(update)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = prunus.trace(model, torch.randn(4, 5))
    keep = {"student.0": KEPT, "predict.0": [0, 2]}
    small = prunus.shrink(model, graph, keep)
    assert small.teacher[0].weight.shape == (3, 5) and small.predict[0].weight.shape == (2, 4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    small.update = lambda model: model.teacher[2].bias.mul_(0.9)
    assert not surgery.verify(model, graph, keep, small).holds


class Anchored(nn.Module):
    """A detector's head, which makes its grid again when the shape of its features changes."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)
        self.grid, self.shape = torch.empty(0), None

    def forward(self, x):
        x = self.a(x).relu()
        y = self.head(x).flatten(2)
        if self.training:
            return y
        if self.shape != x.shape:
            self.grid, self.shape = torch.arange(y.shape[2]) + 0.5, x.shape
        return y.sigmoid() + self.grid


@pytest.mark.parametrize("sizes", [(), (8,), (16, 8)])
def test_what_a_forward_pass_stores_is_put_back_with_what_says_that_it_did(sizes):
    """The model has run on images of these sizes before it is traced on others."""
    model = Anchored().eval()
    for size in sizes:
        model(torch.randn(1, 3, size, size))
    graph = prunus.trace(model, torch.randn(2, 3, 12, 12))
    small = prunus.shrink(model, graph, {"a": KEPT})
    assert surgery.verify(model, graph, {"a": KEPT}, small).modes == ("eval", "train")
