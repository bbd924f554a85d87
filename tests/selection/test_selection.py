"""Selection against a plain greedy loop, its promises as properties, and what it refuses."""

import math
from itertools import pairwise, product
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunus.errors import BudgetError, UserError
from prunus.graph import trace
from prunus.metrics import format_number
from prunus.selection import Budget, How, Selection, cost, min_units, plan, select


class Branches(nn.Module):
    """A residual stream with two inner layers, a concatenation, and a flattened linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1)
        )
        self.second = nn.Sequential(
            nn.Conv2d(16, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 16, 3, padding=1)
        )
        self.side = nn.Conv2d(16, 9, 1)
        self.hidden = nn.Linear(25 * 4, 30)
        self.head = nn.Linear(30, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.first(x)
        x = x + self.second(x)
        x = F.avg_pool2d(torch.cat([x, self.side(x)], 1), 4)
        return self.head(F.relu(self.hidden(x.flatten(1))))


class Attention(nn.Module):
    """Four heads of 16 features on a stream that the input fixes, and an MLP."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.q, self.k, self.v, self.out = (nn.Linear(64, 64) for _ in range(4))
        self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, x):
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


def chain():
    widths = [10, 40, 40, 24, 7, 3]
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


GRAPHS = {
    "branches": trace(Branches(), torch.zeros(1, 3, 8, 8)),
    "attention": trace(Attention(), torch.zeros(1, 6, 64)),
    "chain": trace(chain(), torch.zeros(1, 10)),
}
GREEDY = [how for how in get_args(How) if how != "curves"]  # that takes blocks several times
graphs = st.sampled_from(sorted(GRAPHS)).map(GRAPHS.get)
quick = settings(max_examples=60, deadline=None)


@st.composite
def scored(draw):
    """A graph and whole scores for it, so that means are exact; with few levels there are many ties."""
    graph = draw(graphs)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    levels = draw(st.sampled_from([1, 3, 1000]))
    scores = {
        name: torch.randint(levels, (axis.size,), generator=generator).double()
        for name, axis in graph.axes.items()
    }
    return graph, scores


def spent(graph, keep, name="macs"):
    return cost.of(graph, name, graph.widths(keep))


def whole(graph, name="macs"):
    return cost.of(graph, name, graph.widths())


def with_more(graph, keep, axis, units):
    """The cost if an axis kept so many units more."""
    widths = graph.widths(keep)
    return cost.of(graph, "macs", widths | {axis: min(graph.axes[axis].size, widths[axis] + units)})


def plain_ranks(graph, scores, how):
    """What units are compared by, one by one: axis -> falling list."""
    full = graph.widths()
    falling = {name: sorted(score.tolist(), reverse=True) for name, score in scores.items()}
    ranks = {}
    for name, values in falling.items():
        pool = [
            v for other in falling if graph.topology(other) == graph.topology(name) for v in falling[other]
        ]
        unit_cost = 1 - cost.of(graph, "macs", full | {name: full[name] - 1}) / whole(graph)
        ranks[name] = {
            "global": values,
            "per_cost": [value / unit_cost for value in values],
            "uniform": [1 - place / len(values) for place in range(len(values))],
            "isomorphic": [sum(other <= value for other in pool) / len(pool) for value in values],
        }[how]
    return ranks


def plain_greedy(graph, ranks, limit, step, floors):
    """Widths by taking one block after another: slow, and without a thought."""
    blocks, widths = [], {}
    for number, (name, size) in enumerate(graph.widths().items()):
        widths[name] = min(size, math.ceil(floors[name] / step[name]) * step[name])
        for place in range(widths[name], size, step[name]):
            block = ranks[name][place : place + step[name]]
            mean = torch.tensor(sum(block) / len(block)).item()  # in single precision
            blocks.append((-mean, place / size, number, name, len(block)))
    closed = set()
    for *_, name, units in sorted(blocks):
        bigger = widths | {name: widths[name] + units}
        if name not in closed and cost.of(graph, "macs", bigger) <= limit:
            widths = bigger
        else:
            closed.add(name)
    return widths


