"""Weights behind steps: a cut leaves the steps what they were, or their dimensions are fixed and it is said why."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import prunus
from prunus import surgery
from prunus.errors import PruningError
from prunus.sparse import masks
from prunus.surgery import effective_tensors

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
KEEP = {"0": [0, 2, 3, 7], "2": [1, 4, 5]}
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


class LowRank(nn.Module):
    """An addition of low rank; it has no inverse."""

    def __init__(self, weight):
        super().__init__()
        self.down = nn.Parameter(0.1 * torch.randn(2, weight.shape[1]))
        self.up = nn.Parameter(0.1 * torch.randn(weight.shape[0], 2))

    def forward(self, weight):
        return weight + (self.up @ self.down)[:, :, None, None]


class Positive(nn.Module):
    def forward(self, weight):
        return F.softplus(weight)

    def right_inverse(self, weight):
        return weight.clamp_min(1e-6).expm1().log()


class Scaled(nn.Module):
    """A scale for each output, in a buffer, and no inverse."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("scale", 0.5 + torch.rand(weight.shape[0], 1, 1, 1))

    def forward(self, weight):
        return weight * self.scale


class Sorted(nn.Module):
    """A weight whose inputs depend on one another, with a buffer and no inverse."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("shift", torch.zeros(len(weight), 1, 1, 1))

    def forward(self, weight):
        return weight.cumsum(1) + self.shift


def with_step(make):
    def change(layer):
        parametrize.register_parametrization(layer, "weight", make(layer.weight))
        return layer

    return change


SURVIVE = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "spectral_norm": parametrizations.spectral_norm,
    "positive": with_step(lambda weight: Positive()),
    "low rank": with_step(LowRank),
    "a scale in a buffer": with_step(Scaled),
    "weight norm, then positive": lambda layer: with_step(lambda weight: Positive())(
        parametrizations.weight_norm(layer)
    ),
}
FIXED = {
    "orthogonal": (parametrizations.orthogonal, "Orthogonal"),
    "householder": (
        lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder"),
        "Orthogonal",
    ),
    "sorted": (with_step(Sorted), "Sorted of 4.weight: cumsum"),
}


def network(change, which=(0, 2)):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.LeakyReLU(0.1),
        nn.Conv2d(8, 6, 3),
        nn.LeakyReLU(0.1),
        nn.Conv2d(6, 4, 1),
    ]
    for i in which:
        layers[i] = change(layers[i])
    return nn.Sequential(*layers).eval()


def kinds(layer):
    return (
        [type(step) for step in layer.parametrizations.weight] if parametrize.is_parametrized(layer) else []
    )


@pytest.mark.parametrize("name", SURVIVE)
def test_steps_survive_a_cut_and_give_exactly_the_cut_weight(name):
    model = network(SURVIVE[name])
    graph = prunus.trace(model, X)
    assert graph.axes.keys() == KEEP.keys()
    before = copy.deepcopy(model.state_dict())
    small = prunus.shrink(model, graph, KEEP)
    for i in (0, 2):
        assert kinds(small[i]) == kinds(model[i]) != []
    expected, got = surgery.cut(effective_tensors(model), graph, KEEP), effective_tensors(small)
    for weight, tensor in expected.items():
        torch.testing.assert_close(got[weight], tensor, **CLOSE, msg=weight)
    torch.testing.assert_close(prunus.mask(model, graph, KEEP)(X), small(X), **CLOSE)
    torch.testing.assert_close(prunus.crop(model, graph, KEEP, X), small(X), **CLOSE)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    small.train()(X).square().mean().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert prunus.trace(small.eval(), X).axes.keys() == KEEP.keys()


def test_a_model_without_data_has_the_same_axes():
    for change in SURVIVE.values():
        model = network(change)
        graph = prunus.trace(copy.deepcopy(model).to("meta"), X)
        assert graph.axes.keys() == KEEP.keys()
        prunus.shrink(model, graph, KEEP)


@pytest.mark.parametrize("name", FIXED)
def test_a_step_that_cannot_give_a_cut_weight_fixes_its_dimensions_and_says_so(name):
    change, words = FIXED[name]
    model = network(change, which=(4,))
    graph = prunus.trace(model, X)
    assert graph.axes.keys() == {"0"}
    assert words in graph.explain("4.weight")
    small = prunus.shrink(model, graph, {"0": KEEP["0"]})
    assert kinds(small[4]) == kinds(model[4])
    assert torch.equal(small[4].weight, model[4].weight)


def test_a_spectral_norm_is_taken_over_the_units_that_stay():
    """In evaluation its weight is the cut one; training goes on with a norm of one."""
    model = network(parametrizations.spectral_norm)
    for _ in range(30):
        model.train()(X)
    graph = prunus.trace(model.eval(), X)
    small = prunus.shrink(model, graph, KEEP)
    assert torch.linalg.matrix_norm(small[2].weight.flatten(1), 2) < 0.99
    small.train()(X)
    for _ in range(20):
        small(X)
    for i in (0, 2):
        norm = torch.linalg.matrix_norm(small.eval()[i].weight.flatten(1), 2)
        torch.testing.assert_close(norm, torch.tensor(1.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", SURVIVE)
def test_a_saved_model_gets_back_the_same_steps(name, tmp_path):
    model = network(SURVIVE[name])
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, KEEP)
    prunus.save(tmp_path, small, KEEP, graph)
    loaded = prunus.load(tmp_path, network(SURVIVE[name]))
    assert loaded.state_dict().keys() == small.state_dict().keys()
    assert all(torch.equal(tensor, small.state_dict()[key]) for key, tensor in loaded.state_dict().items())
    assert torch.equal(loaded.eval()(X), small.eval()(X))
    plain = prunus.load(tmp_path, network(lambda layer: layer))  # one without steps gets the weights
    torch.testing.assert_close(plain(X), small(X), **CLOSE)


@pytest.mark.parametrize("change", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_model_with_steps_takes_the_weights_of_a_file_without(change, tmp_path):
    model = network(lambda layer: layer)
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, KEEP)
    prunus.save(tmp_path, small, KEEP, graph)
    if change is parametrizations.spectral_norm:  # sizes of its buffers are not known
        with pytest.raises(PruningError, match="SpectralNorm, which cannot give"):
            prunus.load(tmp_path, network(change))
    else:
        torch.testing.assert_close(prunus.load(tmp_path, network(change))(X), small(X), **CLOSE)


def test_steps_of_another_kind_than_in_the_file_take_its_weights(tmp_path):
    """Both have originals of the same names, of other sizes."""
    model = network(parametrizations.weight_norm)
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, KEEP)
    prunus.save(tmp_path, small, KEEP, graph)
    loaded = prunus.load(tmp_path, network(lambda layer: parametrizations.weight_norm(layer, dim=1)))
    torch.testing.assert_close(loaded(X), small(X), **CLOSE)
    assert loaded[2].parametrizations.weight.original0.shape == (1, 4, 1, 1)


def test_rows_of_zeros_keep_their_norm():
    """A norm of zero has no inverse."""
    model = network(parametrizations.weight_norm)
    with torch.no_grad():
        model[2].parametrizations.weight.original1[4, :7] = 0
        model[2].parametrizations.weight.original1[4, 7] = 1
    graph = prunus.trace(model, X)
    keep = {"0": [0, 1, 2], "2": [3, 4, 5]}
    small = prunus.shrink(model, graph, keep)  # of unit 4, only zeros stay
    assert kinds(small[2]) == kinds(model[2])
    assert small[2].weight[1].abs().max() < 1e-12 and small[2].weight.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("change", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_steps_survive_in_other_precisions(change, dtype):
    model = network(change).to(dtype)
    graph = prunus.trace(model, X.to(dtype))
    small = prunus.shrink(model, graph, KEEP)
    assert kinds(small[2]) == kinds(model[2]) and small[2].weight.dtype == dtype
    close = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else CLOSE
    expected = surgery.cut(effective_tensors(model), graph, KEEP)["2.weight"]
    torch.testing.assert_close(small[2].weight, expected, **close)


def test_the_directions_of_a_weight_norm_are_cut_and_its_lengths_set():
    model = network(parametrizations.weight_norm)
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, KEEP)
    old, new = model[2].parametrizations.weight, small[2].parametrizations.weight
    assert torch.equal(new.original1, old.original1[KEEP["2"]][:, KEEP["0"]])
    torch.testing.assert_close(new.original0.flatten(), small[2].weight.flatten(1).norm(dim=1))


def test_the_state_of_an_optimiser_is_cut_behind_steps_too():
    model = network(parametrizations.weight_norm)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()(X).square().mean().backward()
    optimizer.step()
    graph = prunus.trace(model.eval(), X)
    small = prunus.shrink(model, graph, KEEP)
    carried, _ = prunus.carry_over(graph, KEEP, model, small, optimizer=optimizer)
    old = optimizer.state[model[2].parametrizations.weight.original1]["exp_avg"]
    new = carried.state[small[2].parametrizations.weight.original1]["exp_avg"]
    assert torch.equal(new, old[KEEP["2"]][:, KEEP["0"]])
    small.train()(X).square().mean().backward()
    carried.step()


def test_the_state_of_an_optimiser_is_cut_where_masks_of_ours_hold_weights():
    model = network(lambda layer: layer)
    graph = prunus.trace(model, X)
    masks.hold(model, graph, {"2.weight": torch.rand(6, 8, 3, 3) < 0.5})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()(X).square().mean().backward()
    optimizer.step()
    small = prunus.shrink(model.eval(), graph, KEEP)
    carried, _ = prunus.carry_over(graph, KEEP, model, small, optimizer=optimizer)
    assert carried.state[small[2].weight]["momentum_buffer"].shape == small[2].weight.shape


def test_our_own_masks_go_and_what_they_stand_on_stays():
    model = network(parametrizations.weight_norm)
    graph = prunus.trace(model, X)
    generator = torch.Generator().manual_seed(1)
    drawn = {
        name: torch.rand(graph.shapes[name], generator=generator) < 0.5 for name in ("2.weight", "4.weight")
    }
    before = kinds(model[2])
    masks.hold(model, graph, drawn)
    small = prunus.shrink(model, graph, KEEP)
    assert kinds(small[2]) == before and kinds(small[4]) == []
    expected = surgery.cut(effective_tensors(model), graph, KEEP)["2.weight"]
    torch.testing.assert_close(small[2].weight, expected, **CLOSE)
    assert torch.equal(small[2].weight == 0, expected == 0)


def test_a_step_added_after_the_trace_that_cannot_give_the_weight_is_refused():
    model = network(lambda layer: layer)
    graph = prunus.trace(model, X)
    parametrizations.orthogonal(model[2])
    with pytest.raises(PruningError, match=r"2\.weight is behind Orthogonal, which cannot give"):
        prunus.shrink(model, graph, KEEP)


def test_tied_weights_share_their_steps_after_a_cut():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    parametrizations.weight_norm(first)
    parametrizations.weight_norm(second)
    second.parametrizations.weight = first.parametrizations.weight
    model = nn.Sequential(nn.Linear(5, 6), first, nn.Tanh(), second, nn.Linear(6, 2)).eval()
    graph = prunus.trace(model, torch.randn(3, 5))
    (axis,) = graph.axes
    small = prunus.shrink(model, graph, {axis: [0, 2, 5]})
    assert small[1].parametrizations.weight is small[3].parametrizations.weight
    assert small[1].weight.shape == (3, 3)


# ------------------------------------------------------------------------------ steps that are hooks
OLD = {
    "weight_norm": (nn.utils.weight_norm, {"weight_g", "weight_v"}),
    "weight_norm of inputs": (lambda layer: nn.utils.weight_norm(layer, dim=1), {"weight_g", "weight_v"}),
    "spectral_norm": (nn.utils.spectral_norm, {"weight_orig", "weight_u", "weight_v"}),
    "masks": (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        {"weight_orig", "weight_mask"},
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("name", OLD)
def test_norms_and_masks_in_hooks_survive_a_cut(name, tmp_path):
    change, names = OLD[name]
    model = network(change)
    model(X)  # which makes the weight from what is behind it
    graph = prunus.trace(model, X)
    sizes = {axis.size for axis in graph.axes.values()}
    assert sizes == {8, 6}
    keep = {axis: [0, 2, 3] for axis in graph.axes}
    small = prunus.shrink(model, graph, keep)
    for i in (0, 2):
        assert names <= dict([*small[i].named_parameters(), *small[i].named_buffers()]).keys()
    assert small(X).isfinite().all()
    torch.testing.assert_close(prunus.mask(model, graph, keep)(X), small(X), **CLOSE)
    small.train()(X).square().mean().backward()
    prunus.save(tmp_path, small, keep, graph)
    loaded = prunus.load(tmp_path, network(change))
    assert torch.equal(loaded.eval()(X), small.eval()(X))
