"""Masks hold weights at zero through whatever training does, and come off without a trace but the zeros."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import prunus
from prunus import surgery, zoo
from prunus.data import load_data
from prunus.errors import FileError, TraceError, UserError
from prunus.sparse import maskable, masks
from prunus.surgery import copies
from prunus.tasks import Classification
from prunus.train import Recipe, fit, loop
from tests.lib.nets import NETS, build, random_keep
from tests.lib.random_nets import build as build_program
from tests.lib.random_nets import draws, programs
from tests.lib.train import Each
from tests.lib.two_processes import assert_trains_as_one


def drawn(graph, density=0.5, seed=0):
    """A random mask for every weight that may be pruned."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(graph.shapes[n], generator=generator) < density for n in maskable(graph)}


def tightened(kept, share=0.7, seed=1):
    """Masks that keep about this share of what is left."""
    generator = torch.Generator().manual_seed(seed)
    return {n: mask & (torch.rand(mask.shape, generator=generator) < share) for n, mask in kept.items()}


def plainly_masked(model, kept):
    """The oracle: a copy whose plain parameters are multiplied."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.mul_(kept[name])
    return model


def assert_masked(model, kept):
    tensors = copies.effective_tensors(model)
    for name, mask in kept.items():
        assert not tensors[name][~mask].any(), name


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------ holding
@pytest.mark.parametrize("name", NETS)
def test_a_held_model_computes_with_zeros_under_the_same_names(name):
    model, example = build(name)
    graph = prunus.trace(model, example)
    before, kept = copies.effective_tensors(model), drawn(graph)
    before = {n: t.clone() for n, t in before.items()}
    parameters = {id(p) for p in model.parameters()}
    masks.hold(model, graph, kept)
    now = copies.effective_tensors(model)
    assert now.keys() == before.keys() and {id(p) for p in model.parameters()} == parameters
    for n, tensor in now.items():
        expected = before[n] * kept[n] if n in kept else before[n]
        assert torch.equal(tensor, expected), n
    assert same(masks.held(model), kept)
    again = prunus.trace(model, example)
    assert list(again.layouts) == list(graph.layouts) and list(again.axes) == list(graph.axes)


@pytest.mark.parametrize("name", NETS)
def test_finalised_is_an_ordinary_model_again(name):
    model, example = build(name)
    classes = [type(m) for m in model.modules() if not isinstance(m, parametrize.ParametrizationList)]
    names, kept = list(model.state_dict()), drawn(prunus.trace(model, example))
    frozen = next(n for n in kept if n in dict(model.named_parameters()))
    model.get_parameter(frozen).requires_grad_(False)
    masks.hold(model, prunus.trace(model, example), kept)
    expected = model(example)
    masks.finalise(model)
    assert torch.equal(model(example), expected)
    assert masks.held(model) == {}
    assert not model.get_parameter(frozen).requires_grad
    assert all(p.requires_grad for n, p in model.named_parameters() if n != frozen)
    assert_masked(model, kept)
    if name != "norms":  # there weight_norm goes too
        assert list(model.state_dict()) == names
        assert [type(m) for m in model.modules()] == classes
    else:
        assert not any(map(parametrize.is_parametrized, model.modules()))


def test_finalising_what_is_not_held_changes_nothing():
    model = weight_norm(nn.Linear(4, 3))
    before = copy.deepcopy(model.state_dict())
    masks.finalise(model)
    assert same(model.state_dict(), before)


def test_tied_weights_have_one_mask_and_stay_tied():
    model, ids = build("decoder")
    graph = prunus.trace(model, ids)
    kept = drawn(graph)
    assert "embed.weight" in kept and "head.weight" not in kept
    expected = plainly_masked(model, kept)(ids)
    masks.hold(model, graph, kept)
    assert torch.equal(model(ids), expected)
    assert sum(n.endswith(".mask") for n, _ in model.named_buffers()) == len(kept)
    for other in (copy.deepcopy(model), model):
        assert other.embed.parametrizations.weight is other.head.parametrizations.weight
        other(ids).sum().backward()
        small = prunus.shrink(other, graph, random_keep(graph))  # proved
        assert small.embed.weight is small.head.weight
        masks.finalise(other)
        assert other.embed.weight is other.head.weight
        assert isinstance(other.embed.weight, nn.Parameter)
        assert torch.equal(other(ids), expected)


def test_after_weight_norm_the_mask_comes_last():
    model, example = build("norms")
    graph, kept = prunus.trace(model, example), None
    kept = drawn(graph)
    normed = model.a.weight.detach().clone()
    assert "a.weight" in kept
    masks.hold(model, graph, kept)
    assert torch.equal(model.a.weight, normed * kept["a.weight"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        model(example).square().sum().backward()
        optimizer.step()
        assert_masked(model, kept)
    v = model.a.parametrizations.weight.original1
    g = model.a.parametrizations.weight.original0
    whole = g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(model.a.weight, whole * kept["a.weight"])
    tighter = tightened(kept)
    masks.hold(model, graph, tighter)
    torch.testing.assert_close(model.a.weight, whole * tighter["a.weight"])
    expected = model(example)
    small = prunus.shrink(model, graph, {})
    torch.testing.assert_close(small(example), expected)
    for parameter in model.b.parametrizations.parameters():
        parameter.requires_grad_(False)
    masks.finalise(model)
    torch.testing.assert_close(model(example), expected)
    assert model.a.weight.requires_grad and not model.b.weight.requires_grad


class Encoder(nn.Module):
    """torch's own attention, whose projection has no module of its own."""

    def __init__(self, **sizes):
        super().__init__()
        self.embed = nn.Linear(7, 12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True, **sizes)
        self.up, self.head = nn.Linear(12, 20), nn.Linear(20, 5)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(F.relu(self.up(x)).mean(1))


