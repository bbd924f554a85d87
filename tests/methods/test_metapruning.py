"""MetaPruning as a method: its search on real images, within every kind of budget, killed, and in two processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import prunus
from prunus import latency, surgery
from prunus.charts import Bars, Lines, Points
from prunus.data import load_data
from prunus.errors import BudgetError, UserError
from prunus.graph import trace
from prunus.methods.metapruning import Config, prune
from prunus.methods.metapruning.method import prepare
from prunus.metrics import Metric
from prunus.recover import renew_norms
from prunus.search import Builder, calibration_set, moving_norms, scorer, split_training
from prunus.search.proposals import nearest
from prunus.search.trial import SHARE, FixedImages
from prunus.selection import Budget, Metered, cost, select
from prunus.tasks import Classification
from prunus.train import Recipe, fit
from tests.lib.latency import Fake
from tests.lib.metapruning import EXAMPLE, HALF, SMALL, begun, fresh, journal, lines
from tests.lib.nets import build
from tests.lib.programs import ARGUMENTS, Program, figures, kill_when_there, program
from tests.lib.two_processes import ROOT, SCRIPT, launched


@pytest.fixture(scope="module")
def trained(digits):
    """A task whose model was trained for a short while."""
    task = fresh(digits)
    fit(task.model, task, Recipe(epochs=4, batch_size=64, lr=0.05, precision="no"))
    return task


def searched(folder, data=None):
    """A short, deterministic search."""
    found = prune(fresh(data or load_data("digits")), HALF, SMALL, begun(folder))
    (Path(folder) / "keep").write_text(json.dumps(found.keep))


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    searched(folder, digits)
    return folder


# ---------------------------------------------------------------------------------- what is found
@pytest.mark.parametrize(
    ("budget", "price"),
    [(HALF, cost.macs), (Budget(params=60_000), cost.params), (Budget(memory_mb=0.8), cost.memory_mb)],
)
def test_the_winner_holds_the_budget_and_is_no_worse_than_uniform(budget, price, trained, tmp_path):
    run = begun(tmp_path)
    found = prune(trained, budget, SMALL, run)
    graph = trace(trained.model, EXAMPLE)
    small = surgery.shrink(trained.model, graph, found.keep)
    assert price(trace(small, EXAMPLE)) <= budget.limit(price(graph))
    assert found.weights is None
    events = {
        line["event"]: line for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    }
    assert events["searched"]["best_score"] >= events["searched"]["uniform_score"]
    confirmed = lines(tmp_path, "confirm")
    best = max(line["score"] for line in confirmed)
    assert events["searched"]["winner"]["score"] == best
    assert {line["origin"] for line in confirmed} >= {"uniform"}
    assert {line["origin"] for line in lines(tmp_path)} >= {"uniform", "seed", "random"}


@pytest.mark.parametrize("how", ["greedy", "random"])
def test_other_searches(how, trained, tmp_path):
    config = replace(SMALL, search=how, order="magnitude", stride=6)
    found = prune(trained, HALF, config, begun(tmp_path))
    graph = trace(trained.model, EXAMPLE)
    assert cost.macs(graph, found.keep) <= HALF.limit(cost.macs(graph))
    assert {line["origin"] for line in lines(tmp_path)} == {"uniform", "seed", how}
    down = [chart for chart in found.charts if chart.title == "The greedy path"]
    assert len(down) == (how == "greedy")
    for chart in down:
        costs = [share for share, _ in chart.series["networks on the path"]]
        assert costs[0] == 1 and costs == sorted(costs, reverse=True) and costs[-1] <= 0.5


def test_the_search_begins_with_what_taylor_per_cost_chooses(trained, tmp_path):
    """Taylor's scores are changes of the loss: what they choose without regard to costs is a worse start."""
    config = replace(SMALL, generations=1, population=2, mutants=0, crossovers=0).resolved()
    ready = prepare(trained, HALF, config, begun(tmp_path))
    prune(trained, HALF, config, begun(tmp_path))
    keep = select(ready.space.graph, ready.ranks, HALF, how="per_cost", round_to=1)
    wanted = nearest(ready.room, ready.space.graph.widths(keep), np.random.default_rng(0))
    found = [line for line in lines(tmp_path) if line["origin"] == "seed"]
    assert found[0]["widths"] == ready.space.widths(wanted)
    assert 1 <= len(found) <= 2


def test_without_scores_the_first_units_stay(trained, tmp_path):
    found = prune(trained, HALF, replace(SMALL, order="none", generations=1), begun(tmp_path))
    assert all(units == list(range(len(units))) for units in found.keep.values())
    assert {line["origin"] for line in lines(tmp_path)} == {"uniform", "random"}


