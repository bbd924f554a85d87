"""A model cut while it is trained equals the one that surgery makes, and trains on as if it had not been cut.

I4 and I11 of the specification of DHP, and the point of it all: a network with gates of zero and one without those
units go through training alike.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import prunus
from prunus import surgery, zoo
from prunus.errors import UserError
from prunus.gates import Compacted, Gate, attach, can_be_cut
from prunus.gates.compact import expand
from prunus.methods.dhp.hypernetwork import attach as attach_hypernetworks
from prunus.sparse import masks
from prunus.surgery import copies, slicing, steps
from tests.lib.graphs import close_some, double, exact_axes, plain_copy
from tests.lib.nets import NETS, build, random_keep

PLAIN_NETS = [name for name in NETS if name != "norms"]  # which has weights behind a norm


def stated(model):
    """The sizes, heads and groups that modules state about themselves."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int) and name != "training"
    }


def assert_same_network(model, other, example):
    assert list(model.state_dict()) == list(other.state_dict())
    for (name, tensor), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name
        assert tensor.stride() == expected.stride(), name
    assert stated(model) == stated(other)
    assert [type(m) for m in model.modules()] == [type(m) for m in other.modules()]
    assert torch.equal(model(example), other(example))


# ----------------------------------------------------------------------------- what a cut leaves
@pytest.mark.parametrize("how", ["plain", "gated", "in two steps", "channels last"])
@pytest.mark.parametrize("name", PLAIN_NETS)
def test_a_cut_model_is_the_shrunk_one(name, how):
    model, example = build(name)
    if how == "channels last":
        model = model.to(memory_format=torch.channels_last)
    graph, keep = prunus.trace(model, example), random_keep(prunus.trace(model, example))
    expected = surgery.shrink(model, graph, keep)
    parameters = dict(model.named_parameters())
    if how == "gated":
        attach(model, graph, list(graph.axes))
    cut = Compacted(model, graph)
    if how == "in two steps":
        more = {n: sorted({*units, *range(0, graph.axes[n].size, 3)}) for n, units in keep.items()}
        cut.cut(more)
        assert {n: cut.remaining(n).tolist() for n in more} == more
        some, rest = list(keep)[::2], list(keep)[1::2]
        cut.cut({n: keep[n] for n in some})
        cut.cut({n: keep[n] for n in rest})
    else:
        cut.cut(keep)
    assert {n: cut.remaining(n).tolist() for n in keep} == keep == cut.kept
    torch.testing.assert_close(model(example), expected(example))
    steps.remove_steps(model, Gate)
    assert_same_network(model, expected, example)
    for n, parameter in model.named_parameters():
        assert parameter is parameters[n] and parameter.requires_grad
        assert (
            how != "channels last"
            or parameter.dim() != 4
            or parameter.is_contiguous(memory_format=torch.channels_last)
        )


@pytest.mark.parametrize("name", PLAIN_NETS)
def test_brought_back_to_full_size_and_cut_again(name):
    model, example = build(name)
    graph, keep = prunus.trace(model, example), random_keep(prunus.trace(model, example), seed=1)
    original, classes = copies.effective_tensors(build(name)[0]), stated(model)
    cut = Compacted(model, graph)
    cut.cut(keep)
    tensors = copies.effective_tensors(model)
    back = expand(graph, keep, tensors)
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in original.items()}
    gone = 0
    for n, tensor in back.items():
        assert torch.equal(slicing.slice_tensor(tensor, graph.layouts[n], keep), tensors[n]), n
        stays = slicing.zero_tensor(torch.ones_like(tensor), graph.layouts[n], keep).bool()
        assert (tensor[~stays] == (0 if n in graph.parameters else 1)).all(), n
        assert torch.equal(tensor[stays], original[n][stays])
        gone += int((~stays).sum())
    assert gone > 50

    full = cut.full()
    assert stated(full) == classes
    assert {n: t.shape for n, t in full.state_dict().items()} == {
        n: t.shape for n, t in build(name)[0].state_dict().items()
    }
    assert full(example).isfinite().all()
    assert_same_network(surgery.shrink(full, graph, keep), model, example)
    with torch.no_grad():
        next(full.parameters()).fill_(7.0)  # a copy
    assert not (next(model.parameters()) == 7.0).any()


