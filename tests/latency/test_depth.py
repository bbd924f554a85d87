"""Milliseconds of networks whose blocks are skipped. With a fake clock everything is exact. Source: ours."""

from functools import partial
from math import prod

import pytest
import torch
from torch import nn

import prunus
from prunus import cli, latency
from prunus.errors import BudgetError, UserError
from prunus.export import programs
from prunus.files import read_json
from prunus.latency import operators, profiling
from prunus.latency.meter import NEAR
from prunus.latency.operator_timing import RUNTIMES
from prunus.latency.predictor import first_units
from prunus.methods.structure import Config as Structure
from prunus.selection import Budget, Metered, price_of
from tests.lib.blocks import llama
from tests.lib.latency import WRONG, Bent, Fake, FakeCall

DEPTH = 5


class Branch(nn.Module):
    """Two layers, whose result is added to what they read."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        return self.down(self.up(x).relu())


class Layer(nn.Module):
    """Two branches: a block in which there are two blocks."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = Branch(width, 48), Branch(width, 24)

    def forward(self, x):
        x = x + self.first(x)
        return x + self.second(x)


class Net(nn.Module):
    """Layers one after the other."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 5)
        self.layers = nn.Sequential(*(Layer(width) for _ in range(DEPTH)))

    def forward(self, x):
        return self.head(self.layers(self.stem(x)))


def by_work(operator, sizes):
    """Milliseconds that linear interpolation predicts exactly; the zeros of a skipped branch are free."""
    if operator.op.name == "zeros_like":
        return 0.0
    return 1e-3 * prod(sizes) * (3 if operator.kind == "others" else 1)


def exact(**options):
    return Fake(by_work, **options)


torch.manual_seed(0)
MODEL, EXAMPLE = Net().eval(), torch.randn(4, 6)
GRAPH = prunus.trace(MODEL, EXAMPLE)
NAMES = list(GRAPH.deep.axes)
WHOLE = torch.tensor([[axis.size for axis in GRAPH.deep.axes.values()]], dtype=torch.float64)
LAYERS = [f"layers.{number}:depth" for number in range(DEPTH)]


def table_of(runtime, folder, graph=GRAPH.deep):
    return latency.measure_tables(MODEL, graph, runtime=runtime, cache=folder)


def measured(runtime, keep):
    """The share of the original's time that a fake runtime takes for a keep."""
    small = prunus.shrink(MODEL, GRAPH, keep, verify="off")
    (whole, *_), (part, *_) = runtime.race([FakeCall(MODEL, EXAMPLE), FakeCall(small, EXAMPLE)], 1, None)
    return part / whole


def without(*blocks):
    """The widths (1, A) of the network without some blocks."""
    widths = WHOLE.clone()
    widths[0, [NAMES.index(f"{block}:depth") for block in blocks]] = 0
    return widths


def gone(keep):
    return [name for name, units in keep.items() if not units]


@pytest.fixture(scope="module")
def times(tmp_path_factory):
    """The folder of times by the exact clock, measured once."""
    return tmp_path_factory.mktemp("times")


@pytest.fixture
def table(times):
    return table_of(exact(), times)


@pytest.fixture
def meter(times):
    return latency.Meter(MODEL, GRAPH, runtime=exact(), cache=times)


# ------------------------------------------------------------------------------------ prediction
def test_with_all_blocks_the_price_is_that_of_the_graph_without_them(table, times):
    deep, plain = table, table_of(exact(), times, GRAPH)
    assert deep.is_deep and not plain.is_deep
    assert deep.price(WHOLE).item() == pytest.approx(deep.original_ms)
    for row in profiling.random_widths(GRAPH, 12):
        widths = torch.tensor([row])
        assert deep.price(widths).item() == pytest.approx(plain.price(widths).item(), rel=1e-6)
        whole = torch.cat([widths, torch.ones(1, len(GRAPH.blocks))], 1)
        assert torch.equal(deep.price(whole), deep.price(widths))


@pytest.mark.parametrize(
    "blocks",
    [
        ["layers.2"],
        ["layers.2.first"],
        ["layers.2.second", "layers.3.first"],
        ["layers.1", "layers.3", "layers.2.second"],
        ["layers.2", "layers.2.first", "layers.2.second"],
    ],
)
def test_skipped_blocks_save_their_share_of_the_measured_time(table, blocks):
    predicted = (table.price(without(*blocks)) / table.original_ms).item()
    share = measured(exact(), {f"{block}:depth": [] for block in blocks})
    assert share < 1 and predicted == pytest.approx(share, rel=1e-6)


