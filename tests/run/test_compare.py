"""Comparisons: what is planned, equal treatment, one base, failing and killed arms, processes."""

import signal
import statistics
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from prunus import cli
from prunus.errors import PrunusError, UserError
from prunus.files import read_json, read_tensors
from prunus.methods import configure, find
from prunus.run import Settings, board, compare, prune, resolve_auto, workers
from prunus.run.arms import parse_method, plan_arms
from prunus.run.orders import Order, Subject
from prunus.run.standing import summarise
from prunus.selection import Budget, Sparsity
from prunus.tasks import Classification
from tests.lib.boards import ARMS, DATA, MODEL, SETTINGS, few_digits, interrupted, models

FAILS, DIES, FAULTY = (f"tests.lib.boards:{name}" for name in ("fail", "die", "fault"))


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Milliseconds are measured for a moment only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(board, "SECONDS_EACH", 0.01)
        yield


def compared(folder, methods=ARMS, *, settings=SETTINGS, **more):
    return compare(MODEL, data=DATA, out=folder, methods=methods, settings=settings, **more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison of three arms with two seeds."""
    return compared(tmp_path_factory.mktemp("board") / "board", seeds=(0, 1))


# ------------------------------------------------------------------------------------------- the plan
@pytest.mark.parametrize(
    ("text", "method", "options"),
    [
        ("taylor", "taylor", ()),
        ("magnitude:how=uniform", "magnitude", ("how=uniform",)),
        ("magnitude:how=uniform,round_to=8", "magnitude", ("how=uniform", "round_to=8")),
        ("taylor:freeze=head*,stem*,batches=2", "taylor", ("freeze=head*,stem*", "batches=2")),
        ("mine.method:prune", "mine.method:prune", ()),
        ("mine.method:prune:share=2", "mine.method:prune", ("share=2",)),
        ("structure:of=runs/a:b=c", "structure", ("of=runs/a:b=c",)),
    ],
)
def test_a_method_is_written_with_its_options(text, method, options):
    assert parse_method(text) == (method, options)


def planned(methods, budgets=("macs=0.5",), seeds=(0,), settings=SETTINGS, folder="board"):
    return plan_arms(methods, budgets, seeds, settings, Path(folder))


def test_methods_budgets_and_seeds_are_crossed_and_a_method_takes_limits_of_its_kind():
    found = planned(["taylor", "lookahead"], ["macs=0.5", "params=0.3", "sparsity=0.9"], [0, 3])
    assert [arm.name for arm in found] == [
        *("taylor-macs=0.5-seed0", "taylor-macs=0.5-seed3", "taylor-params=0.3-seed0"),
        *("taylor-params=0.3-seed3", "lookahead-sparsity=0.9-seed0", "lookahead-sparsity=0.9-seed3"),
    ]
    assert [arm.seed for arm in found] == [arm.settings.seed for arm in found]


def test_scratch_has_the_widths_of_the_first_arm_of_its_budget_and_seed():
    found = planned(["random", "taylor", "scratch"], ["macs=0.5", "macs=0.25"], [0, 1])
    of = {arm.name: arm.after.name for arm in found if arm.after}
    assert of == {
        f"scratch-{rest}": f"random-{rest}"
        for rest in ("macs=0.5-seed0", "macs=0.5-seed1", "macs=0.25-seed0", "macs=0.25-seed1")
    }


def test_an_option_for_all_goes_to_the_methods_that_have_it_and_their_own_wins():
    shared = replace(SETTINGS, options=("round_to=8", "batches=4"))
    taylor, random, scratch = planned(["taylor:batches=2", "random", "scratch"], settings=shared)
    assert taylor.settings.options == ("round_to=8", "batches=2")
    assert random.settings.options == ("round_to=8",)
    assert scratch.settings.options[1:] == ("weights=anew",)


def test_repair_and_steps_can_be_an_arms_own_and_go_to_those_that_can():
    shared = replace(SETTINGS, repair="once", steps=2)
    methods = ["taylor", "taylor:repair=off,steps=3", "scratch", "lookahead"]
    found = planned(methods, ["macs=0.5", "sparsity=0.8"], settings=shared)
    asked = [(arm.settings.repair, arm.settings.steps) for arm in found]
    assert asked == [("once", 2), ("off", 3), (None, 1), (None, 1)]
    (own,) = planned(["pass:steps=9"])
    assert own.settings.options == ("steps=9",) and own.settings.steps == 1


def test_a_recipe_of_searches_goes_to_those_that_train():
    asked = ("search.optimizer=adamw", "recover.lr=0.01", "weight_decay=0.01")
    taylor, dhp, scratch = planned(["taylor", "dhp", "scratch"], settings=replace(SETTINGS, recipe=asked))
    assert taylor.settings.recipe == asked[1:] and dhp.settings.recipe == asked
    assert scratch.settings.recipe == asked[2:]


def test_an_arm_that_is_asked_for_twice_runs_once_and_auto_is_a_name_for_one():
    assert [arm.label for arm in planned(["auto", "taylor", "random", "random"])] == ["taylor", "random"]
    assert [arm.label for arm in planned(["auto"], ["sparsity=0.9"])] == ["lookahead"]


@pytest.mark.parametrize(
    "text", ["structure:of=../a/b", "magnitude:freeze=a b,c$", f"magnitude:freeze={'x' * 300}"]
)
def test_names_of_folders_are_safe_and_differ(text):
    (arm,) = planned([text])
    (other,) = planned([text + "y"])
    assert "/" not in arm.name and " " not in arm.name and len(arm.name) < 120 and arm.name != other.name


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"methods": []}, "at least one method"),
        ({"methods": ["tailor"]}, "Did you mean taylor"),
        ({"methods": ["taylor:batch=2"]}, "unknown option of method taylor 'batch'"),
        ({"methods": ["dhp:strength=1,pressure=least"]}, "pressure=least sets the strength itself"),
        ({"methods": ["scratch", "taylor"]}, "name a method that removes units before it"),
        ({"methods": ["taylor", "scratch:how=uniform"]}, "scratch takes no options"),
        ({"methods": ["lookahead"]}, "--sparsity 0.8"),
        (
            {"methods": ["taylor"], "budgets": ["macs=0.5", "sparsity=0.9"]},
            "none of the methods takes sparsity=0.9",
        ),
        ({"methods": ["taylor"], "budgets": ["sparsity=2"]}, "between 0 and 1"),
        ({"methods": ["taylor"], "budgets": ["flops=2"]}, "macs"),
        ({"methods": ["taylor"], "settings": {"method": "dhp"}}, "takes the methods to compare in its place"),
        ({"methods": ["taylor"], "settings": {"seed": 2}}, "takes seeds in its place"),
        ({"methods": ["taylor"], "settings": {"epochs": 2, "total_epochs": None}}, "takes total_epochs"),
        ({"methods": ["taylor"], "settings": {"minutes": 2, "total_epochs": None}}, "takes total_epochs"),
        (
            {"methods": ["taylor"], "settings": {"options": ("score=snip",)}},
            "none of taylor has such an option",
        ),
        ({"methods": ["taylor"], "settings": {"runtime": "torch"}}, "needs a budget of latency_ms"),
        ({"methods": ["taylor:steps=few"]}, "steps should be a whole number, but is 'few'"),
        ({"methods": ["taylor:repair=twice"]}, "repair"),
        ({"methods": ["dhp"], "settings": {"steps": 2}}, "steps=2 does not go with dhp"),
        ({"methods": ["taylor"], "jobs": 0}, "jobs should be a whole number from 1, but is 0"),
    ],
    ids=str,
)
def test_mistakes_are_refused_before_anything_is_read_or_written(tmp_path, asked, words):
    settings = replace(SETTINGS, **asked.pop("settings", {}))
    with pytest.raises(UserError, match=words):
        compare("nowhere:model", data="nowhere:data", out=tmp_path / "board", settings=settings, **asked)
    assert not (tmp_path / "board").exists()


def test_objects_stay_in_this_process_and_torchrun_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="an object was given"):
        compare(MODEL, data=few_digits(), out=tmp_path / "board", jobs=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="begin it without torchrun"):
        compare(MODEL, data=DATA, out=tmp_path / "board")


# ------------------------------------------------------------------------------------ equal treatment
@pytest.fixture(scope="module")
def task():
    return Classification(nn.Identity(), few_digits())


@pytest.mark.parametrize(
    ("method", "options", "total", "searched"),
    [
        ("taylor", (), 6, 0),
        ("dhp", (), 6, 3),
        ("dhp", ("epochs=4",), 6, 4),
        ("metapruning", (), 6, 0),
        ("metapruning", ("weights=shared",), 6, 3),
        ("lookahead", (), 6, 0),
        ("lookahead", ("schedule=gradual",), 6, 3),
        ("lookahead", ("schedule=iterative", "rounds=3", "epochs=2"), 6, 4),
        ("pass", ("steps=9",), 6, 3),  # an epoch has three steps of 64
    ],
)
def test_search_and_recovery_together_have_the_epochs_that_were_asked(task, method, options, total, searched):
    config = configure(find(method).config_class, options, "option")
    shared, left = config.share_training(task, total)
    assert left == total - searched
    again, _ = shared.share_training(task, total)
    assert again == shared


@pytest.mark.parametrize(("method", "options"), [("dhp", ("epochs=7",)), ("pass", ("steps=19",))])
def test_a_search_that_takes_more_than_all_is_refused(task, method, options):
    with pytest.raises(UserError, match=r"in its search, but search and recovery have 6 together"):
        configure(find(method).config_class, options, "option").share_training(task, 6)


def test_every_arm_was_trained_as_long_by_the_same_teacher(finished):
    for path in finished.folder.glob("runs/*/result.json"):
        result = read_json(path)
        scratch = "scratch" in path.parent.name
        assert len(result["history"]["recover"]) == (3 if scratch else 2)
        assert result["settings"]["recovery"]["distill_weight"] == pytest.approx(0.7)
        assert result["settings"]["recovery"]["lr"] == (0.1 if scratch else 0.05)


def test_epochs_and_total_epochs_are_not_given_both():
    with pytest.raises(UserError, match="say two things about the same"):
        Settings(epochs=1, total_epochs=2)


# ------------------------------------------------------------------------------------------- one base
def test_an_arm_is_the_run_that_its_settings_give_alone(finished, tmp_path):
    name = "taylor-batches=2-macs=0.5-seed1"
    (arm,) = planned(ARMS[:1], seeds=(1,))
    alone = prune(MODEL, data=DATA, out=tmp_path / "alone", settings=arm.settings, budget=Budget(macs=0.5))
    assert (alone.folder / "model.safetensors").read_bytes() == models(finished.folder)[name]
    of_arm = read_json(finished.folder / "runs" / name / "settings.json")
    assert read_json(alone.folder / "settings.json") == of_arm


def test_the_base_of_a_seed_is_trained_once(finished):
    seconds = {
        path.parent.name: (read_json(path)["seed"], read_json(path)["seconds"]["base"])
        for path in finished.folder.glob("runs/*/result.json")
    }
    assert len(seconds) == 6 and len(set(seconds.values())) == 2
    bases = {path.read_bytes() for path in finished.folder.glob("bases/*/base.safetensors")}
    assert len(bases) == 2


def test_scratch_keeps_the_widths_and_no_weight(finished):
    runs = finished.folder / "runs"
    first, scratch = (
        read_json(runs / f"{name}-macs=0.5-seed0" / "result.json") for name in ("taylor-batches=2", "scratch")
    )
    assert scratch["widths"] == first["widths"]
    base = read_tensors(finished.folder / "bases" / "seed0" / "base.safetensors")
    anew = read_tensors(runs / "scratch-macs=0.5-seed0" / "prune" / "weights.safetensors")
    kept = read_json(runs / "scratch-macs=0.5-seed0" / "stages" / "prune.json")["keep"]
    weight = anew["conv1.weight"]
    assert weight.shape == base["conv1.weight"].shape
    assert not torch.isclose(weight[kept["conv1"]], base["conv1.weight"][kept["conv1"]]).any()


def test_weights_that_nothing_initialises_are_refused():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.head = nn.Parameter(torch.zeros(3)), nn.Linear(3, 2)

    data = few_digits()
    config = configure(find("structure").config_class, ("of=nowhere", "weights=anew"), "option")
    with pytest.raises(UserError, match="cannot initialise token: the module has no method reset_parameters"):
        config.check_task(Classification(Owner(), data))
    config.check_task(Classification(nn.Linear(3, 2), data))


# ----------------------------------------------------------------------------------------- the table
def test_the_rows_are_mean_and_spread_over_seeds_and_differences_are_of_the_same_seed(finished):
    results = {path.parent.name: read_json(path) for path in finished.folder.glob("runs/*/result.json")}
    after = {name: result["after"]["accuracy"] for name, result in results.items()}
    by_method = {
        method: [after[f"{method}-macs=0.5-seed{seed}"] for seed in (0, 1)]
        for method in ("taylor-batches=2", "magnitude-how=uniform", "scratch")
    }
    rows = {row["method"].replace(":", "-"): row for row in finished.values["rows"]}
    assert rows.keys() == by_method.keys()
    for method, values in by_method.items():
        assert rows[method]["recovered"] == pytest.approx(
            [statistics.fmean(values), statistics.stdev(values)]
        )
        gains = [own - first for own, first in zip(values, by_method["taylor-batches=2"], strict=True)]
        gain = rows[method]["gain"]
        assert (
            (gain is None)
            if method.startswith("taylor")
            else gain == pytest.approx([statistics.fmean(gains), statistics.stdev(gains)])
        )
        assert rows[method]["seeds"] == rows[method]["asked"] == 2
    assert read_json(finished.folder / "compare.json") == finished.values and not finished.failed


def an_arm(method: str, seed: int, recovered: float | None, macs: float = 1.0) -> dict:
    figures = None if recovered is None else {"recovered": recovered, "macs": macs}
    return {"method": method, "limit": {"macs": 0.5}, "seed": seed, "figures": figures}


def test_differences_are_to_the_first_method_with_the_same_seed_where_both_are_finished():
    arms = [an_arm("a", 0, 0.5), an_arm("a", 1, 0.75), an_arm("a", 2, None)]
    arms += [an_arm("b", 0, 0.75), an_arm("b", 1, 0.75), an_arm("b", 2, 1.0), an_arm("c", 0, None)]
    first, second, third = summarise(arms)
    assert (first["seeds"], first["asked"], first["gain"]) == (2, 3, None)
    assert second["gain"] == pytest.approx([0.125, statistics.stdev([0.25, 0.0])])
    assert second["recovered"][0] == pytest.approx(2.5 / 3)
    assert third == {"method": "c", "limit": {"macs": 0.5}, "seeds": 0, "asked": 1, "gain": None}


def test_milliseconds_are_of_one_measuring_in_turns(finished):
    figures = [arm["figures"] for arm in finished.values["arms"]]
    assert all(each["latency_ms"] > 0 for each in figures) and len(figures) == 6
    apart = [read_json(path)["after"]["latency_ms"] for path in finished.folder.glob("runs/*/result.json")]
    assert not {each["latency_ms"] for each in figures} & set(apart)


def test_other_commands_read_the_arms(finished, capsys):
    folders = [str(path) for path in sorted(finished.folder.glob("runs/*"))]
    assert cli.main(["compare", *folders]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("on average over 2 seeds") == 2  # the options of scratch name a folder of its seed
    assert "is a copy of" not in said


# -------------------------------------------------------------------------------- resuming and failing
def test_killed_at_any_moment_it_goes_on_and_ends_in_the_same_bits(finished, tmp_path):
    ends = 0
    while ends < 50:
        try:
            found = compared(tmp_path / "board", resume=True, progress=interrupted(4 + 4 * ends))
            break
        except KeyboardInterrupt:
            ends += 1
    assert 3 <= ends < 50
    assert models(tmp_path / "board").items() <= models(finished.folder).items()
    recovered = {arm["name"]: arm["figures"]["recovered"] for arm in finished.values["arms"]}
    assert {
        arm["name"]: arm["figures"]["recovered"] for arm in found.values["arms"]
    }.items() <= recovered.items()


def test_finished_arms_stay_and_more_can_be_added(finished, tmp_path):
    compared(tmp_path / "board", ARMS[:1])
    there = models(tmp_path / "board")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "board").glob("runs/*/*.json")}
    with pytest.raises(UserError, match=r"is not empty\. Continue the comparison"):
        compared(tmp_path / "board", ARMS[:2])
    found = compared(tmp_path / "board", ARMS[:2], resume=True)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(found.values["arms"]) == 2 and there.items() <= models(tmp_path / "board").items()
    with pytest.raises(UserError, match=r"begun with other settings: total_epochs was 2, is now 3"):
        compared(tmp_path / "board", ARMS[:2], resume=True, settings=replace(SETTINGS, total_epochs=3))
    with pytest.raises(UserError, match="holds no comparison to resume"):
        compared(tmp_path, ARMS[:2], resume=True)


def test_an_arm_that_fails_is_named_with_its_reason_and_the_others_go_on(tmp_path, capsys):
    arguments = [
        "compare",
        "--model",
        MODEL,
        "--data",
        DATA,
        "--out",
        str(tmp_path / "board"),
        "--base-epochs",
        "0",
    ]
    arguments += ["--total-epochs", "1", "--threads", "1", "--methods", FAILS, "scratch", FAULTY, "random"]
    for more in ([], ["--resume"]):
        assert cli.main([*arguments, *more]) == 1
        captured = capsys.readouterr()
        said = " ".join((captured.out + captured.err).split())
        assert "3 of 4 arms failed" in said and "compare.html" in said
        assert "fail-macs=0.5-seed0 failed: there is nothing to be seen here." in said
        assert "fault-macs=0.5-seed0 failed: unexpected ZeroDivisionError: a fault" in said
        assert (
            "scratch-macs=0.5-seed0 failed: tests.lib.boards-fail-macs=0.5-seed0, which it needs, failed: there is"
            in said
        )
    values = read_json(tmp_path / "board" / "compare.json")
    assert [arm["figures"] is None for arm in values["arms"]] == [True, True, True, False]
    assert [row["seeds"] for row in values["rows"]] == [0, 0, 0, 1]


def test_if_nothing_is_finished_the_first_reason_is_said(tmp_path):
    with pytest.raises(PrunusError, match=r"no arm was finished\. there is nothing to be seen here"):
        compared(tmp_path / "board", [FAILS], settings=replace(SETTINGS, base_epochs=0))


# ------------------------------------------------------------------------------------------ processes
def children() -> set[int]:
    return {each.pid for each in psutil.Process().children(recursive=True)}


def test_processes_end_with_this_one_and_give_the_same_bits(finished, tmp_path):
    before = children()
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path / "board", jobs=2, progress=interrupted(3))
    assert children() <= before
    found = compared(tmp_path / "board", [*ARMS[:2], DIES], jobs=2, resume=True)
    assert children() <= before
    (reason,) = found.failed.values()
    assert "killed by SIGKILL" in reason
    ours = models(tmp_path / "board")
    assert len(ours) == 2 and ours.items() <= models(finished.folder).items()


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_a_process_whose_parent_is_gone_stops(handler, tmp_path):
    before = signal.signal(signal.SIGINT, handler)  # a shell lets its children in the background ignore it
    order = Order(name="base", out=tmp_path / "run", settings=replace(SETTINGS, base_epochs=10_000))
    process = workers.start(order, Subject(model=MODEL, data=DATA), tmp_path / "log.txt")
    signal.signal(signal.SIGINT, before)
    while not (tmp_path / "run" / "settings.json").exists() and process.poll() is None:
        time.sleep(0.05)
    workers.close(process)
    assert process.wait() == 1
    assert workers.failure(1, tmp_path / "log.txt") == "stopped."
    assert not (tmp_path / "run" / ".lock").exists()


# ----------------------------------------------------------------------------------------------- auto
def test_auto_follows_the_kind_of_limit_and_of_task():
    auto = Settings(method="auto", options=("freeze=head*",))
    for limit in (None, Budget(macs=0.5), Budget(latency_ms=0.5)):
        settings, why = resolve_auto(auto, limit)
        assert settings.method == "taylor" and settings.options[-1] == "freeze=head*" and "because" in why
    assert resolve_auto(auto, Sparsity(0.9))[0].method == "lookahead"
    named = Settings(method="random")
    assert resolve_auto(named, None) == (named, None)


def test_the_command_says_what_auto_is_and_stores_its_name(tmp_path, capsys):
    arguments = [
        "run",
        "--model",
        MODEL,
        "--data",
        DATA,
        "--method",
        "auto",
        "--base-epochs",
        "0",
        "--epochs",
        "0",
    ]
    assert cli.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert "auto is taylor here, because" in " ".join(capsys.readouterr().out.split())
    assert read_json(tmp_path / "run" / "settings.json")["method"] == "taylor"
