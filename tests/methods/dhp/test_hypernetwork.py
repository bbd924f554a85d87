"""Weights computed from latents: the closed form, the initial scale, and units cut out of them.

I1 to I5 of the specification of DHP, as far as they are about what stands behind a weight.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import prunus
from prunus import surgery, zoo
from prunus.errors import UserError
from prunus.gates import Gate
from prunus.gates.gates import places_of
from prunus.methods.dhp.hypernetwork import LEAST_LATENT, LatentWeights, attach
from prunus.surgery import copies, slicing, steps
from tests.lib.graphs import close_some, multiplied_out, original
from tests.lib.nets import NETS, build

LAYERS = {  # from 6 channels to 8, and how many products are summed for one of the outputs
    "conv1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), 1, 18),
    "conv2d": (lambda: nn.Conv2d(6, 8, 3, padding=1), 2, 54),
    "conv3d": (lambda: nn.Conv3d(6, 8, (1, 3, 2)), 3, 36),
    "pointwise": (lambda: nn.Conv2d(6, 8, 1), 2, 6),
    "grouped": (lambda: nn.Conv2d(6, 8, 3, padding=1, groups=2), 2, 27),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), 2, 9),
    "widened depthwise": (lambda: nn.Conv2d(6, 12, 3, padding=1, groups=6), 2, 9),
    "transposed1d": (lambda: nn.ConvTranspose1d(6, 8, 3, padding=1), 1, 18),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, padding=1), 2, 54),
    "grouped transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, padding=1, groups=2), 2, 27),
    "linear": (lambda: nn.Linear(6, 8), 0, 6),
}


def around(name):
    """A network whose middle layer is the named one: it reads from and writes to units that can be removed."""
    torch.manual_seed(0)
    layer, space = LAYERS[name][0](), LAYERS[name][1]
    if not space:
        return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), layer, nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 3)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[space - 1]
    out = layer.weight.shape[1] * layer.groups if layer.transposed else layer.weight.shape[0]
    model = nn.Sequential(kind(3, 6, 1), nn.ReLU(), layer, nn.ReLU(), kind(out, 2, 1))
    return model, torch.randn(2, 3, *[5] * space)


def attached(model, graph, start="scratch", latents="normal", factors=8, seed=0):
    return attach(model, graph, list(graph.axes), start=start, latents=latents, factors=factors, seed=seed)


def steps_of(model):
    return {weight.name: weight.step(Gate) for weight in steps.find_steps(model, Gate)}


@torch.no_grad()
def with_random_biases(model):
    for name, step in steps_of(model).items():
        for tensor in (step.bias0, step.bias1, model.get_parameter(original(name))):
            tensor.normal_()


# ------------------------------------------------------------------------------- I1: the closed form
@pytest.mark.parametrize("factors", [1, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_i1_three_layers_are_z_z_a_plus_c(name, factors):
    model, example = around(name)
    graph = prunus.trace(model, example)
    made = attached(model, graph, factors=factors)
    with_random_biases(model)
    values = {axis: made.of(axis).detach() for axis in graph.axes}
    for n, step in steps_of(model).items():
        shape = graph.shapes[n]
        w1, b1, b0 = (getattr(step, each).detach() for each in ("weight1", "bias1", "bias0"))
        w2, b2 = step.weight2.detach(), model.get_parameter(original(n)).detach()
        a = torch.einsum("...km,...m->...k", w2, w1).reshape(shape)
        leaking = torch.einsum("...km,...m->...k", w2, b1).reshape(shape)
        b0 = b0.reshape(*b0.shape, *[1] * (len(shape) - b0.dim()))
        zz = multiplied_out(graph, values, n)
        assert zz.std() > 0 and w1.shape[-1] == factors
        found = copies.effective_tensors(model)[n]
        torch.testing.assert_close(found, zz * a + (b0 * a + leaking + b2), rtol=1e-5, atol=1e-5)
    assert set(steps_of(model)) == {"0.weight", "2.weight", "4.weight"}


# ---------------------------------------------------------------------------- I2: how large weights start
@pytest.mark.parametrize(
    ("name", "factors", "latents", "draws"),
    [
        *((name, factors, "ones", 10) for name in LAYERS for factors in (8, None)),
        *(
            (name, 8, "normal", 100) for name in ("conv2d", "depthwise", "grouped transposed")
        ),  # a few heavy tails
    ],
)
def test_i2_weights_start_with_a_variance_of_one_over_fan_in(name, factors, latents, draws):
    model, example = around(name)
    graph, squares = prunus.trace(model, example), []
    for seed in range(draws):
        drawn = copy.deepcopy(model)
        attached(drawn, graph, latents=latents, factors=factors, seed=seed)
        squares.append(copies.effective_tensors(drawn)["2.weight"].detach().square().mean())
        assert not factors or not drawn.get_parameter(original("2.weight")).any()  # B2
    assert 0.8 < torch.stack(squares).mean().item() * LAYERS[name][2] < 1.25


@pytest.mark.parametrize(("factors", "latents"), [(8, "normal"), (None, "ones")])
def test_i2_signals_keep_their_size_through_a_fresh_network(factors, latents):
    torch.manual_seed(0)
    model, x = zoo.build("resnet20"), torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)  # as if trained
    attached(model, prunus.trace(model, x), latents=latents, factors=factors)
    sizes = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)) and not module.bias.any()
            module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].std().item()))
    model.train()(x)
    assert len(sizes) == 19 and all(0.1 < size < 5 for size in sizes), sizes


def test_from_scratch_the_seed_alone_decides():
    def drawn(seed, given):
        torch.manual_seed(given)
        model, example = build("residual")
        torch.manual_seed(given)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        state = torch.get_rng_state()
        attached(model, prunus.trace(model, example), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return model.state_dict()

    first, same, other = drawn(1, 2), drawn(1, 3), drawn(2, 2)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(
        first["stem.parametrizations.weight.0.weight2"], other["stem.parametrizations.weight.0.weight2"]
    )


@pytest.mark.parametrize("latents", ["ones", "normal", "norms"])
@pytest.mark.parametrize("name", NETS)
def test_from_scratch_what_was_drawn_stands_behind_the_weights(name, latents):
    """Without a hypernetwork, W = z_out z_in A: A is the sampled weight, also for tied weights."""
    model, example = build(name)
    graph = prunus.trace(model, example)
    plain = copy.deepcopy(model)
    drawn = copies.effective_tensors(fresh(plain, graph))
    made = attached(model, graph, latents=latents, factors=None)
    values = {axis: made.of(axis).detach() for axis in graph.axes}
    assert latents == "ones" or made.values.detach().std() > 0.01
    for n, tensor in copies.effective_tensors(model).items():
        if n in graph.parameters and tensor.dim() > 1:
            expected = drawn[n] * multiplied_out(graph, values, n)
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(tensor, copies.effective_tensors(build(name)[0])[n])


def fresh(model, graph):
    """The weights sampled with seed 0."""
    attached(model, graph, latents="ones", factors=None)
    return model


def test_from_scratch_weights_behind_a_norm_cannot_begin_with_zero():
    model, example = build("norms")
    graph = prunus.trace(model, example)
    expected = model(example)
    with pytest.raises(UserError, match=r"a\.weight is parametrised.*mode=exact"):
        attached(model, graph)
    assert torch.equal(model(example), expected)


# ------------------------------------------------------------------------------ I3: cutting and making
@pytest.mark.parametrize("name", LAYERS)
def test_i3_weights_made_from_cut_tensors_are_the_cut_weights(name):
    model, example = around(name)
    graph = prunus.trace(model, example)
    made = attached(model, graph)
    with_random_biases(model)
    keep = {axis: list(range(0, size.size, 2)) for axis, size in graph.axes.items()}
    for n, step in steps_of(model).items():
        whole = copies.effective_tensors(model)[n].detach()
        cut = slicing.slice_tensor(whole, graph.layouts[n], keep)
        small = copy.deepcopy(step)
        small.gates, small.shape, small.head = made, cut.shape, cut.shape[: len(step.head)]
        small.places = places_of(graph, made, n, keep)
        head = graph.layouts[n][: len(step.head)]
        for each in ("bias0", "bias1", "weight1", "weight2"):
            setattr(small, each, nn.Parameter(slicing.slice_tensor(getattr(step, each).detach(), head, keep)))
        behind = slicing.slice_tensor(model.get_parameter(original(n)).detach(), graph.layouts[n], keep)
        assert cut.numel() < whole.numel()
        assert torch.equal(small(behind), cut)


# --------------------------------------------------------------------- I4, I5: exact removal, no change
def test_i4_negative_twin_the_papers_biases_are_not_gated():
    """The defect of the original: a latent of zero leaves the filter its biases."""
    model, example = around("conv2d")
    model, example = model.double(), example.double()
    graph = prunus.trace(model, example)
    made = attached(model, graph)
    for biases in (False, True):
        if biases:
            with_random_biases(model)
        keep = close_some(graph, made)
        plain = copy.deepcopy(model)
        steps.remove_steps(plain, Gate)
        difference = (surgery.shrink(plain, graph, keep, verify="off")(example) - model(example)).abs().max()
        assert difference > 0.1 if biases else difference < 1e-12


@pytest.mark.parametrize(
    ("factors", "latents"), [(8, "normal"), (8, "ones"), (None, "norms"), (None, "normal")]
)
@pytest.mark.parametrize("name", NETS)
def test_i5_from_given_weights_the_network_stays_the_same(name, factors, latents):
    model, example = build(name)
    expected, graph = model(example), prunus.trace(model, example)
    made = attached(model, graph, start="given", latents=latents, factors=factors)
    assert (latents == "ones") == bool((made.values == 1).all())
    torch.testing.assert_close(model(example), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    kinds = {type(step) for step in steps_of(model).values()}
    assert kinds == {LatentWeights if factors else Gate}
    steps.remove_steps(model, Gate)
    torch.testing.assert_close(model(example), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_latents_in_proportion_to_norms_are_never_near_zero():
    model, example = build("residual")
    graph = prunus.trace(model, example)
    norms = prunus.scores.magnitude(model, graph)
    with torch.no_grad():
        for n in ("stem.weight", "a.weight"):
            model.get_parameter(n)[0] = 0.0
    made = attached(model, graph, start="given", latents="norms", factors=None)
    assert made.values.min() >= LEAST_LATENT
    ratio = made.of("c") / norms["c"]
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0.2, atol=0.0)  # nearly, for others fell

    with torch.no_grad():
        for parameter in (model := build("residual")[0]).parameters():
            parameter.zero_()
    made = attached(model, graph, start="given", latents="norms", factors=None)
    assert made.values.isfinite().all() and (made.values > 0).all()


@pytest.mark.parametrize("factors", [8, None])
def test_weights_keep_their_precision(factors):
    for dtype in (torch.float64, torch.bfloat16):
        model, example = build("residual")
        model = model.to(dtype)
        attached(model, prunus.trace(model, example.to(dtype)), factors=factors)
        model(example.to(dtype)).sum().backward()
        assert copies.effective_tensors(model)["a.weight"].dtype == dtype
        steps.remove_steps(model, Gate)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert not any(map(parametrize.is_parametrized, model.modules()))
        assert math.isfinite(model(example.to(dtype)).sum().item())
