"""Gates: a unit with a gate of zero has no effect, and gates that stay one change nothing.

I4 to I6 of the specification of DHP. What is compared with is surgery, or gates multiplied out here, entry by entry.
"""

import copy
import io
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import prunus
from prunus import gates, surgery, zoo
from prunus.errors import TraceError, UserError
from prunus.gates import Gate, Place, attach, inexact_axes, product
from prunus.gates import at_once as at_once_hooks
from prunus.gates.at_once import remove_hooks
from prunus.gates.gates import places_of
from prunus.surgery import copies, slicing, steps
from tests.lib.graphs import close_some, double, exact_axes, multiplied_out, plain_copy
from tests.lib.nets import NETS, build
from tests.lib.random_blocks import Tied
from tests.lib.random_nets import build as build_program
from tests.lib.random_nets import draws, programs

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def drawn_values(graph, names, seed=0):
    """Gates from 0.5 to 2, some negative."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in names:
        values = 0.5 + 1.5 * torch.rand(graph.axes[name].size, generator=generator)
        values[torch.rand(len(values), generator=generator) < 0.3] *= -1
        found[name] = values
    return found


def assert_removal_changes_nothing(model, graph, made, example, seed=0):
    """With some gates at zero the network is the one without those units, in evaluation and in training mode."""
    keep = close_some(graph, made, seed)
    small = surgery.shrink(plain_copy(model), graph, keep, verify="off")
    for training in (False, True):
        model.train(training), small.train(training)
        with torch.no_grad():
            expected = model(example)
            torch.testing.assert_close(small(example), expected, **CLOSE)
        assert expected.std() > 1e-6  # or nothing could be seen
    buffers = dict(model.named_buffers())  # as the batch left them
    for name, buffer in small.named_buffers():
        kept = slicing.slice_tensor(buffers[name], graph.layouts[name], keep)
        torch.testing.assert_close(buffer, kept, **CLOSE)


# ------------------------------------------------------------------------------ I5: on and off again
@pytest.mark.parametrize("values", ["ones", "drawn"])
@pytest.mark.parametrize("name", NETS)
def test_i5_attached_and_taken_off_again_is_the_same_network(name, values):
    model, example = build(name)
    plain = [m for m in model.modules() if not parametrize.is_parametrized(m)]
    classes, tensors = [type(m) for m in plain], {n: t.clone() for n, t in model.state_dict().items()}
    parameters, expected = {id(p) for p in model.parameters()}, model(example)
    graph = prunus.trace(model, example)
    start = drawn_values(graph, graph.axes) if values == "drawn" else None
    made = attach(model, graph, list(graph.axes), values=start)
    assert {id(p) for p in model.parameters()} == parameters | {id(made.values)}
    torch.testing.assert_close(model(example), expected)
    if values == "ones":
        assert torch.equal(model(example), expected)

    steps.remove_steps(model, Gate)
    torch.testing.assert_close(model(example), expected)
    assert not any(isinstance(m, gates.Gates | Gate) for m in model.modules())
    if name == "norms":  # weights behind a norm become plain
        assert not any(map(parametrize.is_parametrized, model.modules()))
        return
    assert [type(m) for m in plain] == classes and {id(p) for p in model.parameters()} == parameters
    assert list(model.state_dict()) == list(tensors)
    for n, tensor in model.state_dict().items():
        if values == "ones":
            assert torch.equal(tensor, tensors[n]), n
        torch.testing.assert_close(tensor, tensors[n])


def test_what_cannot_be_divided_by_its_gates_is_refused_and_left_alone():
    """A spectral norm undoes every factor: gates of one work, others would change the network."""
    torch.manual_seed(0)
    model = nn.Sequential(spectral_norm(nn.Linear(7, 6)), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.randn(4, 7)
    expected, graph = model(x), prunus.trace(model, x)
    with pytest.raises(UserError, match=r"0\.weight .*gates of one"):
        attach(model, graph, ["0"], values={"0": torch.full((6,), 2.0)})
    assert torch.equal(model(x), expected)
    attach(model, graph, ["0"])
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("name", NETS)
def test_a_weight_is_multiplied_by_the_gates_of_the_units_it_writes_to_and_reads_from(name):
    model, example = build(name)
    graph = prunus.trace(model, example)
    before = {n: t.detach().clone() for n, t in copies.effective_tensors(model).items()}
    made = attach(model, graph, list(graph.axes))
    values = drawn_values(graph, graph.axes)
    with torch.no_grad():
        for axis, new in values.items():
            made.of(axis).copy_(new)
    touched = 0
    for n, tensor in copies.effective_tensors(model).items():
        factor = multiplied_out(graph, values, n) if n in graph.parameters else 1
        torch.testing.assert_close(tensor, before[n] * factor)
        touched += not torch.equal(tensor, before[n])
        assert (
            n not in graph.parameters or tensor.dim() > 1 or torch.equal(tensor, before[n])
        )  # biases, norms
    assert touched >= 4


def test_side_by_side_nested_and_twice_in_one_dimension():
    """The units of a concatenation follow one another; heads and features are nested, three times in a fused qkv."""
    model, example = build("attention")
    graph = prunus.trace(model, example)
    dims = {n: [p.dim for p in places_of(graph, gates.Gates(graph, graph.axes), n, {})] for n in graph.shapes}
    assert dims["qkv.weight"] == [
        0,
        0,
        1,
    ]  # heads and features of a head nested in one, the stream in the other
    assert dims["qkv.bias"] == dims["norm.weight"] == []
    model, example = build("concat")
    graph = prunus.trace(model, example)
    dims = {n: [p.dim for p in places_of(graph, gates.Gates(graph, graph.axes), n, {})] for n in graph.shapes}
    assert dims["point.weight"] == [0, 1]  # the two branches side by side are one index
    assert dims["head.weight"] == [1]


# ------------------------------------------------------------------------------- I4: exact removal
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETS)
def test_i4_units_behind_closed_gates_can_be_removed(name, seed):
    model, example = double(*build(name))
    graph = prunus.trace(model, example)
    made = attach(model, graph, exact_axes(graph), values=drawn_values(graph, exact_axes(graph)))
    assert_removal_changes_nothing(model, graph, made, example, seed)


ZOO = {"resnet20": 16, "densenet40": 8, "mobilenet_v2": 16, "digits_resnet": 8, "resnet20_projection": 8}


@pytest.mark.parametrize("name", ZOO)
def test_i4_units_of_the_zoo_behind_closed_gates_can_be_removed(name):
    torch.manual_seed(0)
    model, planes = zoo.build(name), zoo.native_shape(name)[0]
    with torch.no_grad():
        for n, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() == 1:  # scales, shifts and statistics of norms
                tensor.uniform_(0.5, 1.5) if not n.endswith(("bias", "mean")) else tensor.uniform_(-0.5, 0.5)
    model, example = double(model.eval(), torch.randn(3, planes, ZOO[name], ZOO[name]))
    graph = prunus.trace(model, example)
    assert not inexact_axes(graph)
    made = attach(model, graph, list(graph.axes))
    assert_removal_changes_nothing(model, graph, made, example)


class Odd(nn.Module):
    """A layer of 6 units between others, followed by the operation `how`."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.a, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)
        self.second, self.third = nn.Conv2d(3, 6, 1), nn.Conv2d(1, 6, 1)
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2, groups=3)
        self.register_buffer("mixing", torch.randn(6, 4))
        self.after, self.matrix = nn.Linear(4, 2), nn.Parameter(torch.randn(6, 6))
        self.addend = nn.Parameter(torch.randn(2, 6, 1, 1))
        self.widen, self.narrow = nn.Parameter(torch.randn(3, 2, 5)), nn.Parameter(torch.randn(3, 5, 2))
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x):
        y = F.relu(self.norm(self.a(x)))
        return getattr(self, f"do_{self.how.replace(' ', '_')}")(x, y)

    def do_nothing(self, x, y):
        return self.head(y)

    def do_gating(self, x, y):
        return self.head(y * self.second(x).sigmoid())

    def do_squeeze_and_excite(self, x, y):
        return self.head(y * F.conv2d(y.mean((2, 3), keepdim=True), self.matrix[:, :, None, None]).sigmoid())

    def do_grouped_transposed(self, x, y):
        return self.head(self.up(y).sigmoid())

    def do_spatial_gate(self, x, y):
        return self.head(y * self.third(y.mean(1, keepdim=True)))

    def do_largest(self, x, y):
        return self.head(y * y.amax(1, keepdim=True).sigmoid())

    def do_softmax(self, x, y):
        return self.head(y.softmax(1))

    def do_unit_length(self, x, y):
        return self.head(F.normalize(y, dim=1))

    def do_constant_matrix(self, x, y):
        return self.after(y.mean((2, 3)) @ self.mixing)

    def do_products(self, x, y):
        y, z = y.flatten(2), self.second(x).flatten(2)
        return (y.transpose(1, 2) @ z) @ x.flatten(2).transpose(1, 2)

    def do_standardised(self, x, y):
        w = self.head.weight
        return F.conv2d(y, w - w.mean(1, keepdim=True))

    def do_constants_and_weights(self, x, y):
        """The matrix writes to the units elsewhere; here it multiplies activations and a constant."""
        y = (y.mean((2, 3)) @ self.matrix).cos()
        return (y @ self.mixing) @ self.matrix[:4, :2]

    def do_one_matrix_a_group(self, x, y):
        y = torch.bmm(y.mean((2, 3)).view(-1, 3, 2).transpose(0, 1), self.widen)
        return torch.bmm(F.gelu(y), self.narrow).transpose(0, 1)

    def do_shifted_weight(self, x, y):
        return F.conv2d(y, self.head.weight + self.addend)

    def do_scaled_weight(self, x, y):
        return F.conv2d(y, self.head.weight * self.addend)

    def do_folded(self, x, y):
        return self.after(F.unfold(y, 2, stride=2).transpose(1, 2) @ torch.ones(24, 4).to(y))

    def do_tied(self, x, y):
        """One matrix writes to the units and, transposed, reads them."""
        return F.gelu(F.linear(y.mean((2, 3)), self.matrix)) @ self.matrix