def test_layers_say_their_new_sizes():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.PReLU(8)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = prunus.trace(model, torch.randn(1, 3, 4, 4))
    Compacted(model, graph).cut({"0": [1, 2, 7], "5": [0, 4]})
    conv, norm, depth, prelu, _, first, _, last = model
    assert (conv.in_channels, conv.out_channels, norm.num_features, prelu.num_parameters) == (3, 3, 3, 3)
    assert (depth.in_channels, depth.out_channels, depth.groups) == (3, 3, 3)
    assert (first.in_features, first.out_features, last.in_features, last.out_features) == (48, 2, 2, 2)
    assert norm.running_var.shape == norm.weight.shape == (3,)
    assert model.train()(torch.randn(5, 3, 4, 4)).shape == (5, 2)


def test_tied_weights_are_cut_once_and_stay_tied():
    model, example = build("decoder")
    graph = prunus.trace(model, example)
    keep = random_keep(graph)
    made = attach(model, graph, list(graph.axes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cut = Compacted(model, graph)
    for _ in range(2):
        optimizer.zero_grad()
        model(example).square().mean().backward()
        optimizer.step()
        cut.cut(keep, optimizer)
    assert model.head.parametrizations.weight is model.embed.parametrizations.weight
    before = model(example)
    steps.remove_steps(model, Gate)
    assert model.head.weight is model.embed.weight
    assert model.embed.weight.shape == (50, len(keep["layers.0.attention.out"]))
    torch.testing.assert_close(model(example), before)
    assert made.values.shape == (sum(axis.size for axis in graph.axes.values()),)


def test_frozen_weights_are_cut_and_stay_frozen():
    model, example = build("residual")
    graph, keep = prunus.trace(model, example), random_keep(prunus.trace(model, example))
    model.requires_grad_(False)
    expected = surgery.shrink(model, graph, keep)
    Compacted(model, graph).cut(keep)
    assert_same_network(model, expected, example)
    assert not any(parameter.requires_grad for parameter in model.parameters())


# ---------------------------------------------------------------------------- while it is trained
class Mixed(nn.Module):
    """Batch norms, a depthwise and a grouped convolution, a shortcut, a concatenation and a flatten."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depth, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=4)
        self.point, self.norm3 = nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8)
        self.side, self.first, self.last = nn.Conv2d(3, 5, 1), nn.Linear(13 * 4, 10), nn.Linear(10, 4)

    def forward(self, x):
        y = F.relu(self.norm(self.stem(x)))
        z = F.relu(self.norm2(self.depth(y)))
        y = y + self.norm3(self.point(self.grouped(z).sigmoid()))
        y = F.adaptive_avg_pool2d(torch.cat([F.relu(y), self.side(x).sigmoid()], 1), 2)
        return self.last(F.gelu(self.first(y.flatten(1))))


def network(name):
    torch.manual_seed(0)
    if name == "mixed":
        return Mixed(), torch.randn(4, 3, 4, 4)
    if name == "resnet20":
        return zoo.build("resnet20"), torch.randn(4, 3, 8, 8)
    return build("decoder" if name == "tied" else name)


# eps: the gradients of a bias before a norm are rounding alone, and must not be blown up by what they are divided by
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-3, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.05, eps=1e-3, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=3e-3, amsgrad=True, eps=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True, eps=1e-3),
}


def fewer(graph, keep, seed):
    """About six tenths of the remaining units of each axis, at least one."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name in exact_axes(graph):
        left = torch.tensor(keep.get(name, range(graph.axes[name].size)))
        order = torch.randperm(len(left), generator=generator)
        found[name] = left[order[: max(1, round(0.6 * len(left)))]].sort().values.tolist()
    return found


def trained(model, example, optimizer, compacted, dtype):
    """Train with gates, some of which become zero for good; their units are cut out, or held at zero.

    Returns the weights after each step, and the gates.
    """
    graph = prunus.trace(model, example)
    made = attach(model, graph, exact_axes(graph))
    model.to(dtype).train()
    cut, optimizer = Compacted(model, graph), optimizer(model.parameters())
    generator, stays = torch.Generator().manual_seed(0), torch.ones_like(made.values.data)
    keep, rows, x = {}, [], example
    wanted = torch.randn(model(example.to(dtype) if x.is_floating_point() else x).shape, generator=generator)
    for step in range(9):
        if example.is_floating_point():
            x = (example + 0.5 * torch.randn(example.shape, generator=generator)).to(dtype)
        optimizer.zero_grad()
        F.mse_loss(model(x), wanted.to(dtype)).backward()
        optimizer.step()
        if step in (3, 5):
            keep = fewer(graph, keep, step)
            for name, units in keep.items():
                stays[made.places[name]] = torch.zeros(graph.axes[name].size).index_fill(
                    0, torch.tensor(units), 1
                )
            if compacted:
                cut.cut(keep, optimizer)
        with torch.no_grad():
            made.values.mul_(stays)  # momentum would still move them
        tensors = {n: t.detach() for n, t in copies.effective_tensors(model).items()}
        if not compacted:
            tensors = {n: slicing.slice_tensor(t, graph.layouts[n], keep) for n, t in tensors.items()}
        rows.append({n: t.clone() for n, t in tensors.items()} | {"gates": made.values.detach().clone()})
    assert all(len(units) < graph.axes[n].size for n, units in keep.items())
    return rows


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *(("mixed", optimizer) for optimizer in OPTIMIZERS),
        *((name, optimizer) for name in ("resnet20", "attention", "tied") for optimizer in ("sgd", "adamw")),
    ],
)
def test_a_compacted_training_is_the_one_with_units_held_at_zero(name, optimizer, dtype, close):
    held, compacted = (trained(*network(name), OPTIMIZERS[optimizer], cut, dtype) for cut in (False, True))
    for expected, found in zip(held, compacted, strict=True):
        for n, tensor in found.items():
            most = close * max(1.0, expected[n].double().abs().max().item())
            assert (tensor.double() - expected[n].double()).abs().max() <= most, n
        assert torch.equal(found["gates"] != 0, expected["gates"] != 0)
    sizes = [sum(tensor.numel() for tensor in row.values()) for row in compacted]
    assert sizes[2] > 1.2 * sizes[3] and sizes[4] > 1.1 * sizes[5]


