"""PASS: the invariants of its specification (7.1), its search in one's own loop and in a run, and what it refuses."""

import copy
import json
import math
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import NETS, build
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_dhp import small
from test_run import kill_when_there
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode
from two_processes import assert_trains_as_one

import prunus
from prunus import cli, surgery, zoo
from prunus.charts import PNG, Heat, Lines, Picture
from prunus.data import load_data
from prunus.errors import BudgetError, FileError, TrainingError, UserError
from prunus.gates import Gate
from prunus.methods.pass_ import PASS, Config, prune
from prunus.methods.pass_.method import Beside
from prunus.methods.pass_.prompt import Prompt, Prompted
from prunus.selection import Budget
from prunus.tasks import Classification
from prunus.train import Recipe, fit

X = torch.zeros(1, 1, 8, 8)
HALF = Budget(macs=0.5)


def batches(steps, seed=0):
    """Ten patterns under noise."""
    patterns = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(100))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        y = torch.randint(10, (32,), generator=generator)
        yield patterns[y] + 0.5 * torch.randn(32, 1, 8, 8, generator=generator), y


def searched(budget=HALF, config=None, steps=12, lr=1e-2, model=None, example=X, each=None, **options):
    """The loop of PASS's docstring, up to before `finish`; its learning rate makes masks change."""
    search = PASS(model or small(), example, budget, steps=steps, config=config or Config(), **options)
    optimizer = torch.optim.Adam(search.learned(), lr=lr)
    for x, y in batches(steps):
        optimizer.zero_grad()
        F.cross_entropy(search(x), y).backward()
        optimizer.step()
        if each:
            each(search)
        search.step()
    return search


def masks_of(search):
    """axis -> the units whose masks are on, as they are now."""
    kept = search.chosen(search.scores())
    return {name: kept[place].nonzero().flatten().tolist() for name, place in search.gates.places.items()}


def figure(search, keep=None):
    """What a keep costs, in the budget's unit."""
    return getattr(prunus, search.budget.name)(search.graph, keep)


# ----------------------------------------------------------------------------- 1: the start is magnitude
def reference_scores(model, graph):
    """Section 2.3 of the specification, written out entry by entry in double precision."""
    tensors, found = dict(model.named_parameters()), {}
    for name, axis in graph.axes.items():
        squares = torch.zeros(axis.size, dtype=torch.float64)
        for member in graph.members(name):
            if member.role in ("produces", "consumes"):
                weight = tensors[member.tensor].detach().double().movedim(member.dim, 0)
                for unit in range(axis.size):
                    squares[unit] += weight[member.index[unit]].square().mean()
        values = squares.sqrt()
        found[name] = (values - values.mean()) / values.std(correction=0)
    return found


def reference_masks(graph, scores, budget, floor):
    """The best units, one after the other, for as long as the network with them is within the budget."""
    limit = budget.limit(getattr(prunus, budget.name)(graph))
    kept, rest = {}, []
    for name, values in scores.items():
        order = values.argsort(descending=True).tolist()
        least = max(1, math.ceil(floor * len(order) - 1e-9))
        kept[name] = order[:least]
        rest += [(values[unit].item(), name, unit) for unit in order[least:]]
    for _, name, unit in sorted(rest, reverse=True):
        more = kept | {name: [*kept[name], unit]}
        if getattr(prunus, budget.name)(graph, more) > limit:
            break
        kept = more
    return {name: sorted(units) for name, units in kept.items()}


@pytest.mark.parametrize("budget", [HALF, Budget(params=0.4), Budget(memory_mb=0.6), Budget(macs=0.15)])
def test_the_first_masks_are_those_of_standardised_magnitudes(budget):
    model = small()
    search = PASS(model, X, budget)
    expected = reference_masks(search.graph, reference_scores(model, search.graph), budget, floor=0.1)
    assert masks_of(search) == expected
    assert any(len(units) < search.graph.axes[name].size for name, units in expected.items())


def test_what_was_learned_nothing_chooses_as_magnitudes_do():
    """With a learning rate of zero the whole way, rounding of widths included."""
    model = small()
    search = searched(lr=0.0, model=model)
    search.finish()
    graph = search.graph
    assert search.keep == prunus.select(graph, reference_scores(model, graph), HALF)


# ------------------------------------------------------------------------------------- 2: the budget
@pytest.mark.parametrize("budget", [HALF, Budget(params=0.4), Budget(memory_mb=0.6), Budget(macs=200_000)])
def test_the_budget_holds_in_every_step_and_nothing_more_would_fit(budget):
    seen = []

    def each(search):
        found, kept = search.scores_now, search.kept_now
        keep = {name: kept[place].nonzero().flatten().tolist() for name, place in search.gates.places.items()}
        limit = budget.limit(figure(search))
        assert figure(search, keep) <= limit
        best = found.masked_fill(kept, -math.inf).argmax().item()  # the best of those that are out
        name, place = next((n, p) for n, p in search.gates.places.items() if p.start <= best < p.stop)
        more = keep | {name: sorted([*keep[name], best - place.start])}
        assert figure(search, more) > limit
        seen.append(kept)

    search = PASS(small(), X, budget, steps=12)
    original = search.chosen

    def watched(found):
        search.scores_now = found.detach()
        return original(found)

    search.chosen = watched
    optimizer = torch.optim.Adam(search.learned(), lr=3e-2)
    for x, y in batches(12):
        optimizer.zero_grad()
        F.cross_entropy(search(x), y).backward()
        optimizer.step()
        each(search)
        search.step()
    assert len({tuple(kept.tolist()) for kept in seen}) > 3  # masks did change
    search.finish()
    assert figure(search, search.keep) <= budget.limit(figure(search))