EXACT = {
    *("nothing", "gating", "squeeze and excite", "grouped transposed", "tied", "one matrix a group"),
    *("shifted weight", "scaled weight"),
}
NOT_EXACT = {  # what is said of them
    "spatial gate": "mean .*statistics",
    "largest": "amax .*statistics",
    "softmax": "softmax .*statistics",
    "unit length": "norm .*statistics",
    "constant matrix": "multiplies activations",
    "constants and weights": "multiplies activations",
    "products": "multiplies activations",
    "standardised": "mean .*statistics",
}


def odd(how):
    torch.manual_seed(0)
    model, example = double(Odd(how).eval(), torch.randn(3, 3, 6, 6))
    with torch.no_grad():
        model.norm.bias.uniform_(0.1, 0.5)  # units that are constant, not zero
    return model, example


@pytest.mark.filterwarnings("ignore:.*never used")
@pytest.mark.parametrize("how", sorted(EXACT))
def test_i4_exact_whatever_is_done_to_single_units(how):
    model, example = odd(how)
    graph = prunus.trace(model, example)
    assert graph.axes and not inexact_axes(graph)
    made = attach(model, graph, list(graph.axes))
    assert_removal_changes_nothing(model, graph, made, example)


@pytest.mark.filterwarnings("ignore:.*never used")
@pytest.mark.parametrize("how", NOT_EXACT)
def test_where_units_are_mixed_removal_is_not_exact_and_that_is_said(how):
    model, example = odd(how)
    graph = prunus.trace(model, example)
    found = inexact_axes(graph)
    assert found and all(re.search(NOT_EXACT[how], why) for why in found.values()), found
    assert all(changed_by_removal(model, graph, axis, example) > 1e-4 for axis in found)