def test_the_winner_keeps_the_weights_that_were_fitted_for_it(trained, tmp_path):
    found = prune(trained, HALF, replace(SMALL, weights="closed_form", generations=1), begun(tmp_path))
    graph, small = (
        trace(trained.model, EXAMPLE),
        surgery.shrink(trained.model, trace(trained.model, EXAMPLE), found.keep),
    )
    fitted = surgery.cut(found.weights, graph, found.keep)
    weights = [name for name, tensor in small.named_parameters() if tensor.dim() > 1]
    assert (
        sum(not torch.equal(fitted[name], small.get_parameter(name)) for name in weights) > len(weights) / 2
    )
    assert cost.macs(graph, found.keep) <= HALF.limit(cost.macs(graph))


def test_it_draws_what_it_did(undisturbed, trained, tmp_path):
    points, curve, again, bars = prune(trained, HALF, SMALL, begun(tmp_path)).charts
    assert isinstance(points, Points) and isinstance(curve, Lines) and isinstance(bars, Bars)
    tried = [point for name, group in points.groups.items() if name != "winner" for point in group]
    assert len(tried) == len(lines(tmp_path)) and points.groups["winner"][0] in tried
    once_more = again.series["on other images"]
    assert once_more == [
        line["score"] for line in sorted(lines(tmp_path, "confirm"), key=lambda x: -x["score"])
    ]
    assert max(again.series["in the search"]) == max(
        line["score"] for line in lines(tmp_path) if line["complete"]
    )
    best = [score for _, score in curve.series["best so far"]]
    assert best == sorted(best) and len(best) == SMALL.generations
    assert all(0 < share <= 1 for values in bars.series.values() for share in values)


# ------------------------------------------------------------------------------ how it is scored
def test_the_parts_are_apart_and_hold_every_class(digits):
    parts = split_training(digits.train, 150, seed=3)
    members = [set(part.members.tolist()) for part in (parts.train, parts.search, parts.confirm)]
    assert set.union(*members) == set(digits.train.members.tolist())
    assert sum(map(len, members)) == len(digits.train)
    assert 130 <= len(parts.search) <= 170 and 130 <= len(parts.confirm) <= 170
    assert all(np.unique(part.labels).size == 10 for part in (parts.train, parts.search, parts.confirm))
    most = split_training(digits.train, 10**6, seed=3)
    assert len(most.search) <= SHARE * len(digits.train) + 10
    with pytest.raises(UserError, match="not possible"):
        split_training(digits.train.take(np.arange(3)), 150, seed=0)


def test_a_score_is_what_a_plain_evaluation_of_the_renewed_network_says(trained):
    graph = trace(trained.model, EXAMPLE)
    parts = split_training(trained.data.train, 150, seed=0)
    images = calibration_set(parts.train, 128, seed=0)
    keep = {name: list(range(axis.size // 2)) for name, axis in graph.axes.items()}
    made = []

    def network(widths):
        made.append(widths)
        return surgery.shrink(trained.model, graph, keep)

    trial = scorer(trained, Builder(network, images), parts.search)
    widths = graph.widths(keep)
    some = [trial.score(widths, 0, 70), trial.score(widths, 70, trial.images)]
    assert len(made) == 1
    small = network(widths)
    renew_norms(small, images.between(0, 128))
    accuracy = trained.evaluate(small, parts.search)["accuracy"]
    assert torch.cat(some).double().mean().item() == pytest.approx(accuracy, abs=1e-12)
    assert accuracy > trained.evaluate(network(widths), parts.search)["accuracy"]  # without
    assert torch.equal(
        torch.cat(some), torch.cat([trial.score(widths, 0, 70), trial.score(widths, 70, trial.images)])
    )


def test_pooled_statistics_do_not_depend_on_batches_or_their_order(trained):
    """A network with one norm: with more, the inputs of the later ones are normalised batch by batch."""
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 3), torch.nn.BatchNorm2d(6))
    x, y = next(trained.data.train.batches(120))
    whole = torch.nn.BatchNorm2d(6, momentum=1.0)
    whole(net[0](x))
    for parts in (x.split(120), x.split(30), reversed(x.split(17))):
        renew_norms(net, [(part, y) for part in parts])
        assert torch.allclose(net[1].running_mean, whole.running_mean, atol=1e-6)
        assert torch.allclose(net[1].running_var, whole.running_var, atol=1e-6)


def test_moving_statistics_keep_some_of_where_they_started(trained):
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 3), torch.nn.BatchNorm2d(6))
    x, y = next(trained.data.train.batches(120))
    moving_norms(net, [(x, y)] * 3)
    mean = net[0](x).mean((0, 2, 3))
    assert torch.allclose(net[1].running_mean, mean * (1 - 0.9**3), atol=1e-5)