@quick
@given(scored(), st.sampled_from(GREEDY), st.sampled_from([1, 3, 8]), st.floats(0.3, 1))
def test_the_same_as_a_plain_greedy_loop(case, how, round_to, share):
    graph, scores = case
    step = {
        name: max(
            round_to // math.gcd(round_to, m.index.shape[1])
            for m in graph.members(name)
            if m.role != "shifts"
        )
        for name in graph.axes
    }
    floors = {name: math.ceil(axis.size / 10) for name, axis in graph.axes.items()}
    limit = share * whole(graph)
    try:
        keep = select(graph, scores, Budget(macs=share), how=how, round_to=round_to)
    except BudgetError:
        return
    assert graph.widths(keep) == plain_greedy(graph, plain_ranks(graph, scores, how), limit, step, floors)


@quick
@given(
    scored(), st.sampled_from(get_args(How)), st.sampled_from([None, 1, 3, 8]), st.sampled_from(cost.CLOSED_FORMS),
    st.floats(0.02, 1), st.sampled_from([0, 1, 0.1, 0.3]), st.sampled_from([1.0, 0.8, 11]), st.booleans(),
)  # fmt: skip
def test_every_promise_holds(case, how, round_to, name, share, floor, cap, frozen):
    graph, scores = case
    first = next(iter(graph.axes))
    options = {
        "how": how,
        "round_to": round_to,
        "floor": floor,
        "cap": cap,
        "freeze": [first] if frozen else [],
    }
    try:
        keep = select(graph, scores, Budget(**{name: share}), **options)
    except BudgetError:
        return
    assert keep == select(graph, scores, Budget(**{name: share}), **options)
    assert keep == graph.check_keep(keep) and list(keep) == list(graph.axes)
    assert spent(graph, keep, name) <= share * whole(graph, name)
    for axis, kept in keep.items():
        size, score = graph.axes[axis].size, scores[axis]
        gone = [unit for unit in range(size) if unit not in set(kept)]
        if gone:
            assert score[kept].min() >= score[gone].max()
        assert len(kept) >= max(1, floor * size if isinstance(floor, float) else min(floor, size))
        assert len(gone) <= (cap * size if isinstance(cap, float) else cap)
    assert not frozen or len(keep[first]) == graph.axes[first].size


@quick
@given(scored(), st.sampled_from(get_args(How)), st.floats(0.05, 1))
def test_the_budget_is_used_up(case, how, share):
    """By default to 0.5 % or less than a unit; on a grid until no block fits."""
    graph, scores = case
    before = whole(graph)
    limit = share * before
    try:
        keep = select(graph, scores, Budget(macs=share), how=how)
    except BudgetError:
        keep = {}
    open_axes = [name for name, kept in keep.items() if len(kept) < graph.axes[name].size]
    if open_axes and spent(graph, keep) < limit - 0.005 * before:
        assert any(with_more(graph, keep, name, 1) > limit for name in open_axes)
    try:
        keep = select(graph, scores, Budget(macs=share), how=how, round_to=4)
    except BudgetError:
        keep = {}
    for name in keep:
        assert len(keep[name]) == graph.axes[name].size or with_more(graph, keep, name, 4) > limit


@quick
@given(
    scored(),
    st.sampled_from(GREEDY),
    st.sampled_from([None, 1, 4]),
    st.floats(0.05, 1),
    st.floats(0.05, 1),
)
def test_more_budget_never_keeps_less(case, how, round_to, one, other):
    graph, scores = case
    costs = []
    for share in sorted([one, other]):
        try:
            costs.append(spent(graph, select(graph, scores, Budget(macs=share), how=how, round_to=round_to)))
        except BudgetError:
            costs.append(0)
    slack = 0 if round_to else 0.005 * whole(graph)  # by default, how near the budget is comes first
    assert costs[0] <= costs[1] + slack


@quick
@given(scored(), st.floats(0.02, 1))
def test_refused_only_where_the_least_is_too_much(case, share):
    graph, scores = case
    single = cost.of(graph, "macs", dict.fromkeys(graph.axes, 1))
    try:
        select(graph, scores, Budget(macs=share), floor=1)
        assert single <= share * whole(graph)
    except BudgetError:
        assert single > share * whole(graph)