@pytest.mark.parametrize("sizes", [{}, {"kdim": 12, "vdim": 12}], ids=["packed", "given sizes"])
def test_torchs_attention(sizes):
    torch.manual_seed(0)
    model, x = Encoder(**sizes).eval(), torch.randn(2, 6, 7)
    graph = prunus.trace(model, x)
    kept = drawn(graph)
    assert "attention.in_proj_weight" in kept
    expected = plainly_masked(model, kept)(x)
    masks.hold(model, graph, kept)
    for gradients in (True, False):  # without them a fused kernel may be used
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(model(x), expected)
    masks.finalise(model)
    torch.testing.assert_close(model(x), expected)
    assert type(model.attention) is nn.MultiheadAttention


@torch.no_grad()  # copies of a recurrent layer that remembers its last weights fail in torch otherwise
def test_several_weights_of_one_module():
    """What torch keeps in a module's class must not be taken from its copies."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4)
    model = nn.Sequential(nn.LSTM(4, 6))
    shapes = {n: p.shape for n, p in model.named_parameters() if p.dim() > 1}
    kept = {n: torch.rand(shape) < 0.5 for n, shape in shapes.items()}
    expected = plainly_masked(model, kept)(x)[0]
    first, second = shapes
    masks.hold(model, None, {first: kept[first]})
    early = copy.deepcopy(model)
    half = early(x)[0]
    masks.hold(model, None, {second: kept[second]})
    assert torch.equal(early(x)[0], half) and torch.equal(model(x)[0], expected)
    twin = copy.deepcopy(model)
    masks.finalise(model)
    assert torch.equal(twin(x)[0], expected) and torch.equal(model(x)[0], expected)
    assert torch.equal(early(x)[0], half)


def test_copies_are_held_for_themselves():
    model, example = build("residual")
    graph = prunus.trace(model, example)
    kept = drawn(graph)
    masks.hold(model, graph, kept)
    expected = model(example)
    twin = copy.deepcopy(model)
    masks.hold(twin, graph, tightened(kept))
    assert same(masks.held(model), kept) and same(masks.held(twin), tightened(kept))
    masks.finalise(twin)
    assert torch.equal(model(example), expected)
    masks.held(model)["a.weight"].fill_(False)  # a copy, too
    assert same(masks.held(model), kept)


def test_channels_last_and_dtype_and_device_follow():
    model, example = build("residual")
    graph = prunus.trace(model, example)
    kept = drawn(graph)
    model.to(memory_format=torch.channels_last)
    masks.hold(model, graph, kept)
    assert model.a.weight.is_contiguous(memory_format=torch.channels_last)
    model.to(memory_format=torch.contiguous_format).to(torch.bfloat16)
    assert model.a.weight.is_contiguous() and model.a.weight.dtype == torch.bfloat16
    assert_masked(model, kept)
    model.to("meta")
    assert model.a.weight.is_meta


def test_held_again_the_new_masks_hold_and_what_comes_back_is_zero():
    model, example = build("residual")
    graph = prunus.trace(model, example)
    kept = drawn(graph)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(example).sum().backward()
    optimizer.step()
    masks.hold(model, graph, kept)
    buffers, modules = dict(model.named_buffers()), len(list(model.modules()))
    optimizer.step()  # the momentum it had
    behind = model.a.parametrizations.weight.original
    assert model.a.weight.any() and behind[~kept["a.weight"]].any()
    masks.hold(model, graph, {"a.weight": ~kept["a.weight"]})
    assert not model.a.weight.any()  # nothing stays of either
    assert same(masks.held(model), kept | {"a.weight": ~kept["a.weight"]})
    masks.hold(model, graph, kept)
    assert not model.a.weight.any()
    assert len(list(model.modules())) == modules
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())


def test_nan_behind_a_mask_is_zero_and_has_no_gradient():
    model, example = build("residual")
    graph = prunus.trace(model, example)
    kept = drawn(graph)
    with torch.no_grad():
        model.a.weight[~kept["a.weight"]] = float("nan")
    masks.hold(model, graph, kept)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())  # so it can be checkpointed
    with torch.no_grad():
        model.b.parametrizations.weight.original[~kept["b.weight"]] = float("inf")  # during training, say
    out = model(example)
    out.sum().backward()
    assert out.isfinite().all()
    for name in ("a", "b"):
        gradient = model.get_submodule(name).parametrizations.weight.original.grad
        assert gradient.isfinite().all() and not gradient[~kept[f"{name}.weight"]].any()
    masks.finalise(model)
    assert_masked(model, kept)


# -------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"nope.weight": torch.ones(1, dtype=torch.bool)}, r"nope\.weight is no parameter"),
        ({"norm_a.running_mean": torch.ones(6, dtype=torch.bool)}, "running_mean is no parameter"),
        ({"a.weight": torch.ones(6, 8, 3, 3)}, r"a\.weight should be a bool tensor, is torch\.float32"),
        ({"a.weight": [True]}, "a.weight should be a bool tensor, is list"),
        ({"a.weight": torch.ones(6, 8, dtype=torch.bool)}, r"should be \(6, 8, 3, 3\), is \(6, 8\)"),
        ({f"{i}": torch.ones(1, dtype=torch.bool) for i in range(5)}, "and 2 more"),
        ([torch.ones(1)], "should be a dict"),
    ],
)
def test_masks_of_something_else_are_refused_and_nothing_changes(wrong, words):
    model, example = build("residual")
    graph = prunus.trace(model, example)
    for refuse in (masks.check_masks, masks.dead, lambda *a: masks.sliced(a[0], {}, a[1])):
        with pytest.raises(UserError, match=words):
            refuse(graph, wrong)
    for traced in (graph, None):
        with pytest.raises(UserError, match=words):
            good = {"b.weight": torch.ones(8, 6, 3, 3, dtype=torch.bool)}
            masks.hold(model, traced, good | wrong if isinstance(wrong, dict) else wrong)
    assert not any(map(parametrize.is_parametrized, model.modules()))


def test_a_graph_of_another_model_is_refused():
    model, _ = build("residual")
    other, example = build("concat")
    with pytest.raises(FileError, match="not the one that was traced"):
        masks.hold(model, prunus.trace(other, example), {})


# --------------------------------------------------------------------------------------- training
OPTIMIZERS = {
    "nesterov": lambda p: torch.optim.SGD(p, 1e-4, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=0.1, amsgrad=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_survivors_train_as_if_only_they_were_there(name):
    """Momentum gathered while dense moves nothing pruned, and what stays is what projected descent gives."""
    model, example = build("residual")
    graph = prunus.trace(model, example)
    target = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    kept = drawn(graph)
    plain = copy.deepcopy(model)
    pairs = [(m, OPTIMIZERS[name](m.parameters())) for m in (model, plain)]

    def step(model, optimizer):
        optimizer.zero_grad()
        (model(example) - target).square().sum().backward()
        optimizer.step()

    for pair in pairs * 3:
        step(*pair)
    masks.hold(model, graph, kept)
    for at in range(6):
        if at == 3:
            kept = tightened(kept)
            masks.hold(model, graph, kept)
        with torch.no_grad():
            for n, parameter in plain.named_parameters():
                parameter.mul_(kept.get(n, 1))
        for pair in pairs:
            step(*pair)
        assert_masked(model, kept)
        for n, tensor in copies.effective_tensors(model).items():
            expected = plain.state_dict()[n] * kept.get(n, 1)
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def tiny():
    """160 images to train on, 70 to watch."""
    digits = load_data("digits")
    return replace(digits, train=digits.train.take(np.arange(160)))


PLAIN = Recipe(epochs=3, batch_size=32, lr=0.05)  # 5 batches an epoch
RECIPES = {
    "plain": PLAIN,
    "average": replace(PLAIN, ema_decay=0.9, clip_norm=1.0),
    "adamw": replace(PLAIN, optimizer="adamw", lr=1e-3, weight_decay=0.1),
    "distilled": replace(PLAIN, distill_weight=0.5, precision="no", channels_last=False),
}


def small_net(seed=0):
    torch.manual_seed(seed)
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(32, 10))


def gradual(tiny, recipe, folder, seed=0, stop_at=None):
    """Train a held network whose masks are tightened after steps 2, 6 and 10."""
    model = small_net(seed)
    graph = prunus.trace(model, tiny.example)
    full = {n: torch.ones(graph.shapes[n], dtype=torch.bool) for n in maskable(graph)}
    masks.hold(model, graph, full)

    def after_step(step, lr):
        if step in (2, 6, 10):
            masks.hold(model, graph, tightened(masks.held(model), seed=step))
        if step == stop_at:
            raise KeyboardInterrupt
        assert_masked(model, masks.held(model))

    teacher = small_net(9) if recipe.distill_weight else None
    task = Classification(model, tiny)
    history = fit(model, task, recipe, folder=folder, teacher=teacher, along=Each(after_step))
    return model, [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@pytest.mark.parametrize("name", RECIPES)
def test_tightened_while_training_and_resumed_after_any_kill_bit_equal(name, tiny, tmp_path, monkeypatch):
    recipe = RECIPES[name]
    straight, history = gradual(tiny, recipe, None)
    kept = masks.held(straight)
    assert 0.2 < masks.density(kept) < 0.5
    assert_masked(straight, kept)

    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)  # a checkpoint after every step
    for stop_at in (1, 2, 7, 10):
        random.seed(stop_at), torch.manual_seed(stop_at)
        with pytest.raises(KeyboardInterrupt):
            gradual(tiny, recipe, tmp_path, stop_at=stop_at)
    resumed, again = gradual(tiny, recipe, tmp_path, seed=5)  # all must come from the checkpoint
    assert again == history
    for (n, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), n
    for model in (straight, resumed):
        masks.finalise(model)
        assert_masked(model, kept)


def test_the_final_weights_are_those_evaluated_last(tiny):
    """An average over steps before and after a tightening is masked as well."""
    model, history = gradual(tiny, RECIPES["average"], None)
    kept = masks.held(model)
    masks.finalise(model)
    task = Classification(model, tiny)
    assert task.evaluate(model, tiny.val)["accuracy"] == history[-1]["accuracy"]
    assert_masked(model, kept)


def train_held(folder):
    data = load_data("tests.lib.two_processes:image_items")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    graph = prunus.trace(model, data.example)
    masks.hold(model, graph, drawn(graph))
    recipe = Recipe(epochs=2, batch_size=20, lr=0.1, precision="no")

    def after_step(step, lr):
        if step == 9:
            masks.hold(model, graph, tightened(masks.held(model)))

    fit(model, Classification(model, data), recipe, folder=folder, along=Each(after_step))
    assert_masked(model, masks.held(model))


def test_two_processes_train_a_held_model_as_one_does(tmp_path):
    assert_trains_as_one(train_held, tmp_path)


# ------------------------------------------------------------------------------------- dead units
def whole(graph):
    return {n: torch.ones(graph.shapes[n], dtype=torch.bool) for n in maskable(graph)}


def chain():
    torch.manual_seed(0)
    layers = [
        nn.Linear(7, 6),
        nn.ReLU(),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, 4),
        nn.ReLU(),
        nn.Linear(4, 3),
    ]
    return nn.Sequential(*layers).eval()


def test_what_lives_on_the_dead_is_dead():
    model, x = chain(), torch.randn(2, 7)
    graph = prunus.trace(model, x)
    kept = whole(graph)
    assert masks.dead(graph, kept) == {}
    kept["0.weight"][2] = False  # nothing leads to unit 2
    kept["2.weight"][3] = False
    kept["2.weight"][3, 2] = True  # unit 3 lives on it alone
    kept["4.weight"][0] = False
    kept["4.weight"][0, 3] = True  # and unit 0 on that
    assert masks.dead(graph, kept) == {"0": [0, 1, 3, 4, 5], "2": [0, 1, 2, 4], "4": [1, 2, 3]}

    kept = whole(graph)
    kept["6.weight"][:, 1] = False  # nothing leads from unit 1
    kept["4.weight"][:, 4] = False
    kept["4.weight"][1, 4] = True
    kept["2.weight"][:, 5] = False
    kept["2.weight"][4, 5] = True
    keep = masks.dead(graph, kept)
    assert keep == {"0": [0, 1, 2, 3, 4], "2": [0, 1, 2, 3], "4": [0, 2, 3]}
    masked = plainly_masked(model, kept)  # what is unused goes without a trace, biases or not
    torch.testing.assert_close(prunus.shrink(masked, graph, keep)(x), masked(x))


def test_at_least_one_unit_stays():
    model, x = chain(), torch.randn(2, 7)
    graph = prunus.trace(model, x)
    keep = masks.dead(graph, {name: ~mask for name, mask in whole(graph).items()})
    assert keep == {"0": [0], "2": [0], "4": [0]}
    prunus.shrink(model, graph, keep)
    kept = whole(graph)
    kept["2.weight"][:] = False  # a layer cut through: nothing varies behind it, nothing is used before it
    assert masks.dead(graph, kept) == {"0": [0], "2": [0], "4": [0]}


def test_a_residual_stream_dies_only_where_all_its_producers_do():
    model, example = build("residual")
    graph = prunus.trace(model, example)
    kept = whole(graph)
    kept["b.weight"][1] = False
    assert masks.dead(graph, kept) == {}  # the stem still leads there
    kept["stem.weight"][1] = False
    assert masks.dead(graph, kept) == {"stem": [0, 2, 3, 4, 5, 6, 7]}
    kept = whole(graph)
    kept["c.weight"][:, 1] = False
    kept["a.weight"][:, 1] = False
    assert masks.dead(graph, kept) == {}  # the skip still leads on
    kept["skip.weight"][:, 1] = False
    assert masks.dead(graph, kept) == {"stem": [0, 2, 3, 4, 5, 6, 7]}
    kept["a.weight"][:, 1] = True
    kept["b.weight"][:, :4] = False  # of six units of a, two are left that lead anywhere
    assert masks.dead(graph, kept) == {"a": [4, 5]}


def test_the_masked_residual_network_is_shrunk_with_proof_and_without_a_change():
    torch.manual_seed(0)
    model = zoo.build("resnet20").eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for n, parameter in model.named_parameters():
            if "bn" in n and n.endswith("weight"):
                parameter.uniform_(0.5, 1.5)  # shifts are zero: what nothing leads to is zero
    graph = prunus.trace(model, x)
    kept = drawn(graph, density=0.01)
    masks.hold(model, graph, kept)
    keep = masks.dead(graph, kept)
    assert len(keep) > 5
    small = surgery.shrink(model, graph, keep)
    expected = model(x)
    assert expected[0].std() > 0
    torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-6)
    left = masks.sliced(graph, keep, kept)
    assert_masked(small, left)
    small_graph = prunus.trace(small, x)
    masks.hold(small, small_graph, left)
    torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-6)
    again = masks.dead(small_graph, left)  # at once, not by and by; what is left alone may be dead
    assert all(len(units) == 1 for units in again.values())


class Separable(nn.Module):
    """A depthwise filter in a line, one beside an identity, and a concatenation."""

    def __init__(self):
        super().__init__()
        self.widen, self.depth = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.beside, self.narrow = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(9, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y = F.relu(self.depth(F.relu(self.widen(x))))
        y = y + self.beside(y)
        return self.head(F.relu(self.narrow(torch.cat([x, y], 1))).mean((2, 3)))


def test_a_depthwise_filter_kills_its_unit_unless_there_is_a_way_round():
    model, x = Separable().eval(), torch.randn(2, 3, 5, 5)
    graph = prunus.trace(model, x)
    kept = whole(graph)
    kept["beside.weight"][2] = False
    assert masks.dead(graph, kept) == {}
    kept["depth.weight"][3] = False
    assert masks.dead(graph, kept) == {"widen": [0, 1, 2, 4, 5]}
    kept["narrow.weight"][:, :3] = False  # the image itself is no unit
    kept["narrow.weight"][:, 3 + 4] = False
    assert masks.dead(graph, kept) == {"widen": [0, 1, 2, 5]}


def test_heads_die_and_units_a_layer_norm_counts_do_not():
    model, example = build("attention")
    graph = prunus.trace(model, example)
    kept = whole(graph)
    kept["out.weight"][:, 8:16] = False  # the second of three heads leads nowhere
    keep = masks.dead(graph, kept)
    assert list(keep.values()) == [[0, 2]]
    masked = plainly_masked(model, kept)
    torch.testing.assert_close(prunus.shrink(masked, graph, keep)(example), masked(example))
    for name in ("embed", "out", "down"):
        kept[f"{name}.weight"][3] = False
    assert masks.dead(graph, kept) == keep


def test_a_layer_norm_spreads_what_it_counts():
    """A constant unit varies behind it, and one that nothing else reads is read by it."""
    layers = (nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4), nn.ReLU())
    graph = prunus.trace(nn.Sequential(*layers, nn.Linear(4, 3)).eval(), torch.randn(2, 7))
    kept = whole(graph)
    kept["2.weight"][3] = False  # nothing leads to unit 3,
    kept["4.weight"][0] = False
    kept["4.weight"][0, 3] = True  # on which alone this one lives
    assert masks.dead(graph, kept) == {}
    kept = whole(graph)
    kept["4.weight"][:, 3] = False  # nothing but the norm reads unit 3,
    kept["2.weight"][:, 0] = False
    kept["2.weight"][3, 0] = True  # to which alone this one leads
    assert masks.dead(graph, kept) == {}


class Gate(nn.Module):
    """One plane spread over the units of a layer of which nothing leads to the first; `how` says in which way."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.a, self.one, self.head = nn.Linear(7, 6), nn.Linear(7, 1), nn.Linear(6, 3)
        self.scale, self.places = nn.Parameter(torch.ones(6)), nn.Parameter(torch.randn(1, 5, 6))

    def forward(self, x, number):
        y = self.a(x)
        if self.how == "spread":
            y = y + self.one(x) * self.scale
        elif self.how == "number":
            y = y + number.float()[:, None, None] * self.scale
        elif self.how == "places":
            y = y + self.places
        elif self.how == "view":
            whole = y + 0
            whole.transpose(1, 2).add_(self.one(x).transpose(1, 2))
            y = whole
        return self.head(y.relu() if self.how != "products" else y @ (y.transpose(1, 2) @ y))