@pytest.mark.parametrize("round_to", [None, 1, 4])
def test_the_small_network_costs_what_is_said_and_obeys_the_options(round_to):
    config = Config(round_to=round_to, floor={"*": 0.1, "a": 0.5}, freeze=("point",))
    search = searched(config=config)
    found = search.finish()
    assert len(search.keep["a"]) >= 12 and len(search.keep["point"]) == 20
    assert bool(search.kept[search.gates.places["point"]].all())  # during the search, too
    if round_to:
        assert all(len(units) % round_to == 0 for units in search.keep.values())
    with FlopCounterMode(display=False) as counter:
        found.eval()(X)
    assert counter.get_total_flops() == 2 * figure(search, search.keep)
    assert figure(search, search.keep) <= 0.5 * figure(search)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_budgets_at_the_ends(share):
    search = searched(Budget(macs=share), Config(floor=0, round_to=1))
    found = search.finish()
    assert figure(search, search.keep) <= share * figure(search)
    if share == 1.0:
        assert bool(search.kept.all()) and not sum(search.flips)
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), small().parameters(), strict=True))


def test_equal_shares_of_every_axis():
    search = searched(config=Config(scope="per_axis", round_to=1))
    sizes = {name: search.graph.axes[name].size for name in search.names}
    shares = [len(units) / sizes[name] for name, units in masks_of(search).items()]
    assert max(shares) - min(shares) < 1 / 16 + 1 / 20
    search.finish()
    assert search.keep == prunus.select(
        search.graph, search.of_axes(search.scores()), HALF, how="uniform", round_to=1
    )


# --------------------------------------------------------------- 4, 11: masked is the same as removed
PLACES = ("consumer", "product", "product_norms")


def example_of(name):
    model, example = build(name)
    return model, example, Config(prompt="none")


@pytest.mark.parametrize("masking", PLACES)
@pytest.mark.parametrize("name", NETS)
def test_masked_is_shrunk(name, masking):
    """In evaluation mode, for random masks, in double precision: what is masked has no part in anything."""
    model, example, config = example_of(name)
    model, example = model.double(), example.double() if example.is_floating_point() else example
    try:
        search = PASS(model, example, Budget(macs=0.9), config=replace(config, masking=masking, floor=0))
    except UserError as error:
        assert name == "norms" and "no axis" in str(error)
        return
    assert not search.left_alone or name in ("attention", "decoder", "norms")
    graph, generator = search.graph, torch.Generator().manual_seed(0)
    seen = 0
    for _ in range(3):
        keep = {}
        for axis in search.names:
            size = graph.axes[axis].size
            left = int(torch.randint(1, size + 1, (), generator=generator))
            keep[axis] = sorted(torch.randperm(size, generator=generator)[:left].tolist())
        search.network.eval()
        for module in search.network.modules():
            module.training = False
        with torch.no_grad():
            masked = search.run(search.among(keep).double(), example)
            expected = surgery.shrink(model, graph, keep, verify="off").eval()(example)
        torch.testing.assert_close(masked, expected, rtol=1e-9, atol=1e-10)
        seen += expected.std().item() > 1e-6
    assert seen == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50", "vgg16_bn", "vit_tiny"])