def changed_by_removal(model, graph, axis, example):
    """The relative difference of the outputs if units of one axis, with gates of zero, are removed."""
    model = copy.deepcopy(model)
    made = attach(model, graph, [axis])
    keep = close_some(graph, made)
    small = surgery.shrink(plain_copy(model), graph, keep, verify="off")
    with torch.no_grad():
        before, after = model(example), small(example)
    return ((before - after).abs().max() / before.abs().max()).item()


@pytest.mark.parametrize("name", NETS)
def test_i4_negative_twin_for_what_is_left_out_removal_does_change_the_function(name):
    """On every axis that is named, removal changes the output: no axis is named without need."""
    model, example = double(*build(name))
    graph = prunus.trace(model, example)
    found = inexact_axes(graph)
    assert bool(found) == (name in ("attention", "decoder", "norms"))
    # Here queries and keys that are left with their biases add the same to all of a row, which the softmax undoes.
    harmless = {"attention": {"qkv#1"}, "decoder": {n for n in found if ".qkv#" in n}}.get(name, set())
    assert harmless <= found.keys()
    for axis in found.keys() - harmless:
        assert changed_by_removal(model, graph, axis, example) > 1e-4, axis


@settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(programs, st.integers(0, 10**6))
def test_i4_of_random_networks_units_behind_closed_gates_can_be_removed(program, seed):
    torch.manual_seed(seed)
    model, example = build_program(program)
    assume(not draws(model))  # other networks draw other numbers
    try:
        graph = prunus.trace(model, example)
    except TraceError:
        return  # nothing may shrink
    names = exact_axes(graph)
    if not names:
        return
    before = model(example)
    made = attach(model, graph, names, values=drawn_values(graph, names, seed))
    # torch keeps the weights that a recurrent layer computed with, and with gradients they could not be copied
    with torch.set_grad_enabled("recurrent" not in repr(program)):
        torch.testing.assert_close(model(example), before, **CLOSE)
    keep = close_some(graph, made, seed)
    small = surgery.shrink(plain_copy(model), graph, keep, verify="off")
    torch.testing.assert_close(small(example), model(example), **CLOSE)