def test_a_metric_where_less_is_better_is_turned_round(trained):
    class Error(Classification):
        metric, judges_examples = Metric(key="loss", higher_is_better=False), False

    parts = split_training(trained.data.train, 150, seed=0)
    maker = Builder(lambda widths: trained.model, parts.train, lambda model, batches: None)
    maker.calibration = FixedImages(parts.train)
    score = scorer(Error(trained.model, trained.data), maker, parts.search)
    assert score({}) == -trained.evaluate(trained.model, parts.search)["loss"]


# -------------------------------------------------------------------------------- milliseconds
def test_milliseconds_hold_as_measured(trained, tmp_path):
    graph = trace(trained.model, EXAMPLE)
    runtime = Fake(of_network=lambda total: 3.0 * total + 0.002)
    meter = latency.Meter(trained.model, graph, runtime=runtime, cache=tmp_path / "cache")
    for share in (0.6, 0.45):
        budget = Metered(latency_ms=share, meter=meter)
        found = prune(trained, budget, SMALL, begun(tmp_path / str(share)))
        figures = meter.figures(found.keep)
        assert figures["measured_ms"] <= share * figures["original_ms"]
        assert figures["measured_ms"] >= 0.8 * share * figures["original_ms"]
        assert lines(tmp_path / str(share), "measured")


def measured_in_ranks(folder):
    """One of two processes, only the first of which has a working clock."""
    run = begun(folder)
    task = fresh(load_data("digits"))
    runtime = Fake(of_network=lambda total: 3.0 * total + 0.002)
    if not run.processes.is_main_process:
        runtime.race = runtime.operators = None
    graph = trace(task.model, EXAMPLE)
    cache = Path(folder) / "cache"
    meter = latency.Meter(task.model, graph, runtime=runtime, cache=cache, agree=run.compute_once)
    found = prune(task, Metered(latency_ms=0.6, meter=meter), SMALL, run)
    figures = meter.figures(found.keep)
    assert figures["measured_ms"] <= 0.6 * figures["original_ms"]
    (Path(folder) / f"keep{run.processes.process_index}").write_text(json.dumps(found.keep))


def test_milliseconds_are_measured_by_one_process_for_all(tmp_path):
    script = tmp_path / "script.py"
    names = {"module": __name__, "name": "measured_in_ranks", "folder": str(tmp_path / "two")}
    script.write_text(SCRIPT.format(root=ROOT, **names))
    launched([str(script)])
    assert (tmp_path / "two" / "keep0").read_text() == (tmp_path / "two" / "keep1").read_text()


# ------------------------------------------------------------------------- going on, and refusals
@pytest.mark.timeout(600)
def test_killed_it_goes_on_and_looks_at_nothing_twice(undisturbed, tmp_path):
    script = tmp_path / "script.py"
    names = {"module": __name__, "name": "searched", "folder": str(tmp_path / "killed")}
    script.write_text(
        SCRIPT.format(root=ROOT, **names).replace("torch.distributed.destroy_process_group()", "")
    )
    for count in (4, 11):
        process = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"OMP_NUM_THREADS": "1"})
        there = 0
        while there < count and process.poll() is None:
            time.sleep(0.005)
            file = journal(tmp_path / "killed")
            there = file.read_bytes().count(b"\n") if file.exists() else 0
        process.kill()
        assert process.wait() == -signal.SIGKILL
    before = journal(tmp_path / "killed").read_bytes().rpartition(b"\n")[0]
    searched(tmp_path / "killed")
    after = journal(tmp_path / "killed").read_bytes()
    assert after == journal(undisturbed).read_bytes() and after.startswith(before)
    assert (tmp_path / "killed" / "keep").read_text() == (undisturbed / "keep").read_text()