def test_networks_of_the_usual_sizes_are_searched_and_cut(name):
    torch.manual_seed(0)
    model, x = zoo.build(name).double().eval(), torch.randn(8, 3, 32, 32, dtype=torch.float64)
    search = PASS(model, x[:1], HALF, config=Config(snapshots=0), steps=2).double()
    optimizer = torch.optim.Adam(search.learned(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        search(x).square().mean().backward()
        optimizer.step()
        search.step()
    found = search.finish().eval()
    assert figure(search, search.keep) == pytest.approx(0.5 * figure(search), rel=0.02)
    left = {axis for axis in search.left_alone if len(search.keep[axis]) == search.graph.axes[axis].size}
    assert left == search.left_alone.keys() == ({"patches"} if name == "vit_tiny" else set())
    for module in search.network.modules():
        module.training = False
    with torch.no_grad():
        masked = search.run(search.among(search.keep).double(), x)
        torch.testing.assert_close(masked, found(x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["attention", "decoder"])
def test_axes_that_cannot_be_masked_are_left_whole_and_named(name):
    model, example, config = example_of(name)
    search = PASS(model, example, Budget(macs=0.9), config=config)
    assert search.left_alone and not set(search.left_alone) & set(search.names)
    assert any("statistics" in why for why in search.left_alone.values())
    search.finish()
    assert all(len(search.keep[axis]) == search.graph.axes[axis].size for axis in search.left_alone)


def test_names_of_axes_left_alone_are_no_patterns():
    """Nor do they freeze, in the end, what the search masked: what hangs below a module of the name."""

    class Stack(nn.Linear):
        def __init__(self):
            super().__init__(5, 6)
            self.low, self.high = nn.Linear(6, 9), nn.Linear(9, 6)

        def forward(self, x):
            x = super().forward(x)
            return x + self.high(F.relu(self.low(x)))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict({"[a]": Stack(), "b": nn.Linear(6, 12)})
            self.middle, self.head = nn.Linear(12, 8), nn.Linear(8, 3)
            self.norm = nn.LayerNorm(6)

        def forward(self, x):
            x = self.layers["b"](self.norm(self.layers["[a]"](x)))
            return self.head(F.relu(self.middle(F.relu(x))))

    config = Config(prompt="none", round_to=1)
    search = PASS(Net(), torch.randn(2, 5), Budget(macs=0.7), config=config)
    assert any("[a]" in name for name in search.left_alone) and len(search.names) > 1
    masks = masks_of(search)
    search.decide()
    assert all(len(search.keep[name]) == search.graph.axes[name].size for name in search.left_alone)
    assert any(len(search.keep[name]) < search.graph.axes[name].size for name in search.names)
    for name, units in masks.items():
        size = search.graph.axes[name].size
        assert (len(units) == size) <= (len(search.keep[name]) == size)


def test_axes_are_read_in_the_order_of_their_computation():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.second, self.first = nn.Linear(4, 2), nn.Linear(6, 4), nn.Linear(5, 6)

        def forward(self, x):
            return self.head(F.relu(self.second(F.relu(self.first(x)))))

    search = PASS(Backwards(), torch.randn(1, 5), HALF, config=Config(prompt="none"))
    assert list(search.graph.axes) == ["second", "first"] and search.names == ["first", "second"]


# ------------------------------------------------------------------------------- 5, 6: the gradients
def trained(steps=120):
    """A small network that knows the ten patterns."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y in batches(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def knowing():
    return trained()


def test_all_maskings_are_the_same_function_but_only_consumers_let_what_is_out_feel(knowing):
    x, y = next(batches(1, seed=5))
    losses, felt = {}, {}
    for masking in PLACES:
        search = PASS(knowing, X, HALF, config=Config(masking=masking, prompt="none"))
        masks = search.kept.float().requires_grad_()
        loss = F.cross_entropy(search.run(masks, x), y)
        loss.backward()
        losses[masking], felt[masking] = loss.item(), masks.grad[~search.kept].abs()
    assert losses["product"] == pytest.approx(losses["consumer"], rel=1e-5)
    assert losses["product_norms"] == pytest.approx(losses["consumer"], rel=1e-5)
    assert (felt["consumer"] > 1e-9).float().mean() > 0.95
    assert (felt["product_norms"] < 1e-9).all()
    assert (felt["product"] < 1e-9).float().mean() > 0.5


def ranks(values):
    return values.argsort().argsort().double()


def test_the_gradient_of_a_unit_that_is_out_says_what_bringing_it_back_does(knowing):
    """Spearman's rank correlation with the change of the loss, every unit tried alone."""
    search = PASS(knowing, X, HALF, config=Config(prompt="none"))
    x, y = map(torch.cat, zip(*batches(8, seed=5), strict=True))
    masks = search.kept.float().requires_grad_()
    base = F.cross_entropy(search.run(masks, x), y)
    base.backward()
    changes, out = [], (~search.kept).nonzero().flatten()
    with torch.no_grad():
        for unit in out:
            flipped = search.kept.float().index_fill(0, unit, 1.0)
            changes.append(F.cross_entropy(search.run(flipped, x), y) - base)
    found = torch.stack([ranks(masks.grad[out]), ranks(torch.stack(changes))])
    assert len(out) > 12 and torch.corrcoef(found)[0, 1] > 0.6


def test_scores_get_the_gradients_of_their_masks():
    """In double precision, against finite differences of the masks between the ones and zeros."""
    model = small().double()
    search = PASS(model, X.double(), HALF, config=Config(prompt="none")).double()
    x, y = next(batches(1))
    x = x.double()
    found = search.scores().detach().requires_grad_()
    F.cross_entropy(search.run(search.straight_through(found, search.kept), x), y).backward()
    masks, eps = search.kept.double(), 1e-6
    with torch.no_grad():
        for unit in range(0, len(masks), 9):
            up, down = masks.clone(), masks.clone()
            up[unit] += eps
            down[unit] -= eps
            slope = (
                (F.cross_entropy(search.run(up, x), y) - F.cross_entropy(search.run(down, x), y)) / 2 / eps
            )
            assert found.grad[unit].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-8)


def test_clipped_scores_far_from_the_threshold_get_no_gradient():
    search = PASS(small(), X, HALF, config=Config(prompt="none", straight_through="clipped"))
    found = search.scores().detach().requires_grad_()
    masks = search.straight_through(found, search.kept)
    assert torch.equal(masks, search.kept.float())
    masks.sum().backward()
    far = (found - found[~search.kept].max()).abs() > 1
    assert far.any() and not far.all() and torch.equal(found.grad, (~far).float())


@pytest.mark.parametrize("scope", ["global", "per_axis"])
def test_units_that_stay_by_their_floor_do_not_move_the_threshold(scope):
    """An axis of low scores keeps its floor, far below the threshold over all; with equal shares each has its own."""
    config = Config(prompt="none", straight_through="clipped", scope=scope, floor=0.3)
    search = PASS(small(), X, Budget(macs=0.3), config=config)
    found, first = search.scores().detach(), search.gates.places[search.names[0]]
    found[first] -= 10
    found.requires_grad_()
    kept = search.chosen(found)
    assert kept[first].any() and not kept[first].all()
    search.straight_through(found, kept).sum().backward()
    assert found.grad[first].any().item() is (scope == "per_axis")
    for place in search.gates.places.values():
        own = found.detach()[place] if scope == "per_axis" else found.detach()
        threshold = own[~(kept[place] if scope == "per_axis" else kept)].max()
        near = (found.detach()[place] - threshold).abs() <= 1
        assert near.any() or scope == "global"
        assert torch.equal(found.grad[place], near.float())


# -------------------------------------------------------------------- 7: the user's model is left alone
def snapshot(model):
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "ids": [id(tensor) for tensor in [*model.parameters(), *model.buffers()]],
        "modes": [module.training for module in model.modules()],
        "learning": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "hooks": [list(module._forward_hooks) for module in model.modules()],
        "classes": [type(module) for module in model.modules()],
        "attributes": [list(vars(module)) for module in model.modules()],
        "momenta": [getattr(module, "momentum", None) for module in model.modules()],
    }


def assert_untouched(model, before):
    now = snapshot(model)
    for name, tensor in before.pop("tensors").items():
        assert torch.equal(now["tensors"][name], tensor), name
    for key, value in before.items():
        assert now[key] == value, key


@pytest.mark.parametrize("ends", ["well", "raises", "raises in the network"])
def test_the_model_that_was_given_is_left_as_it_was(ends):
    model, calls = small(), []
    model.norm_a.eval()
    model.stem.bias.requires_grad_(False)
    model.point.register_forward_hook(lambda *_: calls.append(1))
    model.point.register_full_backward_hook(lambda *_: calls.append(1))
    before = snapshot(model)
    if ends == "well":
        searched(model=model, config=Config(train_also=("head.*",))).finish()
    else:

        def each(search):
            if search.done == 3:
                if ends == "raises":
                    raise KeyboardInterrupt
                search(torch.zeros(2, 1, 8, 8)[..., None])

        with pytest.raises((KeyboardInterrupt, UserError)):
            searched(model=model, each=each)
    assert_untouched(model, before)
    assert not calls  # hooks are the user's


def test_modes_make_no_difference_norms_use_the_batch():
    """A model in evaluation mode is searched as one in training mode; the statistics it keeps play no part."""
    found = []
    for change in ("train", "eval", "spoilt"):
        model = small().train(change != "eval")
        if change == "spoilt":
            model.norm.running_mean.fill_(100.0)
        search = searched(model=model)
        search.eval()
        x, _ = next(batches(1, seed=3))
        found.append((search.scores().detach(), search(x).detach()))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_learns_are_the_hypernetwork_and_the_prompt():
    search = searched(steps=3)
    names = {name.partition(".")[0] for name, p in search.named_parameters() if p.requires_grad}
    assert names == {"hypernetwork", "prompt"} and len(search.learned()) == len(
        [p for p in search.parameters() if p.requires_grad]
    )
    moved = [p for p in search.network.parameters() if p.grad is not None]
    assert not moved


def test_a_fresh_head_may_learn_too():
    model = small()
    search = searched(model=model, config=Config(train_also=("head.*",)))
    found = search.finish()
    assert not torch.equal(found.head.bias, model.head.bias)
    assert torch.equal(found.norm_b.weight, model.norm_b.weight[search.keep["stem"]])
    assert all(not parameter.requires_grad for parameter in search.network.stem.parameters())
    with pytest.raises(UserError, match="nose"):
        PASS(model, X, HALF, config=Config(train_also=("nose.*",)))


def test_a_weight_behind_weight_norm_may_learn_too():
    """All that it is computed from does; and so may weights that stand behind gates."""
    model = small()
    for layer in (model.head, model.a):
        nn.utils.parametrizations.weight_norm(layer)
    search = searched(model=model, config=Config(train_also=("head.weight", "point.weight")))
    full, before, after = search.full(), dict(model.named_parameters()), {}
    for name, parameter in full.named_parameters():
        after[name] = torch.equal(parameter, before[name])
    changed = [name for name, same in after.items() if not same]
    assert sorted(changed) == [
        "head.parametrizations.weight.original0",
        "head.parametrizations.weight.original1",
        "point.weight",
    ]
    found = search.finish()
    assert torch.equal(found.point.weight, full.point.weight[search.keep["point"]][:, search.keep["stem"]])


# -------------------------------------------------------------------------------------- 8: the prompt
def test_the_prompt_learns_inside_its_frame_alone():
    search = searched(config=Config(prompt_size=2))
    canvas = search.prompt.canvas()
    inside = canvas[:, 2:-2, 2:-2]
    assert inside.shape == (1, 4, 4) and not inside.any()
    assert (canvas != 0).sum() == 64 - 16
    assert not search.prompt.values[:, 2:-2, 2:-2].any()  # nor behind the frame


def test_the_prompt_learns_from_the_pictures_and_through_the_hypernetwork():
    search = searched(steps=4)
    x, y = next(batches(1))
    original, values = search.prompt.canvas, search.prompt.values
    for calls in ({1}, {2}):  # which call is cut off: that of the scores comes first
        count = []

        def cut(calls=calls, count=count):
            count.append(1)
            canvas = original()
            return canvas.detach() if len(count) in calls else canvas

        search.prompt.canvas = cut
        values.grad = None
        F.cross_entropy(search(x), y).backward()
        assert len(count) == 2 and values.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["pad", "fixed", "random"])