@pytest.mark.filterwarnings("ignore:.*never used")
@pytest.mark.parametrize("how", ["plain", "spread", "number", "places", "view", "products"])
def test_where_signals_enter_beside_the_weights(how):
    torch.manual_seed(0)
    model, example = Gate(how).eval(), (torch.randn(2, 5, 7), torch.tensor([3, 4]))
    graph = prunus.trace(model, example)
    kept = whole(graph)
    if how == "products":
        kept["head.weight"][:, 0] = False  # its result is not used, but the unit is summed over in all others
    else:
        kept["a.weight"][0] = False
    assert "a" in graph.axes
    assert masks.dead(graph, kept) == ({"a": [1, 2, 3, 4, 5]} if how == "plain" else {})


@settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(programs, st.integers(0, 10**6), st.sampled_from([0.02, 0.1, 0.2, 0.4]))
def test_of_random_networks_only_the_dead_are_removed(program, seed, density):
    """Where constants are zero (no shifts, and zero stays zero), removing the dead changes nothing."""
    torch.manual_seed(seed)
    model, example = build_program(program)
    assume(not draws(model))  # other networks draw other numbers
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Sigmoid):
                setattr(module, name, nn.Tanh())
    try:
        graph = prunus.trace(model, example)
    except TraceError:
        return  # nothing may shrink
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.rpartition(".")[2] in ("bias", "mean", "running_mean", "offset"):
                tensor.zero_()
    kept = drawn(graph, density, seed)
    masks.hold(model, graph, kept)
    expected = model(example)
    keep = masks.dead(graph, kept)
    torch.testing.assert_close(surgery.shrink(model, graph, keep)(example), expected, rtol=1e-8, atol=1e-9)
    masks.finalise(model)
    assert torch.equal(model(example), expected)


