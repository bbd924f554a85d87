"""Milliseconds as a budget: with a fake clock everything is exact; a few small tests use a real one."""

import json
import os
import statistics
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunus import cli, errors, latency, scores
from prunus.errors import BudgetError, PruningError, UserError
from prunus.export import programs
from prunus.files import read_json
from prunus.graph import trace
from prunus.latency import cache, clock, operator_timing, operators, predictor, profiling
from prunus.latency import table as time_table
from prunus.latency.meter import NEAR, surgery
from prunus.latency.operator_timing import RUNTIMES, Like
from prunus.latency.profiling import measure_tables
from prunus.latency.table import Table
from prunus.methods import Pruned
from prunus.run import RunFolder, Settings, preview, prune
from prunus.selection import Budget, Metered, Selection, params, price_of, select
from tests.lib import nets
from tests.lib.latency import WRONG, Bent, Fake, FakeCall, by_size
from tests.lib.two_processes import ROOT, launched

HAS_ONNX = not programs.missing_for_onnx()


class Net(nn.Module):
    """Convolutions on a residual stream, one of them depthwise, norms, and a linear head."""

    def __init__(self, width=32, inner=48):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.up, self.down = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)
        self.depth = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.hidden, self.head = nn.Linear(width, 40), nn.Linear(40, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.down(F.relu(self.depth(self.up(x))))
        return self.head(F.relu(self.hidden(x.mean((2, 3)))))


MODEL, EXAMPLE = Net().eval(), torch.randn(2, 3, 8, 8)
GRAPH = trace(MODEL, EXAMPLE)


def table_of(runtime, folder, model=MODEL, graph=GRAPH):
    return measure_tables(model, graph, runtime=runtime, cache=folder)


def measured(runtime, keep, model=MODEL, graph=GRAPH):
    """The share of the original's time that a fake runtime takes for a keep."""
    small = surgery.shrink(model, graph, keep, verify="off")
    (whole, *_), (part, *_) = runtime.race([FakeCall(model, EXAMPLE), FakeCall(small, EXAMPLE)], 1, None)
    return part / whole


def random_rows(number=50, seed=1):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([axis.size for axis in GRAPH.axes.values()])
    rows = (torch.rand(number, len(sizes), generator=generator) * sizes).ceil().long()
    return rows.clamp_min(2)  # an axis of one unit is no axis, so the fake clock does not see it


# ------------------------------------------------------------------------------------- operators
@pytest.mark.parametrize("name", nets.NETS)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_operators_run_alone_at_any_width_and_return_the_right_shapes(name, share):
    model, example = nets.build(name)
    found = operators.operators(trace(model, example))
    assert found
    ran = 0
    for operator in found:
        sizes = tuple(max(1, int(share * size)) for size in operator.full)
        pool = operator_timing._Pool(Like.of(model))
        if operator_timing._torch_call(operator, sizes, pool) is None:
            assert operator.op.name == "masked_fill"  # its mask was computed
            continue
        size = partial(operators.size_at, sizes=dict(zip(operator.variables, sizes, strict=True)))
        args, kwargs = operator.build(sizes, partial(pool.tensor, operator, torch.int64))
        with torch.no_grad():
            results = operator.op.func(*args, **kwargs)
        for result, tag in zip(
            results if isinstance(results, tuple) else (results,), operator.op.results, strict=True
        ):
            assert tag is None or list(result.shape) == list(map(size, tag.dims)), operator.key
        ran += 1
    assert ran > 0.9 * len(found)


def test_widths_that_change_nothing_are_not_timed_and_equal_operators_share_a_table():
    found = operators.operators(GRAPH)
    assert {op.kind for op in found} == {
        "convolutions",
        "grouped convolutions",
        "products",
        "norms",
        "others",
    }
    assert len({op.key for op in found if op.op.name == "relu"}) == 2  # twice on (2, w, 8, 8), once on (2, w)
    assert len([op for op in found if op.op.name == "relu"]) == 3
    assert not [op for op in found if op.op.name in ("view", "t", "permute")]


def test_the_grid_holds_the_multiples_that_hardware_prefers():
    found = {op.full: op for op in operators.operators(trace(Net(512, 96), EXAMPLE)) if len(op.full) == 2}
    for level in time_table.GRIDS:
        sizes = time_table.points(found[512, 96], level)
        assert sizes[0] == (512, 96) and (1, 1) in sizes
    fine = time_table.points(found[512, 96], "fine")
    assert {32, 48, 64, 96, 128, 256, 384} <= {a for a, _ in fine}
    assert {8, 16, 32, 48, 64} <= {b for _, b in fine}
    assert len(fine) > len(time_table.points(found[512, 96], "coarse"))


def test_tables_rise_and_are_exact_where_times_do():
    grid = torch.tensor([1.0, 8.0, 16.0, 40.0], dtype=torch.float64)
    table = Table({(a.item(), b.item()): (3 * a + a * b).item() for a in grid for b in grid})
    a, b = torch.rand(2, 100, dtype=torch.float64) * 39 + 1
    assert torch.allclose(table([a, b]), 3 * a + a * b)
    noisy = torch.rand(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rising = time_table.make_rising(noisy)
    assert (rising.diff(dim=0) >= 0).all() and (rising.diff(dim=1) >= 0).all()
    assert (rising >= noisy.min()).all() and (rising <= noisy.max()).all()


# ------------------------------------------------------------------------------------ prediction
def test_the_prediction_is_exact_where_networks_are_sums_of_operators(tmp_path):
    runtime = Fake()
    table = table_of(runtime, tmp_path)
    assert table.fit.r2 > 1 - 1e-9 and table.fit.worst_error < 1e-6
    rows = random_rows(12)
    predicted = table.price(rows) / table.original_ms
    for row, share in zip(rows.tolist(), predicted.tolist(), strict=True):
        assert share == pytest.approx(measured(runtime, predictor.first_units(GRAPH, row)), rel=1e-6)


def test_kinds_of_operators_have_factors_of_their_own(tmp_path):
    def joined(operator, sizes):
        return by_size(operator, sizes) * (0.0 if operator.kind == "norms" else 1.0)

    class Joins(Fake):
        """Norms take time alone, but in networks they are fused with other operators."""

        def race(self, calls, seconds, step):
            self.of_operator = joined
            return super().race(calls, seconds, step)

    def heavy_norms(operator, sizes):
        return by_size(operator, sizes) * (30.0 if operator.kind == "norms" else 1.0)

    table = table_of(Joins(heavy_norms), tmp_path)
    assert table.fit.worst_error < 0.02
    kinds = dict(zip(operators.KINDS, table._factors.tolist(), strict=True))
    assert kinds["norms"] < 0.1 * kinds["convolutions"]


def test_no_prediction_falls_when_a_width_rises(tmp_path):
    generator = torch.Generator().manual_seed(0)
    table = table_of(Fake(lambda op, sizes: torch.rand((), generator=generator).item()), tmp_path)
    rows = random_rows(200)
    for axis, size in enumerate(axis.size for axis in GRAPH.axes.values()):
        wider = rows.clone()
        wider[:, axis] = (wider[:, axis] + 1 + rows[:, 0] % 5).clamp_max(size)
        assert (table.price(wider) >= table.price(rows) - 1e-12).all()


def test_predictions_can_be_differentiated_and_refuse_other_shapes(tmp_path):
    table = table_of(Fake(), tmp_path)
    rows = (random_rows(3).double() - 0.5).requires_grad_()
    table.price(rows).sum().backward()
    assert (rows.grad > 0).all()
    with pytest.raises(UserError, match=f"should be .candidates, {len(GRAPH.axes)}., are .2, 7."):
        table.price(torch.ones(2, 7))


def test_operators_that_do_not_run_alone_are_left_out_and_named(tmp_path):
    runtime = Fake(lambda op, sizes: None if op.op.name == "relu" else by_size(op, sizes))
    table = table_of(runtime, tmp_path)
    assert {text.partition(" ")[0] for text in table.left_out} == {"relu"}
    assert table.fit.worst_error < 1e-6


# ------------------------------------------------------------------------------------ time on disk
def test_what_was_measured_is_not_measured_again(tmp_path):
    first, again = Fake(), Fake()
    before = table_of(first, tmp_path)
    after = table_of(again, tmp_path)
    assert first.timed and first.raced == 1 and not again.timed and not again.raced
    assert before.measured == len(first.timed) and after.measured == 0
    assert torch.equal(before.price(random_rows()), after.price(random_rows()))


def test_other_models_find_the_operators_they_share(tmp_path):
    table_of(Fake(), tmp_path)
    other = Net(inner=64).eval()
    runtime = Fake()
    table_of(runtime, tmp_path, other, trace(other, EXAMPLE))
    assert runtime.raced == 1 and 0 < len(runtime.timed) < len(points_of(other))
    assert not any("relu.default([2, w0])" in key for key in runtime.timed)


def points_of(model):
    return [
        size for op in operators.operators(trace(model, EXAMPLE)) for size in time_table.points(op, "fine")
    ]


def test_times_of_other_circumstances_are_not_used(tmp_path):
    threads = torch.get_num_threads()
    table_of(Fake(), tmp_path)
    try:
        torch.set_num_threads(threads + 1)
        runtime = Fake()
        table_of(runtime, tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert runtime.timed and runtime.raced
    assert len(list(tmp_path.iterdir())) == 2
    doubled = Like.of(Net().double())
    assert cache.circumstances("torch", doubled) != cache.circumstances("torch", Like.of(MODEL))
    last = Like.of(Net().to(memory_format=torch.channels_last))
    assert last.channels_last and not Like.of(MODEL).channels_last


DAMAGES = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "not an object": lambda text: "[1, 2]",
    "other circumstances": lambda text: text.replace('"threads"', '"knots"'),
    "words for times": lambda text: text.replace('"original_ms": ', '"original_ms": "fast", "was": '),
    "no operators": lambda text: json.dumps(json.loads(text) | {"operators": 3}),
    "times below zero": lambda text: json.dumps(json.loads(text) | {"operators": {"a": {"1": -1.0}}}),
    "a time that is no number": lambda text: text.replace('"original_ms": ', '"original_ms": NaN, "was": '),
    "a time of zero": lambda text: text.replace('"original_ms": ', '"original_ms": 0.0, "was": '),
    "an unknown grid": lambda text: text.replace('"level": "fine"', '"level": "finest"'),
    "a later version": lambda text: text.replace("{", '{"format": 2,', 1),
    "no widths": lambda text: text.replace('"widths"', '"breadths"'),
    "widths of another model": lambda text: json.dumps(
        json.loads(text)
        | {
            "networks": {
                key: of | {"samples": [{"widths": [1], "share": 0.5}]}
                for key, of in json.loads(text)["networks"].items()
            }
        }
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_measured_again(tmp_path, damage):
    before = table_of(Fake(), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(DAMAGES[damage](file.read_text()))
    runtime = Fake()
    if damage == "widths of another model":
        after = table_of(runtime, tmp_path)
    else:
        with pytest.warns(UserWarning, match="are measured again"):
            after = table_of(runtime, tmp_path)
    assert runtime.raced == 1
    assert torch.equal(before.price(random_rows()), after.price(random_rows()))
    table_of(runtime, tmp_path)
    assert runtime.raced == 1


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="measured again next time"):
        table = table_of(Fake(), tmp_path / "file")
    assert table.fit.worst_error < 1e-6


def test_times_are_kept_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "prunus"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "prunus"


# --------------------------------------------------------------------------------------- selection
@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("share", [0.95, 0.8, 0.6])
def test_the_limit_holds_for_what_is_measured(tmp_path, how, share):
    runtime = Bent(WRONG[how])
    table = table_of(runtime, tmp_path)
    ranks = scores.magnitude(MODEL, GRAPH)
    options = {"round_to": 1}
    try:
        keep, figures = latency.select_measured(
            MODEL, GRAPH, ranks, Budget(latency_ms=share), table, runtime=runtime, **options
        )
    except BudgetError as error:
        least = {name: list(range(-(-axis.size // 10))) for name, axis in GRAPH.axes.items()}
        assert measured(runtime, least) > share and "cannot be met" in str(error)
        return
    assert measured(runtime, keep) <= share
    assert figures["measured_ms"] / figures["original_ms"] == pytest.approx(measured(runtime, keep))
    # it uses the budget: with two more units on every axis it would exceed it
    sizes = GRAPH.widths()
    wider = {name: list(range(min(sizes[name], len(units) + 2))) for name, units in keep.items()}
    assert measured(runtime, wider) > share or share - measured(runtime, keep) <= NEAR


def test_a_right_prediction_needs_one_proposal(tmp_path):
    runtime = Fake()
    table = table_of(runtime, tmp_path)
    keep, figures = latency.select_measured(
        MODEL,
        GRAPH,
        scores.magnitude(MODEL, GRAPH),
        Budget(latency_ms=0.6),
        table,
        runtime=runtime,
        round_to=1,
    )
    assert figures["tried"] == 1 and 0.58 <= measured(runtime, keep) <= 0.6
    assert figures["predicted_ms"] == pytest.approx(figures["measured_ms"], rel=1e-6)
    assert figures["r2"] > 0.999 and figures["worst_error"] < 1e-6 and figures["runtime"] == "fake"
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.parametrize("how", ["uniform", "curves"])
def test_the_units_kept_are_the_best_by_their_scores_whatever_was_measured_before(tmp_path, how):
    runtime = Fake()
    meter = latency.Meter(MODEL, GRAPH, runtime=runtime, cache=tmp_path)
    budget = Metered(latency_ms=0.6, meter=meter)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        ranks = {name: torch.rand(axis.size, generator=generator) for name, axis in GRAPH.axes.items()}
        keep = Selection(how=how).select(GRAPH, ranks, budget)
        assert measured(runtime, keep) <= 0.6
        for name, units in keep.items():
            assert set(units) == set(ranks[name].topk(len(units)).indices.tolist())


def test_milliseconds_are_met_beside_another_cost(tmp_path):
    runtime = Fake()
    meter = latency.Meter(MODEL, GRAPH, runtime=runtime, cache=tmp_path)
    ranks = scores.magnitude(MODEL, GRAPH)
    for limits in ({"latency_ms": 0.6, "params": 0.2}, {"latency_ms": 0.5, "params": 0.9}):
        keep = select(GRAPH, ranks, Metered(**limits, meter=meter))
        shares = measured(runtime, keep), params(GRAPH, keep) / params(GRAPH)
        assert shares[0] <= limits["latency_ms"] and shares[1] <= limits["params"]
        assert max(share / limit for share, limit in zip(shares, limits.values(), strict=True)) > 0.85


def test_milliseconds_can_be_given_as_a_number(tmp_path):
    runtime = Fake()
    table = table_of(runtime, tmp_path)
    limit = 0.7 * table.original_ms
    assert limit > 1
    ranks = scores.magnitude(MODEL, GRAPH)
    _, figures = latency.select_measured(
        MODEL, GRAPH, ranks, Budget(latency_ms=limit), table, runtime=runtime
    )
    assert 0.5 * limit < figures["measured_ms"] <= limit
    with pytest.raises(BudgetError, match="above what the model costs unpruned"):
        latency.select_measured(MODEL, GRAPH, ranks, Budget(latency_ms=1e6), table, runtime=runtime)
    with pytest.raises(
        UserError, match=r"needs a budget of latency_ms; for macs at most 0\.5 of before call select"
    ):
        latency.select_measured(MODEL, GRAPH, ranks, Budget(macs=0.5), table, runtime=runtime)


def test_a_budget_that_cannot_be_met_names_the_least_that_was_measured(tmp_path):
    runtime = Bent(lambda total: total + 60.0)  # the table believes that nearly all can be saved
    table = table_of(runtime, tmp_path)
    ranks = scores.magnitude(MODEL, GRAPH)
    with pytest.raises(BudgetError, match="measured in fake") as error:
        latency.select_measured(MODEL, GRAPH, ranks, Budget(latency_ms=0.2), table, runtime=runtime)
    least = {name: list(range(-(-axis.size // 10))) for name, axis in GRAPH.axes.items()}
    words = str(error.value)
    assert f"at the least, {measured(runtime, least):.4f} of the" in words and "Held up most by: " in words


def test_a_budget_that_the_prediction_calls_out_of_reach_is_measured_before_it_is_refused(tmp_path):
    class Pessimist(Fake):
        def race(self, calls, seconds, step):
            self.of_network = (lambda total: total) if self.raced else (lambda total: total + 200.0)
            return super().race(calls, seconds, step)

    runtime = Pessimist()
    table = table_of(runtime, tmp_path)
    assert (table.price(torch.ones(1, len(GRAPH.axes))) / table.original_ms).item() > 0.5
    ranks = scores.magnitude(MODEL, GRAPH)
    keep, figures = latency.select_measured(
        MODEL, GRAPH, ranks, Budget(latency_ms=0.3), table, runtime=runtime
    )
    assert measured(runtime, keep) <= 0.3 and figures["predicted_ms"] > figures["measured_ms"]


def test_a_network_within_the_budget_by_luck_is_not_chosen(tmp_path):
    class Lucky(Fake):
        """A runtime in which every network looks faster than it is when it is measured for the first time."""

        def __init__(self):
            super().__init__()
            self.seen = set()

        def race(self, calls, seconds, step):
            rounds = super().race(calls, seconds, step)
            if self.raced > 1:
                for number, call in enumerate(calls[1:], 1):
                    if call not in self.seen:
                        rounds[number] = [0.8 * ms for ms in rounds[number]]
                    self.seen.add(call)
            return rounds

    runtime = Lucky()
    table = table_of(runtime, tmp_path)
    ranks = scores.magnitude(MODEL, GRAPH)
    keep, _ = latency.select_measured(
        MODEL, GRAPH, ranks, Budget(latency_ms=0.6), table, runtime=runtime, round_to=1
    )
    assert measured(Fake(), keep) <= 0.6


def test_times_that_are_chance_alone_are_refused_with_advice(tmp_path):
    class Dice(Fake):
        def race(self, calls, seconds, step):
            rounds = super().race(calls, seconds, step)
            return (
                [rounds[0], *([10 * ms for ms in times] for times in rounds[1:])]
                if self.raced > 1
                else rounds
            )

    runtime = Dice()
    table = table_of(runtime, tmp_path)
    with pytest.raises(BudgetError):
        latency.select_measured(
            MODEL, GRAPH, scores.magnitude(MODEL, GRAPH), Budget(latency_ms=0.6), table, runtime=runtime
        )


def test_searches_can_use_the_price_of_a_metered_budget(tmp_path):
    meter = latency.Meter(MODEL, GRAPH, runtime=Fake(), cache=tmp_path)
    price = price_of(GRAPH, Metered(latency_ms=0.5, meter=meter))
    whole = torch.tensor([[axis.size for axis in GRAPH.axes.values()]])
    assert price(whole).item() == pytest.approx(meter.table.original_ms)
    everything = {name: list(range(axis.size)) for name, axis in GRAPH.axes.items()}
    figures = meter.figures(everything)
    assert figures["measured_ms"] == figures["original_ms"] == figures["predicted_ms"]


def test_unknown_runtimes_are_refused():
    with pytest.raises(UserError, match=r"unknown runtime 'onnx'\. Did you mean onnxruntime"):
        measure_tables(MODEL, GRAPH, runtime="onnx")
    with pytest.raises(UserError, match="runtime=torch needs a budget of latency_ms"):
        preview("zoo:digits_resnet", data="digits", settings=Settings(runtime="torch"))


# ------------------------------------------------------------------------------------------- runs
@pytest.fixture
def fake_torch(monkeypatch, tmp_path):
    """Runs that measure in torch get a fake clock; times are stored in the test's own folder."""
    made = []

    def make():
        made.append(Fake())
        return made[-1]

    monkeypatch.setitem(RUNTIMES, "torch", make)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


@pytest.mark.parametrize("method", ["taylor", "magnitude", "random"])
def test_a_run_meets_milliseconds_without_its_method_knowing(fake_torch, tmp_path, method, capsys):
    out = tmp_path / "run"
    arguments = ["run", "--model", "zoo:digits_resnet", "--data", "digits", "--out", str(out)]
    arguments += ["--method", method, "--budget", "latency_ms=0.7", "--base-epochs", "1", "--epochs", "1"]
    assert cli.main(arguments) == 0
    result = read_json(out / "result.json")
    found = result["latency"]
    assert found["measured_ms"] <= found["limit_ms"] == pytest.approx(0.7 * found["original_ms"])
    assert 0.6 < found["measured_ms"] / found["original_ms"] and result["budget"] == {"latency_ms": 0.7}
    assert {"predicted_ms", "r2", "worst_error", "held_out", "runtime", "threads"} <= found.keys()
    assert read_json(out / "stages" / "prune.json")["latency"] == found
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [event["measured_ms"] for event in events if event["event"] == "latency"] == [found["measured_ms"]]
    assert "Met, as measured" in " ".join(capsys.readouterr().out.split())
    page = (out / "report.html").read_text()
    assert "milliseconds in fake" in page and "Met, as measured" in page
    raced = sum(runtime.raced for runtime in fake_torch)
    (out / "stages" / "evaluate.json").unlink()
    assert cli.main([*arguments, "--resume"]) == 0
    assert sum(runtime.raced for runtime in fake_torch) == raced  # nothing is measured again
    assert read_json(out / "result.json")["latency"] == found


def test_a_budget_out_of_reach_is_refused_before_anything_is_trained(fake_torch, tmp_path):
    settings = Settings(base_epochs=1000)
    with pytest.raises(BudgetError, match="cannot be met"):
        prune(
            "zoo:digits_resnet",
            data="digits",
            budget=Budget(latency_ms=0.01),
            out=tmp_path / "run",
            settings=settings,
        )
    assert not (tmp_path / "run" / "settings.json").exists()


def test_a_method_that_exceeds_milliseconds_is_refused(fake_torch, tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.methods.magnitude.prune", lambda task, budget, config, run: Pruned(keep={}))
    settings = Settings(method="magnitude", base_epochs=0, epochs=1)
    with pytest.raises(PruningError, match="above the budget of"):
        prune(
            "zoo:digits_resnet",
            data="digits",
            budget=Budget(latency_ms=0.7),
            out=tmp_path / "run",
            settings=settings,
        )


# --------------------------------------------------------------------------------- many processes
def choose_in_a_process(folder):
    """Choose units in one of several processes, each with a clock of its own."""
    rank = int(os.environ["RANK"])
    run = RunFolder(Path(folder) / "run", {"seed": 0})
    runtime = Fake(of_network=lambda total: total ** (1.0 + 0.5 * rank) + 3.0)
    meter = latency.Meter(
        MODEL, GRAPH, runtime=runtime, cache=Path(folder) / f"cache{rank}", agree=run.compute_once
    )
    keep = select(GRAPH, scores.random(GRAPH, 0), Metered(latency_ms=0.6, meter=meter))
    try:
        select(GRAPH, scores.random(GRAPH, 0), Metered(latency_ms=0.01, meter=meter))
    except BudgetError as error:
        refused = str(error)
    known = {"keep": keep, "figures": meter.figures(keep), "refused": refused, "raced": runtime.raced}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(known))


def test_one_process_measures_and_all_choose_the_same(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys, torch\nsys.path.insert(0, {ROOT!r})\nfrom tests.latency import test_latency\n"
        f"test_latency.choose_in_a_process({str(tmp_path)!r})\ntorch.distributed.destroy_process_group()\n"
    )
    launched([str(script)])
    one, two = (read_json(tmp_path / f"{rank}.json") for rank in (0, 1))
    assert one.pop("raced") and not two.pop("raced")
    assert one == two


# ---------------------------------------------------------------------------------- a real clock
@pytest.mark.parametrize(
    ("takes_ms", "waits_ms", "counts_ms", "tries"),
    [
        (4.0, [0.0], 4.0, 1),
        (4.0, [8.0, 0.0], 4.0, 2),  # the second was not interrupted
        (4.0, [8.0, 6.0, 2.0, 0.0], 4.0, 3),  # all were: the waiting is subtracted
        (40.0, [25.0, 0.0], 40.0, 1),  # long calls are timed once
    ],
)
def test_time_that_went_to_other_programs_does_not_count(
    monkeypatch, tmp_path, takes_ms, waits_ms, counts_ms, tries
):
    schedstat, waits = tmp_path / "schedstat", list(waits_ms)
    schedstat.write_text("5 0 1\n")
    monkeypatch.setattr(clock, "WAITED", schedstat)

    def milliseconds(call, repeats):
        wait = waits.pop(0)
        schedstat.write_text(f"5 {int(schedstat.read_text().split()[1]) + int(1e6 * wait)} 1\n")
        return takes_ms + wait

    monkeypatch.setattr(clock, "milliseconds", milliseconds)
    assert clock.time_undisturbed(print) == pytest.approx(counts_ms)
    assert len(waits_ms) - len(waits) == tries


def test_systems_that_do_not_report_waiting_are_believed(monkeypatch, tmp_path):
    monkeypatch.setattr(clock, "WAITED", tmp_path / "none")
    monkeypatch.setattr(clock, "milliseconds", lambda call, repeats: 7.0)
    assert clock.time_undisturbed(print) == 7.0


def test_measuring_takes_turns_and_restores_the_mode():
    first, second = Net().train(), Net(8, 8).train()
    found = latency.measure({"first": first, "second": second}, EXAMPLE, seconds=0.05)
    assert list(found) == ["first", "second"] and all(each.median_ms > 0 for each in found.values())
    assert found["first"].repeats == found["second"].repeats >= 7
    assert first.training and second.norm.training


@pytest.mark.parametrize(
    ("runtime", "networks"),
    [
        ("torch", 12),
        pytest.param(
            "onnxruntime",
            4,
            marks=[pytest.mark.slow, pytest.mark.skipif(not HAS_ONNX, reason="not installed")],
        ),  # each is exported
    ],
)
@pytest.mark.filterwarnings("ignore")  # from the exporter
def test_real_times_are_predicted_within_a_factor_of_two(tmp_path, runtime, networks, monkeypatch):
    monkeypatch.setattr(profiling, "NETWORKS", networks)
    monkeypatch.setattr(profiling, "LEAST_NETWORKS", networks)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 4, 1)).eval()
    example = torch.randn(2, 3, 32, 32)
    graph = trace(model, example)
    half = {name: list(range(axis.size // 2)) for name, axis in graph.axes.items()}
    small = surgery.shrink(model, graph, half, verify="off")
    rows = torch.tensor([[axis.size for axis in graph.axes.values()]])
    found = []
    for attempt in range(3):  # other programs may disturb an attempt
        table = measure_tables(model, graph, runtime=runtime, seconds=3, cache=tmp_path / str(attempt))
        assert not table.left_out and table.measured
        whole, part = table.price(torch.cat([rows, rows // 2])).tolist()
        assert whole == pytest.approx(table.original_ms)
        times = latency.measure({"whole": model, "half": small}, example, runtime=runtime, seconds=0.5)
        found.append((part / whole) / (times["half"].median_ms / times["whole"].median_ms))
        if 0.5 < found[-1] < 2:
            return
    raise AssertionError(f"predicted share by measured share: {found}")


@pytest.mark.skipif(not HAS_ONNX, reason="not installed")
@pytest.mark.filterwarnings("ignore")
def test_onnxruntime_times_each_operator_and_those_that_it_cannot_run_are_left_out(monkeypatch):
    model, example = nets.build("attention")
    found = list({op.key: op for op in operators.operators(trace(model, example))}.values())
    broken = found[3]
    real = operator_timing._constant_type

    def constant_type(operator, sizes, like):
        if operator is broken:
            raise errors.PrunusError("not in ONNX")
        return real(operator, sizes, like)

    monkeypatch.setattr(operator_timing, "_constant_type", constant_type)
    wanted = [(op, op.full) for op in found]
    times = operator_timing.Onnxruntime().operators(wanted, Like.of(model), 0.2, lambda done: None)
    assert times[3] is None
    assert all(ms is not None and ms >= 0 for op, ms in zip(found, times, strict=True) if op is not broken)
    assert statistics.median(ms for ms in times if ms is not None) > 0