@pytest.mark.parametrize("how", ["add", "replace"])
def test_kinds_of_prompts(kind, how):
    prompt = Prompt((3, 12, 10), kind, 3, how)
    with torch.no_grad():
        prompt.values.copy_(torch.rand(3, 12, 10) + 1)
    x, shown = torch.rand(4, 3, 12, 10), set()
    for _ in range(20):
        out = prompt(x)
        where = (out != x).any(0).any(0)
        rows, columns = where.any(1).nonzero(), where.any(0).nonzero()
        shown.add((rows.min().item(), columns.min().item()))
        assert where.sum() == (12 * 10 - 6 * 4 if kind == "pad" else 9)
        if how == "replace":
            assert torch.equal(out[0][:, where], out[1][:, where])
    assert len(shown) > 5 if kind == "random" else shown == {(0, 0)}


@pytest.mark.parametrize(
    ("side", "size"), [(224, 16), (64, 5), (32, 2), (8, 1)], ids=["224", "64", "32", "8"]
)
def test_the_usual_size_of_a_frame(side, size):
    assert Prompt((3, side, side)).size == size


@pytest.mark.parametrize("how", ["add", "replace"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_other_precision(how, dtype):
    model = small().to(dtype)
    search = PASS(model, X.to(dtype), HALF, steps=2, config=Config(prompt_how=how))
    optimizer = torch.optim.Adam(search.learned(), lr=1e-2)
    for x, y in batches(2):
        optimizer.zero_grad()
        F.cross_entropy(search(x.to(dtype)).float(), y).backward()
        optimizer.step()
        search.step()
    assert search.prompt.values.any() and search.scores().dtype == torch.float32
    assert search.finish()(X.to(dtype)).dtype == dtype


class Named(nn.Module):
    """A network that takes its pictures by name, and more beside them."""

    def __init__(self):
        super().__init__()
        self.inner = small()

    def forward(self, pixel_values, scale=1.0):
        return self.inner(pixel_values) * scale


@pytest.mark.parametrize("example", [X, (X,), {"pixel_values": X}], ids=["tensor", "tuple", "dict"])
def test_the_search_is_called_as_the_model_is(example):
    search = PASS(Named(), example, HALF)
    with torch.no_grad():
        search.prompt.values.fill_(0.01)
    x, _ = next(batches(1))
    expected = search(x)
    torch.testing.assert_close(search(pixel_values=x), expected)
    torch.testing.assert_close(search(x, 2.0), 2 * expected)
    torch.testing.assert_close(search(scale=2.0, pixel_values=x), 2 * expected)
    bare = search.run(search.kept.float(), x)
    assert not torch.allclose(bare, expected)  # the prompt was on


def test_half_of_a_batch_may_go_without():
    search = PASS(small(), X, HALF, config=Config(prompted=0.5))
    with torch.no_grad():
        search.prompt.values.fill_(1.0)
    x = torch.zeros(4, 1, 8, 8)
    assert search.with_prompt(x)[:2].any() and not search.with_prompt(x)[2:].any()


OPTIONS = [
    Config(prompt="none"),
    Config(prompt=None),
    Config(recurrent=False),
    Config(init="random"),
    Config(masking="product"),
    Config(scope="per_axis"),
    Config(prompt="random", prompt_how="replace", prompted=0.5),
    Config(statistic="fpgm", hidden=8),
    Config(statistic="bn_scale"),
    Config(straight_through="clipped"),
]


@pytest.mark.parametrize("config", OPTIONS, ids=range(len(OPTIONS)))
def test_every_option_runs_to_a_network_within_the_budget(config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # bn_scale: some axes have no norm
        search = searched(config=config, steps=4)
    assert search.finish()(X).shape == (1, 10)
    assert figure(search, search.keep) <= 0.5 * figure(search)
    assert not torch.equal(search.scores(), search._first)  # all of it learned something


def test_without_recurrence_no_axis_knows_of_another():
    for recurrent in (False, True):
        search = PASS(small(), X, HALF, config=Config(recurrent=recurrent, init="random", prompt="none"))
        before = search.scores()
        search.inputs[0] += 1.0
        changed = (search.scores() != before)[search.gates.places[search.names[-1]]]
        assert bool(changed.any()) is recurrent


def test_the_first_state_is_made_of_the_prompt():
    search = PASS(small(), X, HALF, config=Config(init="random"))
    before = search.scores()
    with torch.no_grad():
        search.prompt.values.fill_(0.1)
    assert not torch.equal(search.scores(), before)


def test_a_statistic_of_ones_own():
    search = PASS(
        small(),
        X,
        HALF,
        statistic=lambda model, graph: {n: torch.arange(a.size) for n, a in graph.axes.items()},
    )
    for name, units in masks_of(search).items():
        size = search.graph.axes[name].size
        assert units == list(range(size - len(units), size))


def test_units_that_are_all_alike_are_told_apart_by_nothing():
    """Not even by how a sum of equal numbers is rounded."""
    search = PASS(
        small(),
        X,
        HALF,
        statistic=lambda model, graph: {n: torch.full((a.size,), 0.1) for n, a in graph.axes.items()},
    )
    assert not search.statistics.any()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda size: torch.ones(3), r"16 finite numbers, but is of shape \(3,\)"),
        (lambda size: torch.full((size,), math.nan), "NaN"),
    ],
)
def test_a_statistic_that_is_none_is_refused(found, said):
    with pytest.raises(UserError, match=said):
        PASS(
            small(), X, HALF, statistic=lambda model, graph: {n: found(a.size) for n, a in graph.axes.items()}
        )
    with pytest.raises(UserError, match="of shape none"):
        PASS(small(), X, HALF, statistic=lambda model, graph: {})