def test_the_prediction_is_right_for_blocks_and_widths_together(table):
    assert table.fit.r2 > 1 - 1e-9 and table.fit.worst_error < 1e-6
    for row in profiling.random_widths(GRAPH.deep, 15):
        predicted = (table.price(torch.tensor([row])) / table.original_ms).item()
        assert predicted == pytest.approx(measured(exact(), first_units(GRAPH.deep, row)), rel=1e-6)


def test_a_block_in_a_skipped_block_costs_nothing(table):
    outer, both = without("layers.2"), without("layers.2", "layers.2.first")
    assert torch.equal(table.price(outer), table.price(both))
    assert table.price(outer) < table.price(without("layers.2.first", "layers.2.second")) < table.original_ms
    half = WHOLE.clone()
    half[0, [NAMES.index("layers.2:depth"), NAMES.index("layers.2.first:depth")]] = 0.5
    first = table.original_ms - table.price(without("layers.2.first"))
    rest = table.original_ms - table.price(outer) - first
    saved = table.original_ms - table.price(half)
    assert saved.item() == pytest.approx((0.75 * first + 0.5 * rest).item(), rel=1e-6)


def test_no_prediction_falls_when_a_width_or_a_block_rises(tmp_path):
    generator = torch.Generator().manual_seed(0)
    table = table_of(Fake(lambda op, sizes: torch.rand((), generator=generator).item()), tmp_path)
    rows = torch.rand(100, len(NAMES), generator=generator, dtype=torch.float64) * WHOLE
    rows = rows.maximum(torch.where(WHOLE > 1, torch.ones_like(WHOLE), torch.zeros_like(WHOLE)))
    for place in range(len(NAMES)):
        more = rows.clone()
        more[:, place] = (more[:, place] + torch.rand(100, generator=generator)).minimum(WHOLE[0, place])
        assert (table.price(more) >= table.price(rows) - 1e-9).all()


def test_predictions_can_be_differentiated_in_blocks(table):
    widths = WHOLE.clone().requires_grad_()
    table.price(widths).sum().backward()
    for block in ("layers.2", "layers.3.second"):
        saved = table.original_ms - table.price(without(block))
        slope = widths.grad[0, NAMES.index(f"{block}:depth")]
        assert slope.item() == pytest.approx(saved.item()) and slope > 0
    with pytest.raises(UserError, match=rf"should be .candidates, {len(NAMES)}., are .2, 7."):
        table.price(torch.ones(2, 7))


def test_operators_of_fixed_sizes_count_in_blocks_alone():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*(Branched() for _ in range(3)))

        def forward(self, x):
            return self.layers(x)

    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 4)

        def forward(self, x):
            return x + self.down(self.up(x.tanh()))

    graph = prunus.trace(Fixed(), torch.randn(2, 4))
    plain, deep = operators.operators(graph), operators.operators(graph.deep)
    assert len(graph.blocks) == 3 and all(op.variables and not op.blocks for op in plain)
    fixed = [op for op in deep if not op.variables]
    assert sorted(op.op.name for op in fixed) == ["add"] * 3 + ["tanh"] * 3
    assert {op.blocks for op in fixed} == {(name,) for name in graph.blocks}
    assert len(deep) == len(plain) + 6


# ------------------------------------------------------------------------------------ time on disk
def test_blocks_do_not_change_what_is_measured_of_widths(tmp_path, times):
    plain = table_of(exact(), times, GRAPH)
    table_of(exact(), tmp_path)
    again = exact()
    both = table_of(again, tmp_path, GRAPH)
    assert again.raced == 1 and not again.timed
    rows = torch.tensor(profiling.random_widths(GRAPH, 20))
    assert torch.equal(plain.price(rows), both.price(rows))
    assert profiling._fingerprint(GRAPH) != profiling._fingerprint(GRAPH.deep)


def test_networks_without_blocks_are_measured_once(tmp_path):
    first, again = exact(), exact()
    before, after = table_of(first, tmp_path), table_of(again, tmp_path)
    assert first.raced == 1 and not again.raced and not again.timed
    rows = torch.tensor(profiling.random_widths(GRAPH.deep, 20))
    assert torch.equal(before.price(rows), after.price(rows))