def stepped(optimizer):
    """A model laid out channels-last that has been trained for a step.

    In double precision, for oneDNN is wrong about the gradient of a 1x1 convolution with a stride, which is left with
    few channels, in single precision (guards.in_bounds): it writes over what happens to be there.
    """
    model, example = double(*build("residual"))
    model = model.to(memory_format=torch.channels_last)
    graph = prunus.trace(model, example)
    optimizer = optimizer(model.parameters())
    model(example).square().mean().backward()
    optimizer.step()
    return model, example, graph, optimizer


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "amsgrad", "rmsprop"])
def test_the_optimisers_state_is_cut_with_the_same_indices_and_laid_out_alike(optimizer):
    model, example, graph, optimizer = stepped(OPTIMIZERS[optimizer])
    keep, names = random_keep(graph), {p: n for n, p in model.named_parameters()}
    before = copy.deepcopy({names[p]: state for p, state in optimizer.state.items()})
    Compacted(model, graph).cut(keep, optimizer)
    checked = 0
    for parameter, state in optimizer.state.items():
        n = names[parameter]
        assert parameter.grad is None or parameter.shape == graph.shapes[n]
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.numel() > 1:
                assert torch.equal(value, slicing.slice_tensor(before[n][key], graph.layouts[n], keep)), (
                    n,
                    key,
                )
                assert value.stride() == parameter.stride()
                checked += value.shape != before[n][key].shape
            else:
                assert value == before[n][key]
    assert checked >= 8
    model(example).square().mean().backward()
    optimizer.step()
    copy.deepcopy(optimizer).load_state_dict(optimizer.state_dict())


def test_factored_state_is_cut_where_it_has_the_parameters_dimensions():
    model, example, graph, optimizer = stepped(lambda p: torch.optim.Adafactor(p, lr=1e-2))
    keep = random_keep(graph)
    row = optimizer.state[model.a.weight]["row_var"].clone()
    Compacted(model, graph).cut(keep, optimizer)
    expected = row[keep["a"]][:, keep["stem"]]
    assert torch.equal(optimizer.state[model.a.weight]["row_var"], expected) and expected.shape[-1] == 1
    model(example).square().mean().backward()
    optimizer.step()