# ------------------------------------------------------------------------------------ I6: gradients
@pytest.mark.parametrize("name", ["residual", "concat", "shuffle", "attention"])
def test_i6_gradients_of_gates_and_weights_are_finite_differences(name):
    model, example = double(*build(name))
    graph = prunus.trace(model, example)
    made = attach(model, graph, list(graph.axes), values=drawn_values(graph, graph.axes)).double()
    weight = next(steps.find_steps(model, Gate)).steps.original
    wanted = torch.randn_like(model(example))

    def loss():
        return (model(example) * wanted).sum()

    loss().backward()
    for tensor in (made.values, weight):
        flat = tensor.data.view(-1)
        for i in torch.linspace(0, len(flat) - 1, 12).long().tolist():
            value, losses = flat[i].item(), []
            for step in (1e-6, -1e-6):
                flat[i] = value + step
                losses.append(loss().item())
            flat[i] = value
            slope = (losses[0] - losses[1]) / 2e-6
            assert tensor.grad.view(-1)[i].item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["residual", "concat", "shuffle", "attention", "norms"])
def test_i6_the_gradient_of_a_shared_gate_is_the_sum_over_all_tensors_tied_to_it(name):
    model, example = double(*build(name))
    graph = prunus.trace(model, example)
    values = drawn_values(graph, graph.axes)
    made = attach(model, graph, list(graph.axes), values=values)
    plain = plain_copy(model)
    for network in (model, plain):
        network(example).square().sum().backward()
    tensors = dict(plain.named_parameters())
    for axis, of_units in values.items():
        expected = torch.zeros(len(of_units), dtype=torch.float64)
        parts = 0
        for member in graph.members(axis):
            if member.role in ("produces", "consumes"):
                weight = tensors[member.tensor]
                each = (weight * weight.grad).detach().transpose(0, member.dim).flatten(1).sum(1)
                expected += each[member.index].sum(1) / of_units
                parts += 1
        assert parts > 1
        place = made.places[axis]
        torch.testing.assert_close(made.values.grad[place].double(), expected, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------ all weights of a model at once
def counted(monkeypatch):
    """The number of weights that each call computed at once."""
    seen, usual = [], at_once_hooks.apply_gates
    monkeypatch.setattr(at_once_hooks, "apply_gates", lambda v, w, p: seen.append(len(w)) or usual(v, w, p))
    return seen


def gradients(model, example):
    model.zero_grad()
    output = model(example)
    output.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"output": output}


@pytest.mark.parametrize("name", NETS)
def test_made_at_once_is_made_one_by_one(name, monkeypatch):
    model, example = double(*build(name))
    graph = prunus.trace(model, example)
    attach(model, graph, list(graph.axes), values=drawn_values(graph, graph.axes))
    seen = counted(monkeypatch)
    at_once = gradients(model, example)
    alone = {w.steps for w in steps.find_steps(model, Gate) if len(w.steps) == 1}
    assert seen == [len(alone)] and at_once["output"].requires_grad
    remove_hooks(model)
    one_by_one = gradients(model, example)
    assert len(seen) == 1 and one_by_one.keys() == at_once.keys()
    assert torch.equal(one_by_one.pop("output"), at_once.pop("output"))
    for tensor, grad in one_by_one.items():
        torch.testing.assert_close(at_once[tensor], grad, rtol=1e-10, atol=1e-11)
    assert (
        not model._forward_pre_hooks and not model._forward_hooks and not model._forward_hooks_always_called
    )