# ------------------------------------------------------------------------------ counting and packing
@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (3, 5), (2, 3, 3, 3), (0,), ()])
def test_packed_and_unpacked(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    bits = masks.packed(mask)
    assert bits.dtype == torch.uint8 and bits.numel() == (mask.numel() + 7) // 8
    assert torch.equal(masks.unpacked(bits, mask.shape), mask)
    with pytest.raises(UserError, match="should be packed"):
        masks.unpacked(torch.cat([bits, bits.new_zeros(1)]), mask.shape)


def test_weight_i_is_bit_i():
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0, 3] = mask[2, 1] = True
    assert masks.packed(mask).tolist() == [8, 2]
    assert masks.packed(mask.t().contiguous().t()).tolist() == [8, 2]


def test_counts_and_sizes():
    kept = {"a": torch.tensor([True, False, False, True]), "b": torch.zeros(12, dtype=torch.bool)}
    assert masks.survivors(kept) == {"a": 2, "b": 0}
    assert masks.density(kept) == 2 / 16 and masks.density({}) == 1.0
    tensors = {"a": torch.ones(4), "b": torch.ones(12, dtype=torch.bfloat16), "c": torch.ones(3)}
    sizes = masks.sizes_mb(tensors, kept)
    assert sizes["dense"] * 2**20 == 16 + 24 + 12
    assert sizes["packed"] * 2**20 == (8 + 1) + (0 + 2) + 12
    big = {"w": torch.zeros(1000, 1000)}
    sizes = masks.sizes_mb(big, {"w": torch.ones(1000, 1000, dtype=torch.bool)})
    assert sizes["compressed"] < 0.01 * sizes["packed"] and sizes["packed"] > sizes["dense"]
    assert masks.sizes_mb(big, {})["packed"] == sizes["dense"]