def test_some_random_networks_are_narrow_some_skip_blocks_and_some_do_both():
    rows = torch.tensor(profiling.random_widths(GRAPH.deep, profiling.NETWORKS))
    units = len(GRAPH.axes)
    narrow, skips = (rows[:, :units] < WHOLE[0, :units]).any(1), (rows[:, units:] == 0).any(1)
    assert min((narrow & ~skips).sum(), (skips & ~narrow).sum(), (skips & narrow).sum()) >= 3
    assert {name for name, kept in zip(NAMES, rows.T.tolist(), strict=True) if 0 in kept} == {
        name for name, block in GRAPH.blocks.items() if not block.protected
    }
    for part in (torch.arange(1, len(rows) + 1) % 3 == 2, torch.arange(1, len(rows) + 1) % 3 != 2):
        assert (narrow & ~skips & part).any() and (skips & part).any()  # held out, and fitted on


# --------------------------------------------------------------------------------------- selection
@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_the_limit_holds_for_what_is_measured(times, how, share):
    runtime = Bent(WRONG[how], by_work)
    runtime.raced = 1  # the tables are known
    scores = prunus.scores.random(GRAPH.deep, 3)
    budget = Metered(latency_ms=share, meter=latency.Meter(MODEL, GRAPH, runtime=runtime, cache=times))
    try:
        keep = prunus.select(GRAPH, scores, budget, round_to=1)
    except BudgetError as error:
        assert "cannot be met" in str(error) and how == "hardly anything can be saved"
        return
    figures = budget.meter.figures(keep)
    assert measured(runtime, keep) <= share
    assert figures["measured_ms"] / figures["original_ms"] == pytest.approx(measured(runtime, keep))
    assert figures["measured_ms"] / figures["original_ms"] > share - 0.25  # a layer is a fifth


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_blocks_alone_leave_widths_whole_and_one_block_more_exceeds_the_limit(meter, share):
    scores = {name: torch.tensor([float(number)]) for number, name in enumerate(LAYERS)}
    keep = prunus.select(GRAPH, scores, Metered(latency_ms=share, meter=meter))
    assert all(len(keep[name]) == axis.size for name, axis in GRAPH.axes.items())
    lost = gone(keep)
    assert lost == LAYERS[1 : 1 + len(lost)]  # the first stays, then those with the lowest scores go
    assert measured(meter.runtime, keep) <= share
    assert measured(meter.runtime, keep | {lost[-1]: [0]}) > share


@pytest.mark.parametrize("how", ["global", "per_cost", "curves", "uniform", "isomorphic"])
def test_blocks_compete_with_units(meter, how):
    scores = prunus.scores.random(GRAPH.deep, 0)
    keep = prunus.select(GRAPH, scores, Metered(latency_ms=0.6, meter=meter), how=how, round_to=1)
    assert 0.6 - 2 * NEAR < measured(meter.runtime, keep) <= 0.6
    assert any(len(keep[name]) < axis.size for name, axis in GRAPH.axes.items())


def test_a_worthless_block_goes_and_a_precious_one_stays(meter):
    units = {name: torch.ones(axis.size) for name, axis in GRAPH.axes.items()}
    blocks = {name: torch.tensor([1e9]) for name in GRAPH.blocks} | {LAYERS[2]: torch.tensor([1e-9])}
    budget = Metered(latency_ms=0.8, meter=meter)
    keep = prunus.select(GRAPH, units | blocks, budget, how="per_cost", round_to=1)
    assert gone(keep) == [LAYERS[2]]
    assert 0.8 - 2 * NEAR < measured(meter.runtime, keep) <= 0.8


def test_nested_blocks_go_by_themselves(meter):
    scores = {f"layers.{number}.first:depth": torch.tensor([float(number)]) for number in range(DEPTH)}
    keep = prunus.select(GRAPH, scores, Metered(latency_ms=0.75, meter=meter))
    assert gone(keep) == ["layers.1.first:depth", "layers.2.first:depth", "layers.3.first:depth"]
    assert measured(meter.runtime, keep) <= 0.75