def test_by_default_one_axis_at_most_leaves_the_grid():
    graph = GRAPHS["branches"]
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        scores = {name: torch.rand(axis.size, generator=generator) for name, axis in graph.axes.items()}
        keep = select(graph, scores, Budget(macs=0.6))
        grid = {name: 8 if axis.size >= 16 else 4 for name, axis in graph.axes.items()}
        off = [
            name
            for name, kept in keep.items()
            if len(kept) % grid[name] and len(kept) < graph.axes[name].size
        ]
        assert len(off) <= 1


def test_a_head_is_aligned_by_itself():
    graph = GRAPHS["attention"]
    heads = next(name for name, axis in graph.axes.items() if axis.size == 4)
    keep = select(graph, equal(graph), Budget(macs=0.8), round_to=8)
    assert len(keep[heads]) in (1, 2, 3)
    assert len(keep["up"]) % 8 == 0


def equal(graph):
    return {name: torch.ones(axis.size) for name, axis in graph.axes.items()}


def test_equal_scores_fall_on_all_axes_alike():
    graph = GRAPHS["chain"]
    keep = select(graph, equal(graph), Budget(macs=0.5), round_to=1)
    assert all(0.5 < len(keep[name]) / axis.size < 0.9 for name, axis in graph.axes.items())
    assert all(kept == list(range(len(kept))) for kept in keep.values())


def test_isomorphic_compares_only_axes_of_one_topology():
    graph = GRAPHS["branches"]
    alone = [name for name in graph.axes if graph.topology(name) == graph.topology("stem")]
    assert alone == ["stem"] and graph.topology("first.0") == graph.topology("second.0")
    scores = {
        name: torch.rand(axis.size, generator=torch.manual_seed(0)) for name, axis in graph.axes.items()
    }
    louder = scores | {"stem": 1000 * scores["stem"]}
    options = {"budget": Budget(macs=0.5), "round_to": 1}
    assert select(graph, louder, how="isomorphic", **options) == select(
        graph, scores, how="isomorphic", **options
    )
    assert select(graph, louder, **options) != select(graph, scores, **options)


@pytest.mark.parametrize("name", ["macs", "params"])
def test_curves_leave_out_hardly_more_than_the_best_of_all_widths(name):
    layers = [nn.Linear(a, b) for a, b in pairwise([8, 12, 10, 12, 4])]
    graph, better = trace(nn.Sequential(*layers), torch.zeros(1, 8)), 0
    sizes = graph.widths()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        scores = {
            axis: (torch.rand(size, generator=generator) * 4).exp().sort(descending=True).values
            for axis, size in sizes.items()
        }

        def left_out(widths, scores=scores):
            return sum(float(scores[axis][width:].sum()) for axis, width in widths.items())

        all_widths = [
            dict(zip(sizes, widths, strict=True))
            for widths in product(*(range(2, size + 1) for size in sizes.values()))
        ]
        fitting = [w for w in all_widths if cost.of(graph, name, w) <= 0.4 * whole(graph, name)]
        best = min(map(left_out, fitting))
        ours, per_cost = (
            left_out(graph.widths(select(graph, scores, Budget(**{name: 0.4}), how=how, round_to=1)))
            for how in ("curves", "per_cost")
        )
        assert best <= ours * (1 + 1e-9) and ours <= per_cost and ours <= 1.1 * best
        better += ours < 0.999 * per_cost
    assert better >= 5


def test_per_cost_prefers_what_is_cheap():
    graph = GRAPHS["branches"]
    keep = select(graph, equal(graph), Budget(macs=0.5), how="per_cost", round_to=1)
    assert len(keep["hidden"]) == 30 and len(keep["stem"]) < 16


def test_patterns_name_axes_by_axis_module_parameter_and_input():
    graph = GRAPHS["branches"]

    def whole_axes(**options):
        return {
            name for name, (units, _) in min_units(graph, **options).items() if units == graph.axes[name].size
        }

    assert whole_axes() == set()
    assert whole_axes(freeze=["side"]) == whole_axes(freeze=["side.weight"]) == {"side"}
    assert (
        whole_axes(freeze=["first.?"]) == whole_axes(freeze=["first"]) == {"first.0"}
    )  # others write the stream, too
    assert whole_axes(freeze=["first", "second", "stem"]) == {"first.0", "second.0", "stem"}
    assert whole_axes(freeze=["head:in"]) == {"hidden"}
    assert whole_axes(freeze=["head"]) == set()  # its output is fixed anyway
    assert whole_axes(floor={"hid*": 1.0, "side": 9}) == {"hidden", "side"}
    assert whole_axes(floor={"*": 0.2, "hidden": 1.0, "hidd*": 0.3}) == set()
    assert whole_axes(cap={"second.0": 0}) == {"second.0"}
    assert min_units(graph, floor=7, cap=0.25)["side"] == (7, "floor") and min_units(graph, cap=0.25)[
        "stem"
    ] == (
        12,
        "cap",
    )