OPTIONS = ("generations=3", "population=6", "parents=3", "images=150", "calibration=128", "top=2")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("weights", [("weights=inherit",), ("weights=shared", "epochs=2")])
def test_a_run_killed_at_any_moment_ends_in_the_same_bits_and_tries_no_network_twice(weights, tmp_path):
    arguments = [*ARGUMENTS[:5], "--base-epochs", "1", "--epochs", "1", "--method", "metapruning"]
    arguments += [each for option in (*OPTIONS, *weights) for each in ("--set", option)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    program([*arguments, "--out", str(whole)])
    if weights[0] == "weights=shared":
        kill_when_there([*arguments, "--out", str(killed)], killed / "prune/supernet/checkpoint.safetensors")
    lot, known, kills = random.Random(0), b"", 0
    while kills < 4 and not (killed / "stages/prune.json").exists():
        more = known.count(b"\n") + lot.randint(1, 8)
        with Program([*arguments, "--out", str(killed), "--resume"]) as process:
            while process.returncode is None and kept(killed).count(b"\n") < more:
                time.sleep(0.002)
            time.sleep(lot.uniform(0, 0.1))
            process.kill()
        assert kept(killed).startswith(known)  # no known network is evaluated again, or differently
        known, kills = kept(killed), kills + (process.returncode == -signal.SIGKILL)
    program([*arguments, "--out", str(killed), "--resume"])
    assert kills >= 2 and figures(killed) == figures(whole)
    for name in ("model.safetensors", "keep.json", "prune/search.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    networks = [
        json.dumps([line["on"], line["widths"]]) for line in map(json.loads, kept(killed).splitlines()[1:])
    ]
    assert len(set(networks)) == len(networks) and kept(killed).startswith(known)


def kept(folder):
    """The complete lines of a journal."""
    text = journal(folder).read_bytes() if journal(folder).exists() else b""
    return b"".join(text.rpartition(b"\n")[:2])


def test_two_processes_find_what_one_does(undisturbed, tmp_path):
    script = tmp_path / "script.py"
    names = {"module": __name__, "name": "searched", "folder": str(tmp_path / "two")}
    script.write_text(SCRIPT.format(root=ROOT, **names))
    launched([str(script)])
    assert journal(tmp_path / "two").read_bytes() == journal(undisturbed).read_bytes()
    assert (tmp_path / "two" / "keep").read_text() == (undisturbed / "keep").read_text()


def test_other_weights_do_not_go_on_in_a_journal(undisturbed, digits, tmp_path):
    run = begun(undisturbed)
    task = fresh(digits)
    with torch.no_grad():
        next(task.model.parameters())[0, 0, 0, 0] += 1e-3
    with pytest.raises(UserError, match=r"another search: given\.weights was"):
        prune(task, HALF, SMALL, run)
    with pytest.raises(UserError, match=r"given\.config\.population was 6, is now 7"):
        prune(fresh(digits), HALF, replace(SMALL, population=7), run)


def test_budgets_that_cannot_be_met_are_refused_at_once(trained, tmp_path):
    for budget, words in (
        (Budget(macs=0.001), "cannot be met"),
        (Budget(macs=10**9), "above what the model"),
    ):
        with pytest.raises(BudgetError, match=words):
            prune(trained, budget, SMALL, begun(tmp_path))
    assert not journal(tmp_path).exists()


@pytest.mark.parametrize(
    "options",
    [
        {"search": "evolve"},
        {"order": "size"},
        {"images": 0},
        {"population": 3, "mutants": 5},
        {"chance": 0.0},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(UserError):
        Config(**options).strategy()


def test_a_whole_run(tmp_path):
    options = ("generations=2", "population=5", "images=100")
    settings = prunus.run.Settings(method="metapruning", options=options, base_epochs=2, epochs=1)
    result = prunus.prune("zoo:digits_resnet", data="digits", out=tmp_path, settings=settings)
    assert result.values["after"]["macs"] <= 0.5 * result.values["before"]["macs"]
    assert [chart["kind"] for chart in result.values["charts"]] == ["points", "lines", "bars", "bars"]
    assert "Evaluated networks" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"start": "scratch", "epochs": 3}, "weights=inherit there is no use for start, epochs"),
        ({"weights": "closed_form", "hidden": 3}, "weights=closed_form there is no use for hidden"),
        ({"weights": "shared", "form": "residual"}, "weights=shared there is no use for form"),
        ({"stride": 4}, "search=evolution there is no use for stride"),
        ({"search": "greedy", "population": 9, "chance": 0.2}, "search=greedy .* population, chance"),
        ({"search": "random", "mutants": 3}, "search=random there is no use for mutants"),
        ({"order": "none", "how": "uniform"}, "order=none there is no use for how"),
        ({"weights": "hypernet", "strict_paper": True, "floor": 3}, "strict_paper=True .* floor"),
    ],
)
def test_options_without_effect_are_refused_before_a_run(given, words):
    model, example = build("residual")
    graph = trace(model, example)
    with pytest.raises(UserError, match=words):
        Config(**given).check(graph, HALF)