def test_milliseconds_are_met_beside_another_cost(meter):
    scores = prunus.scores.random(GRAPH.deep, 1)
    for limits in ({"latency_ms": 0.6, "macs": 0.4}, {"latency_ms": 0.5, "macs": 0.9, "params": 0.8}):
        keep = prunus.select(GRAPH, scores, Metered(**limits, meter=meter))
        found = {"latency_ms": measured(meter.runtime, keep)}
        found["macs"] = prunus.macs(GRAPH, keep) / prunus.macs(GRAPH)
        found["params"] = prunus.params(GRAPH, keep) / prunus.params(GRAPH)
        assert all(found[name] <= limit for name, limit in limits.items())
        assert max(found[name] / limit for name, limit in limits.items()) > 0.85


def test_milliseconds_can_be_given_as_a_number(meter):
    scores = prunus.scores.random(GRAPH.deep, 1)
    limit = 0.7 * meter.deep().table.original_ms
    assert limit > 1
    keep = prunus.select(GRAPH, scores, Metered(latency_ms=limit, meter=meter))
    assert 0.6 * limit < meter.figures(keep)["measured_ms"] <= limit
    with pytest.raises(BudgetError, match="above what the model costs unpruned"):
        prunus.select(GRAPH, scores, Metered(latency_ms=1e6, meter=meter))


def test_widths_that_are_given_are_kept_to(meter):
    scores = prunus.scores.random(GRAPH.deep, 4)
    widths = latency.fast_widths(GRAPH, meter.price)
    keep = prunus.select(GRAPH, scores, Metered(latency_ms=0.6, meter=meter), widths=widths)
    assert all(len(keep[name]) in (*widths[name], GRAPH.axes[name].size) for name in GRAPH.axes)
    assert measured(meter.runtime, keep) <= 0.6


def test_what_cannot_be_met_says_which_blocks_stay(meter):
    scores = {name: torch.ones(1) for name in LAYERS}
    with pytest.raises(BudgetError, match=r"layers.0:depth keeps 1 of 1 \(first or last block\).*in fake"):
        prunus.select(GRAPH, scores, Metered(latency_ms=0.2, meter=meter))
    with pytest.raises(BudgetError, match="cannot be met"):
        prunus.select(GRAPH, scores, Metered(latency_ms=1e-4, meter=meter), floor={"*:depth": 0})


def test_a_table_of_widths_alone_is_refused_and_one_of_blocks_serves_for_both(times, table):
    runtime = exact()
    plain, deep = table_of(runtime, times, GRAPH), table
    units, blocks = prunus.scores.random(GRAPH, 0), prunus.scores.random(GRAPH.deep, 0)
    choose = partial(latency.select_measured, MODEL, GRAPH, runtime=runtime)
    with pytest.raises(UserError, match=r"measure_tables\(model, graph\.deep\)"):
        choose(blocks, Budget(latency_ms=0.6), plain)
    for scores in (units, blocks):
        keep, figures = choose(scores, Budget(latency_ms=0.6), deep)
        assert (keep.keys() & GRAPH.blocks.keys() == set()) == (scores is units)
        assert figures["measured_ms"] <= 0.6 * figures["original_ms"]
        assert figures["measured_ms"] / figures["original_ms"] == pytest.approx(measured(runtime, keep))


def test_a_meter_prices_and_measures_both_kinds_of_widths(meter):
    budget = Metered(latency_ms=0.5, meter=meter)
    assert price_of(GRAPH.deep, budget)(WHOLE).item() == pytest.approx(meter.deep().table.original_ms)
    assert price_of(GRAPH, budget)(WHOLE[:, : len(GRAPH.axes)]).item() == pytest.approx(
        meter.table.original_ms
    )
    assert meter.deep().deep() is meter.deep()
    keep = {LAYERS[1]: []}
    figures = meter.figures(keep)
    assert figures["measured_ms"] / figures["original_ms"] == pytest.approx(measured(meter.runtime, keep))
    for each in (meter, meter.deep()):
        with pytest.raises(UserError, match=r"layers\.9:depth"):
            each.figures({"layers.9:depth": []})
    own = meter.local_copy()
    assert own.deep() is not meter.deep() and own.figures(keep)["measured_ms"] == figures["measured_ms"]