# ------------------------------------------------------------------------------------- bad input
def unchanged(model, example, graph):
    """Assert after the block that the model is as it was."""
    tensors = {n: t.clone() for n, t in model.state_dict().items()}
    expected, said = model(example), stated(model)

    def check():
        assert all(torch.equal(t, tensors[n]) for n, t in model.state_dict().items())
        assert torch.equal(model(example), expected) and stated(model) == said

    return check


def test_state_that_does_not_follow_is_refused_before_anything_is_cut():
    model, example, graph, optimizer = stepped(OPTIMIZERS["sgd"])
    optimizer.state[model.c.weight]["sketch"] = torch.zeros(5, 7)
    check = unchanged(model, example, graph)
    with pytest.raises(UserError, match=r"sketch of c\.weight has shape \(5, 7\)"):
        Compacted(model, graph).cut(random_keep(graph), optimizer)
    check()


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "mask", "hypernetwork"])
def test_weights_behind_something_else_are_refused_before_anything_is_cut(kind):
    model, example = build("residual")
    graph = prunus.trace(model, example)
    if kind == "mask":
        masks.hold(model, graph, {"a.weight": torch.rand(6, 8, 3, 3) < 0.5})
    elif kind == "hypernetwork":
        options = {"start": "given", "latents": "ones", "factors": 2, "seed": 0}
        attach_hypernetworks(model, graph, ["a"], **options)
    else:
        {"weight_norm": weight_norm, "spectral_norm": spectral_norm}[kind](model.a)
    assert not can_be_cut(model)
    attach(model, graph, ["c"]) if kind != "hypernetwork" else None
    check = unchanged(model, example, graph)
    cut = Compacted(model, graph)
    with pytest.raises(UserError, match=r"a\.weight is parametrised by .*cannot be cut"):
        cut.cut(random_keep(graph))
    check()
    assert not cut.kept


@pytest.mark.parametrize("wanted", [[0, 2, 5], [0, 1, 2, 3], [5]])
def test_units_that_are_gone_cannot_come_back(wanted):
    model, example = build("residual")
    graph = prunus.trace(model, example)
    attach(model, graph, list(graph.axes))
    cut = Compacted(model, graph)
    cut.cut({"stem": [0, 1, 2]})
    check = unchanged(model, example, graph)
    with pytest.raises(UserError, match=r"axis stem has lost units \[[35]\] already"):
        cut.cut({"stem": wanted, "c": [0, 1]})
    check()
    assert cut.remaining("stem").tolist() == [0, 1, 2] and len(cut.remaining("c")) == 12
    cut.cut({"stem": [0, 2]})
    assert cut.remaining("stem").tolist() == [0, 2]


def test_what_is_no_keep_is_refused():
    model, example = build("residual")
    graph = prunus.trace(model, example)
    cut = Compacted(model, graph)
    for keep, words in (({"stm": [0]}, "unknown axis"), ({"stem": []}, "1 to 8"), ({"stem": [8]}, "0 to 7")):
        with pytest.raises(UserError, match=words):
            cut.cut(keep)
    assert not cut.kept


def test_several_processes_wrap_a_model_whose_sizes_must_stay(monkeypatch):
    model, _ = build("residual")
    assert can_be_cut(model)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for size in (1, 2):
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda size=size: size)
        assert can_be_cut(model) == (size == 1)


def test_i4_cut_at_once_or_removed_at_the_end_is_the_same_network():
    """The weights of a compacted network are bit for bit those the full one would have been shrunk to."""
    model, example = double(*build("residual"))
    graph = prunus.trace(model, example)
    made = attach(model, graph, list(graph.axes))
    keep = close_some(graph, made)
    small = surgery.shrink(plain_copy(model), graph, keep)
    Compacted(model, graph).cut(keep)
    steps.remove_steps(model, Gate)
    assert_same_network(model, small, example)


def test_a_loss_that_is_still_alive_does_not_hold_on_to_the_old_shapes():
    """In most loops a loss exists until the next one is computed, and with it autograd's record of the parameters."""
    model, example = build("residual")
    graph = prunus.trace(model, example)
    attach(model, graph, list(graph.axes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    cut, losses = Compacted(model, graph), []
    for count in (6, 4, 2):
        loss = model(example).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cut.cut({"stem": range(count), "c": range(count)}, optimizer)
        losses.append(loss)
    loss = model(example).square().mean()
    loss.backward()
    assert model.a.parametrizations.weight.original.grad.shape == (6, 2, 3, 3)
