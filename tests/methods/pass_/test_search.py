"""PASS: the invariants of its specification (7.1), its search in one's own loop and in a run, and what it refuses."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus import surgery, zoo
from prunus.errors import FileError, UserError
from prunus.methods.pass_ import PASS, Config
from prunus.selection import Budget
from tests.lib.dhp import small
from tests.lib.nets import NETS, build
from tests.lib.pass_ import HALF, X, assert_untouched, batches, figure, masks_of, searched, snapshot


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


class TwoViews(nn.Module):
    """Two layers of the same shape, of which each reads one channel of the image."""

    def __init__(self):
        super().__init__()
        self.seen, self.dark, self.head = nn.Conv2d(1, 16, 3), nn.Conv2d(1, 16, 3), nn.Linear(32, 10)

    def forward(self, x):
        views = F.relu(self.seen(x[:, :1])), F.relu(self.dark(x[:, 1:]))
        return self.head(torch.cat([view.amax((2, 3)) for view in views], 1))


def half_dark(steps, seed):
    """Images whose second channel is always black."""
    for x, y in batches(steps, seed):
        yield torch.cat([x, torch.zeros_like(x)], 1), y


def test_a_layer_that_is_useless_on_the_data_goes_however_large_its_weights_are():
    """With the default learning rate and number of steps. Its masks get no gradient, so only what the budget charges
    can lower its scores."""
    torch.manual_seed(0)
    model = TwoViews()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for x, y in half_dark(150, seed=1):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        model.dark.weight.mul_(5)
        model.dark.bias.zero_()

    steps, config = Config().steps, Config(prompt="none", round_to=1)
    search = PASS(model, torch.zeros(1, 2, 8, 8), HALF, steps=steps, config=config)
    first = masks_of(search)
    assert len(first["dark"]) > 6  # as many as of the other, by their weights
    optimizer = torch.optim.Adam(search.learned(), lr=config.lr)
    for x, y in half_dark(steps, seed=2):
        optimizer.zero_grad()
        F.cross_entropy(search(x), y).backward()
        optimizer.step()
        search.step()
    search.finish()
    assert len(search.keep["dark"]) == 2  # the floor
    assert len(search.keep["seen"]) > 12


def test_at_the_same_cost_gradients_cancel():
    """A score that rises lowers the others, in proportion to their costs; what always stays is not charged."""
    search = PASS(small(), X, HALF, config=Config(prompt="none", freeze=("point",)))
    found = torch.randn(len(search.kept), requires_grad=True)
    upstream = torch.randn(len(search.kept))
    (search.straight_through(found, search.kept) * upstream).sum().backward()
    costs = search.units.unit_costs().double()
    costs[search.gates.places["point"]] = 0
    expected = upstream.double() * (costs > 0)
    expected -= costs * expected.sum() / costs.sum()
    torch.testing.assert_close(found.grad.double(), expected, rtol=1e-4, atol=1e-5)


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
    original = search.choose_units

    def watched(found):
        search.scores_now = found.detach()
        return original(found)

    search.choose_units = watched
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
        search.graph, search.split_by_axis(search.scores()), HALF, how="uniform", round_to=1
    )


# --------------------------------------------------------------- 4, 11: masked is the same as removed
PLACES = ("consumer", "product", "product_norms")


def example_of(name):
    model, example = build(name)
    return model, example, Config(prompt="none")


@pytest.mark.parametrize("masking", PLACES)
@pytest.mark.parametrize("name", NETS)
def test_masked_is_shrunk(name, masking):
    """In evaluation mode, for random masks, in double precision: a masked unit has no effect."""
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
            masked = search.run(search.as_mask(keep).double(), example)
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
        masked = search.run(search.as_mask(search.keep).double(), x)
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
    """Nor do they freeze axes that the search masked, such as those of a submodule of that name."""

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
    """Spearman's rank correlation with the change of the loss when each unit is removed alone."""
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
    config = Config(prompt="none", straight_through="identity")
    search = PASS(model, X.double(), HALF, config=config).double()
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
    kept = search.choose_units(found)
    assert kept[first].any() and not kept[first].all()
    search.straight_through(found, kept).sum().backward()
    assert found.grad[first].any().item() is (scope == "per_axis")
    for place in search.gates.places.values():
        own = found.detach()[place] if scope == "per_axis" else found.detach()
        threshold = own[~(kept[place] if scope == "per_axis" else kept)].max()
        near = (found.detach()[place] - threshold).abs() <= 1
        assert near.any() or scope == "global"
        assert torch.equal(found.grad[place], near.float())


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
    """A model in evaluation mode is searched like one in training mode; its stored statistics have no effect."""
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
    """All parameters of a parametrised weight learn; and so may gated weights."""
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
    """A network that takes its images by name, with further arguments."""

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


def test_the_loss_falls_and_planted_units_go(knowing):
    """Units that are large but carry no information: magnitudes keep them, the search drops them (test 12)."""
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
        """The loss on images that are not trained on; the budget, and so the network's size, stays the same."""
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"best": [0.5]}, r"\$.best: Expected \d+ values, there are 1"),
        ({"tried": [[1]]}, r"\$.tried\[0\]: Expected array of length 2, got 1"),
        ({"flips": [-1]}, r"\$.flips\[0\]: Expected int >= 0, there is -1"),
        (
            {"records": [{"step": 0, "ratio": 1, "widths": [1]}]},
            r"\$.records\[0\].widths: Expected \d+ values",
        ),
    ],
)
def test_a_damaged_state_is_refused_and_nothing_changes(change, words):
    search = PASS(small(), X, HALF, steps=10)
    before = search.state()
    with pytest.raises(FileError, match=words):
        search.restore(json.loads(json.dumps(before)) | change)
    assert search.state() == before