def gated_residual():
    model, example = double(*build("residual"))
    graph = prunus.trace(model, example)
    return (
        model,
        example,
        attach(model, graph, list(graph.axes), values=drawn_values(graph, graph.axes)).double(),
    )


def test_gradients_of_gradients():
    drawn = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(0)}
    values, *weights = (torch.randn(*s, **drawn).requires_grad_() for s in ((7,), (3, 4, 2), (4,), (6, 2)))
    at = torch.tensor
    nested = [Place(0, at([0, 0, 0, 1, 1, 1])), Place(0, at([2, 3, 4, 2, 3, 4])), Place(1, at([5, 7]))]
    places = [[Place(0, at([0, 1, 2])), Place(1, at([3, 4, 5, 7]))], [Place(0, at([3, 4, 5, 6]))], nested]

    def made(values, *weights):
        return product.apply_gates(values, weights, places)

    assert torch.autograd.gradcheck(made, (values, *weights))
    assert torch.autograd.gradgradcheck(made, (values, *weights))


def test_losses_of_one_pass_may_be_learned_from_one_after_the_other():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
            self.c, self.d = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x)), self.d(self.c(x))

    torch.manual_seed(0)
    model, x = Two(), torch.randn(5, 3)
    graph = prunus.trace(model, x)
    made = attach(model, graph, list(graph.axes))
    first, second = model(x)
    first.square().sum().backward()
    assert (
        model.d.parametrizations.weight.original.grad is None
    )  # no part in the first: an optimiser leaves it alone
    assert model.b.parametrizations.weight.original.grad.abs().sum() > 0
    second.square().sum().backward()
    apart = made.values.grad.clone()
    made.values.grad = None
    sum(output.square().sum() for output in model(x)).backward()
    torch.testing.assert_close(made.values.grad, apart)


def test_weights_changed_between_the_passes_are_refused():
    model, example, _ = gated_residual()
    loss = model(example).sum()
    with torch.no_grad():
        model.a.parametrizations.weight.original.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place between forward and backward"):
        loss.backward()


def test_what_is_recomputed_in_the_backward_pass_is_the_same():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Linear(3, 8), nn.Linear(8, 2)
            self.b = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

        def forward(self, x):
            x = self.a(x)
            return self.c(checkpoint(self.b, x, use_reentrant=False) if self.training else self.b(x))

    torch.manual_seed(0)
    model, x = Checkpointed(), torch.randn(5, 3)
    graph = prunus.trace(model.eval(), x)
    attach(model, graph, list(graph.axes))
    found, expected = gradients(model.train(), x), gradients(model.eval(), x)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad)


def test_gradients_are_not_rounded_to_the_type_of_autocast():
    torch.manual_seed(0)
    values, weight = torch.rand(40, requires_grad=True), torch.rand(24, 16, requires_grad=True)
    places = [[Place(0, torch.arange(24)), Place(1, torch.arange(24, 40))]]
    (made,) = product.apply_gates(values, [weight], places)
    plain = torch.autograd.grad(made.square().sum(), values, retain_graph=True)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.autograd.grad(made.square().sum(), values)[0], plain)


def test_without_gradients_weights_are_made_where_they_are_read(monkeypatch):
    model, example, made = gated_residual()
    expected, seen = model(example), counted(monkeypatch)
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            torch.testing.assert_close(model(example), expected, rtol=0, atol=0)
    with torch.inference_mode():
        made.set_values(made.values * 1)  # such tensors count no versions
        torch.testing.assert_close(model(example), expected, rtol=0, atol=0)
    assert not seen


def test_nothing_made_outlives_its_pass():
    model, example, made = gated_residual()
    before = model(example).detach()
    with pytest.raises(RuntimeError):
        model(example[:, :1])
    for tensor in (made.values, *(w.steps.original for w in steps.find_steps(model, Gate))):
        tensor.data *= 1.5  # which no version tells
    assert not torch.allclose(model(example), before)
    weight = next(steps.find_steps(model, Gate))
    assert torch.equal(getattr(weight.module, weight.attribute), weight.step(Gate)(weight.steps.original))