# ------------------------------------------------------------------------- 10: again, saved, transferred
def test_the_same_seed_gives_the_same_masks():
    first, second, other = (searched(config=Config(init="random"), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.scores(), second.scores()) and first.finish() and second.finish()
    assert first.keep == second.keep and not torch.equal(first.scores(), other.scores())


def test_a_hypernetwork_goes_through_a_file_to_a_network_of_other_weights(tmp_path):
    file = tmp_path / "hypernetwork.safetensors"
    search = searched(config=Config(prompt_speed=10))
    search.save(file)
    again = PASS(small(), X, HALF, steps=0, config=Config(hypernetwork=str(file), prompt_speed=3))
    assert torch.equal(again.hypernetwork.heads, search.hypernetwork.heads)
    torch.testing.assert_close(again.prompt.canvas(), search.prompt.canvas())
    torch.testing.assert_close(again.scores(), search.scores())
    search.finish(), again.finish()
    assert again.keep == search.keep

    config = Config(hypernetwork=str(file), steps=3)
    other = searched(model=small(seed=9), config=config, steps=3)  # a short search goes on from it
    untaught = PASS(small(seed=9), X, HALF)
    assert not torch.allclose(other.scores() - other.statistics, untaught.scores() - untaught.statistics)
    assert torch.equal(other.statistics, untaught.statistics)  # of the new weights
    assert other.finish()(X).shape == (1, 10)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": Config(hidden=32)}, "hidden=64, not 32"),
        ({"config": Config(prompt="none")}, "prompt="),
        ({"model": "other"}, "its axis 0 is stem.16., the network's .*"),
    ],
)
def test_a_hypernetwork_of_another_network_is_refused(tmp_path, change, said):
    file = tmp_path / "hypernetwork.safetensors"
    searched(steps=1).save(file)
    config = replace(change.get("config", Config()), hypernetwork=str(file))
    model = (
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(288, 10)) if "model" in change else small()
    )
    with pytest.raises(FileError, match=said):
        PASS(model, X, HALF, config=config)