@pytest.mark.parametrize("option", [{"freeze": ["hiden"]}, {"floor": {"hiden": 3}}, {"cap": {"hiden": 0.5}}])
def test_a_pattern_without_a_match_names_the_nearest(option):
    graph = GRAPHS["branches"]
    with pytest.raises(
        UserError, match=r"pattern 'hiden' matches no axis, kind, module or parameter\. Nearest: hidden"
    ):
        select(graph, equal(graph), Budget(macs=0.5), **option)


def test_unreachable_says_what_can_be_reached_and_what_holds_it_up():
    graph = GRAPHS["branches"]
    with pytest.raises(BudgetError) as caught:
        select(graph, equal(graph), Budget(macs=0.3), freeze=["stem"], floor={"second.0": 0.5})
    text = str(caught.value)
    reach = cost.of(graph, "macs", {"stem": 16, "first.0": 3, "second.0": 10, "side": 1, "hidden": 3})
    assert (
        f"{format_number(reach)} at the least, {reach / whole(graph):.4f} of the {format_number(whole(graph))}"
        in text
    )
    assert "stem keeps 16 of 16 (frozen by 'stem')" in text and "second.0 keeps 10 of 20 (floor)" in text
    with pytest.raises(BudgetError, match=r"first.0 keeps 24 of 24 \(cap, in blocks of 32\)"):
        select(graph, equal(graph), Budget(macs=0.5), cap=2, round_to=32)