def test_a_pass_that_was_interrupted_leaves_nothing_to_what_is_cut_or_taken_off_then():
    model, example, made = gated_residual()

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.c.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(example)
    hook.remove()
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.a.parametrizations.weight.original.mul_(3)
    torch.testing.assert_close(model.a.weight, 3 * other.a.weight)
    made.values.data *= 2
    expected = {w.name: w.step(Gate)(w.steps.original) for w in steps.find_steps(model, Gate)}
    gates.take_off(model)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in expected.items())


def test_further_steps_behind_a_gate_act():
    model, example, _ = gated_residual()

    class Nothing(nn.Module):
        def forward(self, weight):
            return torch.zeros_like(weight)

    parametrize.register_parametrization(model.c, "weight", Nothing())
    seen = []
    model.c.register_forward_hook(lambda module, args, output: seen.append(output))
    model(example)
    assert torch.equal(seen[0], model.c.bias.view(-1, 1, 1).expand_as(seen[0]))


def test_parts_of_a_model_can_be_compiled():
    model, example, _ = gated_residual()
    expected = gradients(model, example)
    for part in (model.a, model.b, model.c):
        part.compile(backend="eager")
    for name, found in gradients(model, example).items():
        torch.testing.assert_close(found, expected[name])


def test_functions_of_torch_func_see_the_weights_one_by_one(monkeypatch):
    model, example, _ = gated_residual()
    seen = counted(monkeypatch)
    found = torch.func.grad(lambda x: model(x).square().sum())(example)
    assert not seen
    example = example.clone().requires_grad_()
    model(example).square().sum().backward()
    torch.testing.assert_close(found, example.grad)


# ---------------------------------------------------------------------------- as modules, and bad input
def test_gates_are_one_parameter_that_copies_files_and_moves_take_along():
    model, example = build("residual")
    graph = prunus.trace(model, example)
    made = attach(model, graph, list(graph.axes), values=drawn_values(graph, graph.axes))
    assert sum(parameter is made.values for parameter in model.parameters()) == 1
    assert len(made.values) == sum(axis.size for axis in graph.axes.values())

    other = copy.deepcopy(model)
    own = {id(p) for p in model.parameters()}
    assert not own & {id(p) for p in other.parameters()} and len(own) == len(list(other.parameters()))
    other_gates = next(m for m in other.modules() if isinstance(m, gates.Gates))
    with torch.no_grad():
        other_gates.values[0] = 0.0
    assert not torch.equal(other(example), model(example))

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(example), model(example))

    again = prunus.trace(model, example)
    assert list(again.axes) == list(graph.axes) and list(again.layouts) == list(graph.layouts)
    expected = model(example)
    torch.testing.assert_close(model.double()(example.double()).float(), expected)
    assert made.values.dtype == torch.float64


def test_frozen_and_half_precision_weights_are_gated_as_they_are():
    model, example = build("residual")
    graph = prunus.trace(model, example)
    model.requires_grad_(False).to(torch.bfloat16)
    made = attach(model, graph, list(graph.axes))
    model(example.bfloat16()).float().sum().backward()
    assert made.values.grad.abs().sum() > 0
    assert [p for p in model.parameters() if p.requires_grad] == [made.values]
    assert copies.effective_tensors(model)["a.weight"].dtype == torch.bfloat16


def test_tied_weights_have_one_gate_and_stay_tied():
    torch.manual_seed(0)
    embed = nn.Embedding(7, 6)
    model, ids = (
        nn.Sequential(embed, nn.Linear(6, 6), Tied(embed)).double().eval(),
        torch.arange(10).view(2, 5) % 7,
    )
    expected, graph = model(ids), prunus.trace(model, ids)
    assert not inexact_axes(graph)
    made = attach(model, graph, list(graph.axes), values=drawn_values(graph, graph.axes))
    torch.testing.assert_close(model(ids), expected, **CLOSE)
    assert_removal_changes_nothing(model, graph, made, ids)
    steps.remove_steps(model, Gate)
    assert model[2].weight is embed.weight


def test_what_cannot_be_gated_is_refused():
    model, example = build("residual")
    graph = prunus.trace(model, example)
    with pytest.raises(UserError, match=r"unknown axis 'stemm'\. Did you mean stem"):
        attach(model, graph, ["stemm"])
    with pytest.raises(UserError, match="no axis was named"):
        attach(model, graph, [])
    assert not any(map(parametrize.is_parametrized, model.modules()))
    attach(model, graph, ["stem"])
    with pytest.raises(UserError, match="has gates already"):
        attach(model, graph, ["a"])