def test_files_that_are_no_hypernetworks_are_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(FileError, match="no hypernetwork"):
        PASS(small(), X, HALF, config=Config(hypernetwork=str(file)))
    with pytest.raises(FileError, match="does not exist"):
        PASS(small(), X, HALF, config=Config(hypernetwork=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda tensors, header: header.update(prunus_hypernetwork="{cut"), "no hypernetwork"),
        (lambda tensors, header: header.update(prunus_hypernetwork="[1]"), "no hypernetwork"),
        (lambda tensors, header: header.update(prunus_hypernetwork='{"format": 1}'), "no hypernetwork"),
        (
            lambda tensors, header: header.update(prunus_hypernetwork='{"format": 1, "axes": [1]}'),
            "no hypernetwork",
        ),
        (lambda tensors, header: tensors["hypernetwork.heads"].fill_(math.nan), "NaN"),
        (lambda tensors, header: tensors.pop("hypernetwork.heads"), "lacks tensors"),
        (lambda tensors, header: tensors.pop("prompt"), "lacks tensors"),
        (lambda tensors, header: tensors.update(prompt=torch.ones(1, 1, 1)), "lacks tensors"),
    ],
)
def test_hypernetworks_that_are_damaged_are_refused(tmp_path, spoil, said):
    file = tmp_path / "hypernetwork.safetensors"
    PASS(small(), X, HALF).save(file)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    tensors = load_file(file)
    spoil(tensors, header)
    save_file(tensors, file, header)
    with pytest.raises(FileError, match=said):
        PASS(small(), X, HALF, config=Config(hypernetwork=str(file)))


def test_a_hypernetwork_is_read_once(tmp_path):
    file = tmp_path / "hypernetwork.safetensors"
    PASS(small(), X, HALF).save(file)
    search = PASS(small(), X, HALF, steps=0, config=Config(hypernetwork=str(file)))
    file.unlink()
    assert search.finish()(X).shape == (1, 10)


def test_a_keep_found_on_one_data_set_is_taken_on_another(tmp_path):
    """Structure transfer needs files alone: the units that stayed, applied to other weights of the same network."""
    search = searched()
    prunus.save(tmp_path, search.finish(), search.keep, search.graph)
    other = small(seed=5)
    found = prunus.shrink(other, prunus.trace(other, X), prunus.store.load_keep(tmp_path))
    assert prunus.macs(prunus.trace(found, X)) == figure(search, search.keep)
    assert torch.equal(found.stem.weight, other.stem.weight[search.keep["stem"]])


# --------------------------------------------------------------------- snapshots, and in one's own loop
def test_the_best_snapshot_is_taken():
    """By what `score` says: here the third of five is best, and later ones are worse."""
    values, seen = iter([0.1, 0.2, 0.9, 0.5, 0.4]), []

    def score(network):
        assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        seen.append(search.scores().detach() if search.done else None)
        return next(values)

    search = PASS(small(), X, HALF, steps=8, config=Config(snapshots=4, round_to=1), score=score)
    optimizer = torch.optim.Adam(search.learned(), lr=3e-2)
    for x, y in batches(8):
        optimizer.zero_grad()
        F.cross_entropy(search(x), y).backward()
        optimizer.step()
        search.step()
    assert [step for step, _ in search.tried] == [0, 2, 4, 6, 8]
    search.finish()
    assert search.keep == search.config.select(search.graph, search.of_axes(seen[2]), HALF)
    assert search.keep != search.config.select(search.graph, search.of_axes(search.scores()), HALF)


