"""How many single weights stay in each layer, and which: exact counts, ties, bounds, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunus
from prunus.errors import BudgetError, UserError
from prunus.selection import Sparsity
from prunus.sparse import choose, eligible, ranking, top
from prunus.sparse.allocation import allocate, allocate_by_shapes
from prunus.sparse.ranking import lamp

SHAPES = {
    "conv1": (16, 3, 3, 3),
    "conv2": (32, 16, 3, 3),
    "depth": (32, 1, 3, 3),
    "fc": (64, 512),
    "out": (10, 64),
}
ALLOCATIONS = ["uniform", "uniform_plus", "erk", "paper", "pooled", "global", "lamp"]


def scores(seed=0, shapes=None):
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes or SHAPES
    return {
        name: (torch.randn(shape, generator=generator) * (i + 1)).square()
        for i, (name, shape) in enumerate(shapes.items())
    }


def kept(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def share_kept(count, name):
    return count / torch.Size(SHAPES[name]).numel()


# ------------------------------------------------------------------------------------------ Sparsity
@pytest.mark.parametrize("value", [0, 1, -0.1, 80, float("nan"), True, "0.5", None])
def test_a_sparsity_outside_of_0_to_1_is_refused(value):
    with pytest.raises(UserError, match="between 0 and 1"):
        Sparsity(value)


def test_a_sparsity_is_read_from_text():
    assert Sparsity.parse("0.8") == Sparsity(0.8)
    assert Sparsity(0.8).name == "sparsity" and Sparsity(0.8).is_fraction
    for text in ("1", "80%", "", "nan"):
        with pytest.raises(UserError, match=r"such as 0\.8"):
            Sparsity.parse(text)


# ---------------------------------------------------------------------------------------- the highest
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(0, 5), st.integers(0, 2**31), st.data())
def test_top_is_a_stable_sort(n, values, seed, data):
    """Few different values, so that most are tied."""
    score = torch.randint(values + 1, (n,), generator=torch.Generator().manual_seed(seed)).float()
    count = data.draw(st.integers(0, n))
    assert torch.equal(top(score, count), by_sorting(score, count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["many values", "two values", "one value", "sorted", "one giant"])
def test_top_of_many_is_a_stable_sort(kind, dtype):
    """More than are partitioned at once, in more than one chunk."""
    n = 3 * ranking.SMALL + 17
    score = {
        "many values": torch.rand(n),
        "two values": (torch.rand(n) < 0.4).float(),
        "one value": torch.zeros(n),
        "sorted": torch.linspace(0, 1, n),
        "one giant": torch.cat([torch.rand(n - 1), torch.tensor([1e4])]),
    }[kind].to(dtype)
    within = torch.rand(n) < 0.7
    for count in (0, 1, 2, n // 3, n // 2, n - 1, n):
        assert torch.equal(top(score, count), by_sorting(score, count)), count
        count = min(count, int(within.sum()))
        masked = score.float().masked_fill(~within, -1)
        assert torch.equal(top(score, count, within), by_sorting(masked, count)), count


def test_a_sample_that_misleads_does_no_harm(monkeypatch):
    monkeypatch.setattr(ranking, "SIGMAS", 0.01)
    score = torch.rand(3 * ranking.SMALL, generator=torch.Generator().manual_seed(3))
    for count in (1, 1000, ranking.SMALL, 2 * ranking.SMALL + 1):
        assert torch.equal(top(score, count), by_sorting(score, count))


def by_sorting(score, count):
    order = score.float().sort(descending=True, stable=True).indices
    return torch.zeros(len(score), dtype=torch.bool).scatter_(0, order[:count], True)


def test_top_takes_any_memory_format():
    score = scores()["conv2"]
    last = score.contiguous(memory_format=torch.channels_last)
    assert torch.equal(top(last, 100), top(score, 100))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers_name_the_weight(bad):
    given = scores()
    given["conv2"][3, 2, 1, 0] = bad
    for allocation in ALLOCATIONS:
        with pytest.raises(UserError, match="conv2: 1 of 4608 are NaN or infinite"):
            choose(given, 0.5, allocation=allocation)
    with pytest.raises(UserError, match="conv2: 1 of 4608 are NaN or infinite"):
        choose(given, 0.5, pattern="2:4")


def test_negative_scores_are_refused():
    with pytest.raises(UserError, match="w: the least is -1; expected none below 0"):
        choose({"w": torch.tensor([[3.0, -1.0]])}, 0.5)


def test_an_impossible_count_is_refused():
    with pytest.raises(UserError, match="5 weights should stay of 4"):
        top(torch.ones(4), 5)
    with pytest.raises(UserError, match="3 weights should stay of 2"):
        top(torch.ones(4), 3, torch.tensor([True, False, True, False]))


# ------------------------------------------------------------------------------------------------ LAMP
def lamp_by_definition(score):
    flat = score.double().flatten()
    return torch.stack([one / flat[flat >= one].sum() for one in flat]).view(score.shape)


def test_lamp_is_its_definition():
    for score in (scores()["conv1"], scores()["out"].round(), torch.rand(1)):
        assert torch.allclose(lamp(score).double(), lamp_by_definition(score), rtol=1e-6, atol=0)
    assert torch.equal(lamp(torch.zeros(5)), torch.zeros(5))


def test_lamp_of_many_keeps_its_precision():
    score = torch.randperm(5 * ranking.CHUNK).float() + 1
    rising = score.double().sort().values
    expected = rising / rising.flip(0).cumsum(0).flip(0)
    assert torch.allclose(lamp(score).sort().values.double(), expected, rtol=1e-6, atol=0)


def test_lamp_does_not_see_the_scale_of_a_layer_and_ranks_as_magnitude():
    score = scores()["conv2"]
    assert torch.allclose(lamp(score), lamp(score * 37), rtol=1e-5)
    assert torch.equal(top(lamp(score), 1000), top(score, 1000))
    assert lamp(score).max() == 1


@pytest.mark.parametrize("allocation", ["lamp", "global"])
def test_one_threshold_for_all_layers(allocation):
    """What stays is the top of all layers together, as by definition."""
    given = scores()
    masks = choose(given, 0.9, allocation=allocation)
    compared = {
        n: lamp_by_definition(s).float() if allocation == "lamp" else s / s.norm() for n, s in given.items()
    }
    lowest_kept = min(compared[n][masks[n]].min() for n in given)
    highest_gone = max(compared[n][~masks[n]].max() for n in given)
    assert lowest_kept > highest_gone * (1 - 1e-5)


# ------------------------------------------------------------------------------------------- allocation
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("sparsity", [1e-5, 0.01, 0.3, 0.5, 0.8, 0.95, 0.99])
def test_sparsity_is_exact_to_one_weight(allocation, sparsity):
    given = scores()
    sizes = {name: score.numel() for name, score in given.items()}
    if allocation == "uniform_plus" and sparsity == 0.99:
        pytest.skip("cannot be met")
    masks = choose(given, sparsity, allocation=allocation)
    assert kept(masks) == round((1 - sparsity) * sum(sizes.values()))
    assert all(mask.any() and mask.shape == given[name].shape for name, mask in masks.items())


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=6),
    st.floats(0.001, 0.999),
    st.sampled_from(ALLOCATIONS),
    st.integers(0, 3),
    st.booleans(),
)
def test_any_layers_any_sparsity(sizes, sparsity, allocation, min_keep, again):
    """Exact, or refused for a stated reason; also the second time, within the first masks."""
    shapes = {f"w{i}": (o, i_) if not k else (o, i_, k, k) for i, (o, i_, k) in enumerate(sizes)}
    given = scores(1, shapes)
    total = sum(score.numel() for score in given.values())
    within = {name: torch.rand_like(score) < 0.6 for name, score in given.items()} if again else None
    room = {name: int(within[name].sum()) if again else score.numel() for name, score in given.items()}
    try:
        masks = choose(given, sparsity, allocation=allocation, within=within, min_keep=min_keep)
    except BudgetError:
        goal = round((1 - sparsity) * total)
        least = sum(min(min_keep, most) for most in room.values())
        assert goal < least or goal > sum(room.values()) or allocation == "uniform_plus"
        return
    assert kept(masks) == round((1 - sparsity) * total)
    for name, mask in masks.items():
        assert int(mask.sum()) >= min(min_keep, room[name])
        assert not again or not (mask & ~within[name]).any()


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_scores(allocation, value):
    given = {name: torch.full(shape, value) for name, shape in SHAPES.items()}
    masks = choose(given, 0.7, allocation=allocation)
    assert kept(masks) == round(0.3 * sum(score.numel() for score in given.values()))
    for mask in masks.values():
        flat = mask.flatten()
        assert flat[: int(flat.sum())].all(), "equal scores stay by rising place"


def test_uniform_keeps_the_same_share_everywhere():
    found = allocate_by_shapes({n: torch.Size(s) for n, s in SHAPES.items()}, 0.8)
    assert all(abs(count - 0.2 * torch.Size(SHAPES[name]).numel()) < 1 for name, count in found.items())


def test_uniform_plus_spares_the_ends():
    shapes = {n: torch.Size(s) for n, s in SHAPES.items()}
    found = allocate_by_shapes(shapes, 0.9, "uniform_plus")
    assert found["conv1"] == shapes["conv1"].numel() and found["out"] == 0.2 * shapes["out"].numel()
    assert abs(share_kept(found["conv2"], "conv2") - share_kept(found["fc"], "fc")) < 1e-3
    mild = allocate_by_shapes(shapes, 0.3, "uniform_plus")  # here a fifth is not the bound
    assert abs(share_kept(mild["out"], "out") - share_kept(mild["fc"], "fc")) < 2e-3
    with pytest.raises(BudgetError, match=r"the most is 0\.98"):
        allocate_by_shapes(shapes, 0.99, "uniform_plus")


def test_erk_is_the_papers_loop():
    """The largest excess becomes dense, one at a time, until none is left."""
    shapes = {n: torch.Size(s) for n, s in SHAPES.items()}
    found = allocate_by_shapes(shapes, 0.7, "erk")
    total = found_total = sum(found.values())
    raw, dense = {n: sum(s) / s.numel() for n, s in shapes.items()}, set()
    while True:
        left = total - sum(shapes[n].numel() for n in dense)
        scale = left / sum(raw[n] * shapes[n].numel() for n in shapes if n not in dense)
        excess = {n: scale * raw[n] for n in shapes if n not in dense and scale * raw[n] > 1}
        if not excess:
            break
        dense.add(max(excess, key=excess.get))
    assert dense and found_total == round(0.3 * sum(s.numel() for s in shapes.values()))
    for name, shape in shapes.items():
        expected = shape.numel() * (1 if name in dense else scale * raw[name])
        assert abs(found[name] - expected) <= 1


FCN = {"1": (500, 784), "2": (500, 500), "3": (500, 500), "4": (500, 500), "5": (10, 500)}
CONV6 = {
    "1": (64, 3, 3, 3),
    "2": (64, 64, 3, 3),
    "3": (128, 64, 3, 3),
    "4": (128, 128, 3, 3),
    "5": (256, 128, 3, 3),
    "6": (256, 256, 3, 3),
    "f1": (256, 4096),
    "f2": (256, 256),
    "f3": (10, 256),
}


@pytest.mark.parametrize(
    ("shapes", "rate", "rounds", "percents"),
    [
        (
            FCN,
            lambda name: 0.25 if name == "5" else 0.5,
            range(4, 11),
            [6.36, 3.21, 1.63, 0.84, 0.43, 0.23, 0.12],
        ),
        (
            CONV6,
            lambda name: {"f1": 0.2, "f2": 0.2, "f3": 0.1}.get(name, 0.15),
            range(12, 19),
            [10.62, 8.86, 7.39, 6.18, 5.17, 4.32, 3.62],
        ),
    ],
    ids=["fcn", "conv6"],
)
def test_the_papers_tables(shapes, rate, rounds, percents):
    shapes = {n: torch.Size(s) for n, s in shapes.items()}
    total = sum(shape.numel() for shape in shapes.values())
    for round_, percent in zip(rounds, percents, strict=True):
        expected = {n: s.numel() * (1 - rate(n)) ** round_ for n, s in shapes.items()}
        assert round(100 * sum(expected.values()) / total, 2) == percent
        found = allocate_by_shapes(shapes, 1 - sum(expected.values()) / total, "paper")
        assert all(abs(found[n] - expected[n]) <= 1 for n in shapes)


def test_counts_of_ones_own():
    given = scores()
    wanted = {name: i + 1 for i, name in enumerate(given)}
    masks = choose(given, 0.5, counts=wanted)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == wanted
    with pytest.raises(UserError, match="counts are for"):
        choose(given, 0.5, counts={"conv1": 3})


def test_allocated_and_chosen_agree():
    for allocation in ALLOCATIONS:
        masks = choose(scores(), 0.85, allocation=allocation)
        assert allocate(scores(), 0.85, allocation) == {n: int(m.sum()) for n, m in masks.items()}


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_pruned_weights_stay_pruned(allocation):
    given = scores()
    first = choose(given, 0.5, allocation=allocation)
    second = choose(scores(7), 0.9, allocation=allocation, within=first)
    total = sum(score.numel() for score in given.values())
    assert kept(second) == round(0.1 * total)
    assert not any((second[name] & ~first[name]).any() for name in given)
    with pytest.raises(BudgetError, match="pruned already"):
        choose(given, 0.3, allocation=allocation, within=first)


def test_masks_of_other_weights_are_refused():
    given = scores()
    first = choose(given, 0.5)
    name = next(iter(first))
    with pytest.raises(UserError, match="within has masks of other"):
        choose(given, 0.9, within={"other": first[name]})
    for wrong in (first[name][:1], first[name].float()):
        with pytest.raises(UserError, match=f"the mask of {name} should be bool"):
            choose(given, 0.9, within=first | {name: wrong})


def test_a_layer_with_one_weight_keeps_it():
    given = {"one": torch.zeros(1, 1), "many": torch.rand(100, 100)}
    for allocation in ALLOCATIONS:
        assert choose(given, 0.99 if allocation != "uniform_plus" else 0.7, allocation=allocation)[
            "one"
        ].all()


def test_more_layers_than_weights_may_stay():
    with pytest.raises(BudgetError, match=r"5 must stay .* the most is 0\.9998"):
        choose(scores(), 0.99999)


def test_unknown_allocation():
    with pytest.raises(UserError, match="Did you mean erk"):
        choose(scores(), 0.5, allocation="erks")
    with pytest.raises(UserError, match="lamp"):
        allocate_by_shapes({"w": torch.Size((3, 3))}, 0.5, "lamp")


# --------------------------------------------------------------------------------------------- freezing
def test_what_is_frozen_is_not_pruned():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16)), nn.Linear(16, 4))
    graph = prunus.trace(model, torch.randn(2, 8))
    assert eligible(graph) == ["0.weight", "2.0.weight", "3.weight"]
    assert eligible(graph, ["2"]) == ["0.weight", "3.weight"]
    assert eligible(graph, ["0", "3.weig*"]) == ["2.0.weight"]
    with pytest.raises(UserError, match="freeze pattern 'nosuch'"):
        eligible(graph, ["nosuch"])
    with pytest.raises(UserError, match="freeze less"):
        eligible(graph, ["*"])
    with pytest.raises(UserError, match="list of patterns"):
        eligible(graph, "0")


def test_pooled_is_one_threshold_for_all_scores():
    torch.manual_seed(0)
    scores = {"a": torch.rand(40, 5), "b": 1.3 * torch.rand(30, 10)}
    masks = choose(scores, 0.7, allocation="pooled")
    every = torch.cat([score.flatten() for score in scores.values()])
    limit = every.sort(descending=True).values[round(0.3 * len(every)) - 1]
    assert all(torch.equal(mask, scores[name] >= limit) for name, mask in masks.items())