def test_reach_is_what_it_says():
    graph = GRAPHS["chain"]
    reach = cost.of(graph, "macs", {name: math.ceil(axis.size / 10) for name, axis in graph.axes.items()})
    keep = select(graph, equal(graph), Budget(macs=int(reach)))
    assert spent(graph, keep) == reach
    with pytest.raises(BudgetError):
        select(graph, equal(graph), Budget(macs=int(reach) - 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": None}, "no scores for axis hidden"),
        ({"hidden": torch.ones(29)}, r"scores of axis hidden: expected shape \(30,\), got \(29,\)"),
        ({"side": torch.tensor([1.0] * 8 + [math.nan])}, "scores of axis side: 1 of 9 are NaN or infinite"),
        ({"side": torch.full((9,), math.inf)}, "scores of axis side: 9 of 9 are NaN or infinite"),
    ],
)
def test_scores_that_do_not_fit_are_refused_by_name(change, message):
    graph = GRAPHS["branches"]
    scores = {name: score for name, score in (equal(graph) | change).items() if score is not None}
    with pytest.raises(UserError, match=message):
        select(graph, scores, Budget(macs=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "globally"}, "Did you mean global"),
        ({"round_to": 0}, "round_to should be a whole number from 1, but is 0; the nearest is 1"),
        ({"round_to": 2.5}, "round_to should be a whole number from 1, but is 2.5; the nearest is 3"),
        ({"floor": 1.5}, "floor should be an int .* but is 1.5; the nearest is 1.0"),
        ({"cap": {"side": -1}}, "cap should be an int .* but is -1; the nearest is 0"),
        ({"freeze": "stem"}, "expected a list of patterns"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    graph = GRAPHS["branches"]
    with pytest.raises(UserError, match=message):
        select(graph, equal(graph), Budget(macs=0.5), **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one of macs, params, latency_ms, memory_mb, weights_mb, cache_mb; got none"),
        ({"macs": 0.0}, "expected a fraction"),
        ({"macs": -3}, "macs=-3"),
        ({"macs": math.nan}, "macs=nan"),
        ({"memory_mb": math.inf}, "memory_mb=inf"),
        ({"macs": True}, "macs=True"),
        ({"macs": "half"}, "macs='half'"),
        ({"macs": 1}, "ambiguous"),
        ({"params": 1.5}, "ambiguous"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        Budget(**given)


def test_a_budget_is_a_share_or_an_amount():
    assert Budget(macs=0.5).limit(300) == 150 and Budget(macs=1.0).limit(300) == 300
    assert Budget(macs=200).limit(300) == 200 and Budget(memory_mb=1.5).limit(3.0) == 1.5
    assert Budget(latency_ms=1).limit(3.0) == 1
    assert Budget.parse("params=200000") == Budget(params=200000)
    assert Budget.parse("macs=2e6") == Budget(macs=2e6) and Budget.parse("macs=0.5") == Budget(macs=0.5)
    with pytest.raises(BudgetError, match="above what the model costs unpruned, 300"):
        Budget(macs=400).limit(300)
    with pytest.raises(UserError, match="Did you mean macs"):
        Budget.parse("mac=0.5")
    with pytest.raises(UserError, match=r"something like macs=0\.5"):
        Budget.parse("macs=half")
    assert str(Budget(macs=0.5)) == "macs at most 0.5 of before"
    assert str(Budget(macs=2_500_000)) == "macs at most 2.5 M"


def test_milliseconds_that_nobody_measures_are_refused():
    graph = GRAPHS["chain"]
    with pytest.raises(
        UserError, match=r"they are measured\. Measure first.*\n.*prunus\.latency\.measure_tables"
    ):
        select(graph, equal(graph), Budget(latency_ms=3.0))


def test_a_price_of_ones_own_is_kept_to():
    graph = GRAPHS["branches"]
    first = torch.tensor([float(name == "stem") for name in graph.axes], dtype=torch.float64)
    keep = select(graph, equal(graph), Budget(macs=0.5), price=lambda widths: widths @ first)
    assert len(keep["stem"]) == 8
    assert all(len(keep[name]) == axis.size for name, axis in graph.axes.items() if name != "stem")


def test_selection_passes_its_options_on():
    graph, scores = GRAPHS["branches"], equal(GRAPHS["branches"])
    options = {"how": "uniform", "round_to": 2, "floor": 0.3, "cap": 0.6, "freeze": ("side",)}
    keep = Selection(**options).select(graph, scores, Budget(macs=0.5))
    assert keep == select(graph, scores, Budget(macs=0.5), **options)
    assert Selection().select(graph, scores, Budget(macs=0.5)) == select(graph, scores, Budget(macs=0.5))


def test_plan_is_a_table_of_widths_and_costs():
    graph = GRAPHS["branches"]
    keep = {"stem": list(range(8)), "hidden": [0, 3]}
    table = plan(graph, keep)
    assert table.axes["stem"] == (16, 8) and table.axes["side"] == (9, 9)
    assert table.costs["macs"] == (whole(graph), spent(graph, keep))
    lines = str(table).splitlines()
    assert lines[0].split() == ["axis", "before", "after", "kept"]
    assert "stem".ljust(10) + "         16          8    50.0%" in lines
    assert [line.split()[0] for line in lines[-4:]] == ["macs", "params", "memory_mb", "weights_mb"]
    with pytest.raises(UserError, match="unknown axis 'stm'"):
        plan(graph, {"stm": [0]})


def test_quality_takes_any_widths_until_no_unit_fits_and_speed_multiples():
    graph = GRAPHS["chain"]
    scores = equal(graph)
    fast, best = (
        Selection(prefer=wish).select(graph, scores, Budget(macs=0.5)) for wish in ("speed", "quality")
    )
    assert all(with_more(graph, best, axis, 1) > 0.5 * whole(graph) for axis in best)
    assert best == select(graph, scores, Budget(macs=0.5), round_to=1)
    assert fast == select(graph, scores, Budget(macs=0.5)) != best
    with pytest.raises(UserError, match="give one of them"):
        Selection(prefer="quality", round_to=8)


def test_what_may_be_chosen_of_an_axis_ends_with_a_whole_block():
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    graph = trace(model, torch.zeros(2, 4))
    scores = {"0": torch.arange(32.0)}
    budget, there = Budget(macs=0.9), {"0": range(27)}
    assert select(graph, scores, budget, within=there, round_to=4)["0"] == list(range(3, 27))
    assert select(graph, scores, budget, within={"0": range(3)}, round_to=4)["0"] == [0, 1, 2]
    assert len(select(graph, scores, Budget(macs=1.0), round_to=5)["0"]) == 32  # whole