def test_the_structure_of_another_run_is_measured_with_its_blocks(meter, tmp_path):
    keep = {name: list(range(axis.size)) for name, axis in GRAPH.deep.axes.items()} | {LAYERS[3]: []}
    prunus.save(tmp_path / "small", prunus.shrink(MODEL, GRAPH, keep), keep, GRAPH)
    config = Structure(of=str(tmp_path / "small"))
    assert gone(config.keep(GRAPH, Metered(latency_ms=0.9, meter=meter))) == [LAYERS[3]]
    with pytest.raises(BudgetError, match=r"latency_ms at most 0\.5"):
        config.keep(GRAPH, Metered(latency_ms=0.5, meter=meter))


def test_a_step_of_decoding_is_measured_of_models_without_some_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "NETWORKS", 5)
    monkeypatch.setattr(profiling, "LEAST_NETWORKS", 5)
    steps = []

    class Counted(Fake):
        def prepare(self, model, example):
            steps.append(latency.Decoding(4).prepare(model, example)())
            return super().prepare(model, example)

    model, _ = llama(layers=4)
    graph = prunus.trace(model, {"input_ids": torch.arange(2)[:, None]})
    meter = latency.Meter(model, graph, runtime=Counted(), cache=tmp_path)
    scores = {name: torch.tensor([float(number)]) for number, name in enumerate(graph.blocks)}
    keep = prunus.select(graph, scores, Metered(latency_ms=0.8, meter=meter))
    figures = meter.figures(keep)
    assert gone(keep) and figures["measured_ms"] <= 0.8 * figures["original_ms"]
    assert len(steps) > 2


# -------------------------------------------------------------------------------------------- runs
@pytest.fixture
def fake_torch(monkeypatch, tmp_path):
    """Runs that measure in torch get a fake clock; times are stored in the test's own folder."""
    monkeypatch.setitem(RUNTIMES, "torch", exact)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "taylor", "--set", "depth=True"),
        ("--method", "sglp", "--set", "batches=1"),
        ("--method", "taylor", "--set", "depth=True", "--set", "prefer=measured"),
    ],
)
def test_a_run_skips_blocks_for_milliseconds(fake_torch, tmp_path, options, capsys):
    out = tmp_path / "run"
    arguments = ["run", "--model", "tests.lib.blocks:Stack", "--data", "digits", "--out", str(out), *options]
    arguments += ["--budget", "latency_ms=0.6", "--base-epochs", "1", "--epochs", "1"]
    assert cli.main(arguments) == 0
    result = read_json(out / "result.json")
    found = result["latency"]
    assert found["measured_ms"] <= found["limit_ms"] == pytest.approx(0.6 * found["original_ms"])
    skipped = [name for name, (kept, _) in result["widths"].items() if name.endswith(":depth") and not kept]
    assert skipped or "sglp" not in options
    assert "Met, as measured" in " ".join(capsys.readouterr().out.split())
    assert "milliseconds in fake" in (out / "report.html").read_text()


# ---------------------------------------------------------------------------------- a real clock
@pytest.mark.slow
@pytest.mark.parametrize(
    "runtime",
    [
        "torch",
        pytest.param(
            "onnxruntime",
            marks=pytest.mark.skipif(bool(programs.missing_for_onnx()), reason="not installed"),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")  # from the exporter
def test_real_times_of_skipped_blocks_are_predicted_within_a_factor_of_two(tmp_path, runtime, monkeypatch):
    monkeypatch.setattr(profiling, "NETWORKS", 9)
    monkeypatch.setattr(profiling, "LEAST_NETWORKS", 9)
    model, example = Net(256).eval(), torch.randn(256, 6)
    graph = prunus.trace(model, example)
    skipped = {f"layers.{number}:depth": [] for number in (1, 3)} | {"layers.2.first:depth": []}
    small = prunus.shrink(model, graph, skipped, verify="off")
    widths = torch.tensor([list(graph.widths(skipped).values())])
    found = []
    for attempt in range(3):  # other programs may disturb an attempt
        table = latency.measure_tables(
            model, graph.deep, runtime=runtime, seconds=10, cache=tmp_path / str(attempt)
        )
        predicted = table.price(widths).item() / table.original_ms
        times = latency.measure({"whole": model, "small": small}, example, runtime=runtime, seconds=1)
        found.append((1 - predicted) / (1 - times["small"].median_ms / times["whole"].median_ms))
        if 0.5 < found[-1] < 2:
            return
    raise AssertionError(f"share predicted to be saved by the measured one: {found}")