@pytest.mark.parametrize(("steps", "count"), [(12, 5), (19, 10), (7, 3), (3, 10)])
def test_there_are_as_many_snapshots_as_asked_for(steps, count):
    config = Config(snapshots=count, prompt="none")
    search = PASS(small(), X, HALF, steps=steps, config=config, score=lambda network: 0.0)
    for x, _ in batches(steps):
        search(x)
        search.step()
    tried = [step for step, _ in search.tried]
    assert len(tried) == 1 + min(count, steps) and tried[0] == 0 and tried[-1] == steps
    assert max(b - a for a, b in pairwise(tried)) <= -(-steps // count)


def test_a_score_that_is_no_number_is_refused():
    search = PASS(small(), X, HALF, steps=2, score=lambda network: math.nan)
    search(next(batches(1))[0])
    with pytest.raises(TrainingError, match="nan"):
        search.step()


def test_what_is_tried_is_what_would_be_returned():
    """Without the prompt, in whole blocks: the masked network gives what the small one gives."""
    x, _ = next(batches(1, seed=4))
    outputs = []
    search = PASS(
        small(), X, HALF, steps=1, config=Config(snapshots=1), score=lambda net: outputs.append(net(x)) or 0.0
    )
    with torch.no_grad():
        search.prompt.values.fill_(1.0)
    search(x)
    search.step()
    found = search.finish().train()  # on the statistics of the batch, too
    torch.testing.assert_close(found(x), outputs[0], rtol=1e-4, atol=1e-5)


def test_the_loss_falls_and_planted_units_go(knowing):
    """Units that are large but say nothing: magnitudes keep them, the search drops them (test 12)."""
    model = copy.deepcopy(knowing)
    graph, generator = prunus.trace(model, X), torch.Generator().manual_seed(0)
    planted = {}
    with torch.no_grad():
        for axis in ("a", "point"):
            size = graph.axes[axis].size
            planted[axis] = torch.randperm(size, generator=generator)[: size // 4].tolist()
            for member in graph.members(axis):
                if member.role in ("produces", "consumes"):
                    weight = dict(model.named_parameters())[member.tensor].movedim(member.dim, 0)
                    size_of = weight.flatten(1).norm(dim=1).mean() * 1.5
                    for unit in planted[axis]:
                        noise = torch.randn(weight[unit].shape, generator=generator)
                        weight[unit] = noise * size_of / noise.norm()
    config, steps = Config(scope="per_axis", round_to=1), 200
    search = PASS(model, X, Budget(macs=0.6), steps=steps, config=config)
    held_out = [torch.cat(each) for each in zip(*batches(8, seed=77), strict=True)]

    def left():
        masks = masks_of(search)
        return sum(len(set(masks[axis]) & set(units)) for axis, units in planted.items())

    @torch.no_grad()
    def loss():
        """On pictures that nothing learns from; the budget, and so the size of the network, is the same throughout."""
        return F.cross_entropy(search(held_out[0]), held_out[1]).item()

    first = loss()
    assert left() == sum(map(len, planted.values()))  # 11 of 11
    optimizer = torch.optim.Adam(search.learned(), lr=1e-3)
    # Half a cosine, as in a run: at a rate this high masks flicker to the end, and a step may double the loss.
    pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for x, y in batches(steps, seed=2):
        optimizer.zero_grad()
        F.cross_entropy(search(x), y).backward()
        optimizer.step()
        pace.step()
        search.step()
    assert left() <= sum(map(len, planted.values())) / 2
    assert loss() < 0.6 * first  # the prompt alone comes to 0.78


def test_a_network_with_its_prompt():
    search = searched(keep_prompt=True)
    found = search.finish()
    assert isinstance(found, Prompted) and not any(map(parametrize.is_parametrized, found.modules()))
    found.eval()
    assert not torch.equal(found(X), found.network(X))
    assert found.prompt.values.requires_grad and found.prompt.values is not search.prompt.values
    for prompt in ("none", "random"):  # there is none, or it would be elsewhere at every call
        with pytest.raises(UserError, match="keep_prompt"):
            PASS(small(), X, HALF, config=Config(prompt=prompt), keep_prompt=True)


def test_a_search_can_be_copied_and_goes_on():
    search = searched(steps=3)
    again = copy.deepcopy(search)
    x, _ = next(batches(1))
    assert torch.equal(again(x), search(x))


def test_state_and_restore_go_beside_the_module_and_the_optimiser():
    def go(search, optimizer, numbers, all_batches):
        for number in numbers:
            x, y = all_batches[number]
            optimizer.zero_grad()
            F.cross_entropy(search(x), y).backward()
            optimizer.step()
            search.step()

    def begun():
        search = PASS(
            small(), X, HALF, steps=10, config=Config(snapshots=3), score=lambda net: net(probe).mean().item()
        )
        return search, torch.optim.Adam(search.learned(), lr=1e-2)

    all_batches, probe = list(batches(10)), next(batches(1, seed=8))[0]
    straight = begun()
    go(*straight, range(10), all_batches)
    first = begun()
    go(*first, range(4), all_batches)
    again = begun()
    again[0].load_state_dict(first[0].state_dict())
    again[1].load_state_dict(first[1].state_dict())
    again[0].restore(json.loads(json.dumps(first[0].state())))
    go(*again, range(4, 10), all_batches)
    assert json.dumps(again[0].state()) == json.dumps(straight[0].state())
    assert torch.equal(again[0].scores(), straight[0].scores())
    assert torch.equal(again[0].kept, straight[0].kept)


# ------------------------------------------------------------------------------- resuming, and runs
@pytest.fixture(scope="module")
def tiny():
    """320 pictures to train on, 70 to watch."""
    digits = load_data("digits")
    return replace(digits, train=digits.train.take(np.arange(320)))


class Stopping(Beside):
    """Raises KeyboardInterrupt after a step."""

    def __init__(self, search, stop_at):
        super().__init__(search)
        self.stop_at = stop_at

    def after_step(self, at, step, lr):
        super().after_step(at, step, lr)
        if step == self.stop_at:
            raise KeyboardInterrupt


def fitted(tiny, folder, stop_at=None):
    model = small()
    task = Classification(model, tiny)
    x, y = next(tiny.val.batches(64))
    config = Config(snapshots=5, prompt="random")
    score = lambda net: -task.loss(net(x), y).item()  # noqa: E731
    search = PASS(model, X, HALF, steps=12, config=config, score=score)
    recipe = Recipe(epochs=1.2, batch_size=32, optimizer="adamw", lr=1e-2, weight_decay=0.0, precision="no")
    fit(search, task, recipe, folder=folder, along=Stopping(search, stop_at))
    return search


@pytest.mark.parametrize("stop_at", [0, 7, 9])
def test_a_killed_search_goes_on_to_the_same_bits(tiny, tmp_path, monkeypatch, stop_at):
    straight = fitted(tiny, None)
    monkeypatch.setattr("prunus.train.loop.SAVE_EVERY_S", -1.0)
    with pytest.raises(KeyboardInterrupt):
        fitted(tiny, tmp_path, stop_at)
    resumed = fitted(tiny, tmp_path)
    assert json.dumps(resumed.state()) == json.dumps(straight.state())
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    straight.decide(), resumed.decide()
    assert straight.keep == resumed.keep and straight.done == 12


class Running:
    """What a method needs of a run."""

    seed = 0

    def __init__(self, path):
        self.path, self.logged = path, []

    def folder(self, name):
        (self.path / name).mkdir(parents=True, exist_ok=True)
        return self.path / name

    def log(self, event, **values):
        json.dumps(values)
        self.logged.append(event)

    def write(self, action):
        action()

    from prunus.progress import silent as progress

    progress = staticmethod(progress)


def test_the_method_in_a_run_and_its_hypernetwork_in_another(tiny, tmp_path):
    model = small()
    task, before = Classification(model, tiny), snapshot(model)
    run = Running(tmp_path / "first")
    found = prune(task, HALF, Config(steps=10, snapshots=2, held_out=30), run)
    graph = prunus.trace(model, X)
    assert prunus.macs(graph, found.keep) <= 0.5 * prunus.macs(graph) and found.weights is None
    assert task.data is tiny  # what was held out is held out of the search alone
    assert_untouched(model, before)
    kinds = [type(chart) for chart in found.charts]
    assert kinds == [Heat, Lines, Lines, Picture]
    assert len(found.charts[1].series["changed"]) == 10 and found.charts[3].png.startswith(PNG)
    assert [step for step, _ in found.charts[2].series["held out"]] == [0, 5, 10]

    file = tmp_path / "first/prune/hypernetwork.safetensors"
    other = Classification(small(seed=3), tiny)
    again = prune(other, HALF, Config(steps=0, hypernetwork=str(file)), Running(tmp_path / "second"))
    assert prunus.macs(graph, again.keep) <= 0.5 * prunus.macs(graph)
    assert [type(chart) for chart in again.charts] == [Picture]


def test_a_head_that_learned_is_handed_on(tiny, tmp_path):
    model = small()
    config = Config(steps=4, snapshots=0, train_also=("head.*",), lr=1e-2)
    found = prune(Classification(model, tiny), HALF, config, Running(tmp_path))
    assert found.weights.keys() == {n for n, _ in [*model.named_parameters(), *model.named_buffers()]}
    assert not torch.equal(found.weights["head.bias"], model.head.bias)
    assert torch.equal(found.weights["stem.weight"], model.stem.weight)


def test_a_run_killed_in_its_search_ends_in_the_same_files(tmp_path):
    common = [
        "run",
        "--model",
        "zoo:digits_resnet",
        "--data",
        "digits",
        "--base-epochs",
        "0",
        "--epochs",
        "0",
    ]
    common += ["--method", "pass", "--set", "steps=30", "--set", "lr=0.01", "--set", "held_out=100", "--out"]
    assert cli.main([*common, str(tmp_path / "straight")]) == 0
    search = tmp_path / "killed/prune/search/checkpoint.safetensors"
    kill_when_there([*common, str(tmp_path / "killed")], search)
    with safe_open(search, "pt") as opened:
        state = json.loads(opened.metadata()["state"])
    assert 0 < state["along"]["done"] < 30 and not (tmp_path / "killed/keep.json").exists()
    assert cli.main([*common, str(tmp_path / "killed"), "--resume"]) == 0
    for file in ("keep.json", "prune/hypernetwork.safetensors", "model.safetensors"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()
    page = (tmp_path / "killed/report.html").read_text()
    for title in ("What stays of each axis", "Masks that changed in a step", "The prompt"):
        assert title in page


# ------------------------------------------------------------------------------------- what is refused
def test_inputs_that_are_no_pictures_have_no_prompt():
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    with pytest.raises(UserError, match=r"\(2, 6\).*prompt=none"):
        PASS(model, torch.randn(2, 6), HALF)
    search = PASS(model, torch.randn(2, 6), HALF, config=Config(prompt="none"), steps=2)
    optimizer = torch.optim.Adam(search.learned(), lr=1e-3)
    for _ in range(2):
        search(torch.randn(5, 6)).sum().backward()
        optimizer.step()
        search.step()
    assert search.finish()[0].weight.shape[0] < 12


@pytest.mark.parametrize("config", [Config(prompt_size=4), Config(prompt="fixed", prompt_size=9)])
def test_prompts_larger_than_the_pictures_are_refused(config):
    with pytest.raises(UserError, match=r"8x8.*prompt_size"):
        PASS(small(), X, HALF, config=config)


def test_pictures_of_another_size_are_refused_and_the_search_goes_on():
    search = PASS(small(), X, HALF)
    with pytest.raises(UserError, match=r"\(1, 8, 8\).*\(1, 9, 9\)"):
        search(torch.zeros(2, 1, 9, 9))
    with pytest.raises(UserError, match="uint8"):
        search(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert search(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_budgets_that_cannot_be_met_are_refused_at_once():
    with pytest.raises(BudgetError, match="cannot be met"):
        PASS(small(), X, Budget(macs=0.05), config=Config(floor=0.5))
    with pytest.raises(UserError, match="frozen"):
        PASS(small(), X, HALF, config=Config(freeze=("*",)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": "frame"}, "prompt"),
        ({"masking": "producer"}, "masking"),
        ({"steps": 0}, "steps"),
        ({"prompted": 2}, "prompted"),
        ({"how": "isomorphic"}, "scope"),
        ({"hidden": 2.5}, "hidden should be a whole number in 1.., but is 2.5"),
        ({"lr": "x"}, "lr should be a number"),
        ({"prompt_speed": 0}, "prompt_speed"),
        ({"prompt": "none", "prompt_size": 3, "prompted": 0.5}, "no use for prompt_size, prompted;"),
        ({"snapshots": 0, "held_out": 30}, "no use for held_out"),
        ({"train_also": "head.*"}, "list of patterns"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(UserError, match=said):
        PASS(small(), X, HALF, config=Config(**options))


def test_a_loop_that_goes_wrong_is_told_so():
    search = PASS(small(), X, HALF)
    with pytest.raises(UserError, match="before any batch"):
        search.step()
    with torch.no_grad():
        search.hypernetwork.offsets[3] = math.nan
    with pytest.raises(TrainingError, match="NaN"):
        search(torch.zeros(2, 1, 8, 8))
    with pytest.raises(UserError, match="steps"):
        PASS(small(), X, HALF, steps=0)
    with pytest.raises(UserError, match="magnitude"):
        Config().at_once()


def test_a_model_with_gates_is_refused_and_left():
    search = searched(steps=1)
    assert any(isinstance(m, Gate) for m in search.network.modules())
    with pytest.raises(UserError, match="gates"):
        PASS(search.network, X, HALF)


# ---------------------------------------------------------------------------------- several processes
def train_two(folder):
    """A search of six steps; its checkpoint stays in the folder."""
    data = load_data("two_processes:picture_items")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    task = Classification(model, data)
    x, y = next(data.val.batches(50))

    def score(network):
        return -task.loss(network(x), y).item()

    search = PASS(model, data.example, HALF, steps=6, config=Config(snapshots=2), score=score)
    recipe = Recipe(epochs=0.6, batch_size=20, optimizer="adamw", lr=1e-3, weight_decay=0.0, precision="no")
    fit(search, task, recipe, folder=folder, along=Beside(search))
    assert len(search.tried) == 3 and search.done == 6


def test_two_processes_search_as_one_does(tmp_path):
    assert_trains_as_one(train_two, tmp_path)
