"""The recipes of a run are the user's: each field of each part, once, corrected until it is read."""

import json

import pytest

from prunus.errors import FileError, UserError
from prunus.files import read_json, write_json
from prunus.methods.dhp import method as dhp
from prunus.methods.lookahead import judge as lookahead
from prunus.methods.metapruning import method as metapruning
from prunus.methods.pass_ import method as pass_
from prunus.recover import Pace, finetune
from prunus.run import Settings, prune, stages
from prunus.run.plan import read_plan
from prunus.run.settings import to_json
from prunus.testing.networks import tiny_task
from tests.lib.own_tasks import regression


class Reached(Exception):
    """Raised in place of a training."""


def reached(*_, **__):
    raise Reached


def run_in(folder, *recipe, task=None, resume=False, **settings):
    settings = Settings(
        **{"method": "magnitude", "base_epochs": 0, "epochs": 0, "repair": "off"} | settings, recipe=recipe
    )
    return prune(task=task or tiny_task("residual"), out=folder, settings=settings, resume=resume)


# ------------------------------------------------------------------------------------- what is asked
def test_a_part_goes_before_all_and_options_count_as_what_they_say():
    asked = Settings(
        recipe=(
            "lr=0.5",
            "recover.weight_decay=0.1",
            "search.clip-norm=1",
            "clip_norm=None",
            "recover.epochs=0.5",
        ),
        batch_size=32,
        base_lr=0.2,
    ).asked
    everywhere = {"lr": 0.5, "clip_norm": None, "batch_size": 32}
    assert asked.of("base") == everywhere | {"lr": 0.2}
    assert asked.of("search") == everywhere | {"clip_norm": 1.0}
    assert asked.of("recover") == everywhere | {"weight_decay": 0.1, "epochs": 0.5}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"recipe": ("recover.lrr=1",)}, "unknown field of a recipe 'lrr'. Did you mean lr"),
        ({"recipe": ("recver.lr=1",)}, "unknown part of a run 'recver'. Did you mean recover"),
        ({"recipe": ("lr",)}, "expected name=value for field of a recipe, got 'lr'"),
        ({"recipe": ("recover.lr=fast",)}, "lr should be float, not 'fast'"),
        (
            {"recipe": ("recover.lr=-1",)},
            "lr should be a number from 0 to 100, but is -1.0; the nearest is 0",
        ),
        ({"recipe": ("schedule=cosin",)}, "unknown schedule 'cosin'. Did you mean cosine"),
        ({"recipe": ("base.optimizer=adam",)}, "unknown optimizer 'adam'. Did you mean adamw"),
        ({"recipe": ("lr=0.1", "lr=0.2")}, "lr=0.1 and lr=0.2 say two things about the same"),
        ({"recipe": ("recover.lr=0.1",), "lr": 0.2}, "lr=0.2 and recover.lr=0.1 say two things"),
        ({"recipe": ("base.epochs=1",), "base_epochs": 2}, "base_epochs=2 and base.epochs=1 say two things"),
        ({"recipe": ("batch_size=8",), "batch_size": 16}, "batch_size=16 and batch_size=8 say two things"),
        ({"recipe": ("base.distill_weight=1",)}, "nothing teaches the base, so it has no effect"),
        ({"recipe": ("recover.optimizer=adamw", "recover.momentum=0.5")}, "adamw has no momentum"),
        ({"minutes": 3, "epochs": 2}, "minutes=3 and 2 epochs of recovery say two things"),
        ({"minutes": 3, "recipe": ("recover.epochs=2",)}, "minutes=3 and 2 epochs of recovery"),
        ({"minutes": 0}, "minutes should be a finite number above 0, but is 0"),
    ],
)
def test_what_cannot_be_is_refused_when_the_settings_are_made(settings, words):
    with pytest.raises(UserError) as refused:
        Settings(**settings)
    assert words in str(refused.value)


def test_the_same_said_twice_is_no_contradiction():
    assert Settings(recipe=("recover.lr=0.1", "recover.lr=0.1"), lr=0.1).asked.of("recover") == {"lr": 0.1}


@pytest.mark.parametrize(
    ("method", "options", "recipe", "words"),
    [
        ("magnitude", (), "search.lr=1", "method magnitude trains nothing while it chooses"),
        ("pass", (), "search.lr=1", "method pass sets lr itself in its search"),
        ("dhp", (), "search.ema_decay=0.9", "method dhp sets ema_decay itself"),
        ("dhp", ("start=scratch",), "search.distill_weight=0.5", "has no use for it with these options"),
        ("dhp", ("mode=paper",), "search.distill_temperature=2", "has no use for it with these options"),
        (
            "magnitude",
            (),
            "recover.warmup_epochs=4",
            "recover: a warm-up of 4 epochs is as long as the whole training of 2",
        ),
    ],
)
def test_what_does_not_suit_the_method_or_the_task_is_refused_before_training(
    tmp_path, method, options, recipe, words
):
    with pytest.raises(UserError, match=words):
        run_in(tmp_path / "run", recipe, method=method, options=options, epochs=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["base.", "recover.", ""])
def test_a_loader_keeps_its_batch_size_in_every_part(tmp_path, part):
    with pytest.raises(
        UserError, match="the batch size should be 8, but the loader of train gives batches of 16"
    ):
        run_in(tmp_path / "run", f"{part}batch_size=8", task=regression())


# ------------------------------------------------------------------------------------ what reads it
SEARCHES = {
    "dhp": (dhp, ()),
    "pass": (pass_, ("steps=4",)),
    "metapruning": (metapruning, ("weights=shared",)),
    "lookahead": (lookahead, ("schedule=gradual",)),
}


@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_is_trained_as_was_asked(tmp_path, monkeypatch, method):
    module, options = SEARCHES[method]
    seen = {}

    def trained(model, task, recipe, **_):
        seen["recipe"] = recipe
        raise Reached

    monkeypatch.setattr(module, "fit", trained)
    asked = ("weight_decay=0.125", "search.schedule=linear", "recover.schedule=constant", "ema_decay=0.5")
    with pytest.raises(Reached):
        run_in(tmp_path / "run", *asked, method=method, options=options)
    recipe = seen["recipe"]
    assert (recipe.weight_decay, recipe.schedule) == (0.125, "linear")
    assert recipe.ema_decay == (0.5 if method == "lookahead" else 0)  # the others cannot keep an average
    with monkeypatch.context() as patch:  # without a word of the user's it is as the method advises
        patch.setattr(module, "fit", trained)
        with pytest.raises(Reached):
            run_in(tmp_path / "plain", method=method, options=options)
    assert seen["recipe"].schedule == "cosine" and seen["recipe"].weight_decay != 0.125


def test_base_and_recovery_are_trained_as_was_asked_and_say_so(tmp_path, monkeypatch):
    seen = {}

    def recover(small, task, recipe, **options):
        seen["recover"] = recipe
        return finetune.recover(small, task, recipe, **options)

    monkeypatch.setattr(stages, "recover", recover)
    recipe = ("recover.optimizer=adamw", "recover.lr=0.002", "base.schedule=linear", "weight_decay=0.01")
    result = run_in(tmp_path / "run", *recipe, base_epochs=0.25, epochs=0.5)
    settings = result.values["settings"]
    assert settings["recovery"]["optimizer"] == "adamw" and settings["recovery"]["lr"] == 0.002
    assert settings["base"]["schedule"] == "linear" and settings["base"]["optimizer"] == "sgd"
    assert settings["recovery"]["weight_decay"] == settings["base"]["weight_decay"] == 0.01
    assert (seen["recover"].optimizer, seen["recover"].lr, seen["recover"].epochs) == ("adamw", 0.002, 0.5)
    epochs = {part: [row["epoch"] for row in rows] for part, rows in result.values["history"].items()}
    assert epochs == {"base": [0.25], "recover": [0.5]}


def test_a_recipe_may_be_corrected_until_its_part_has_begun(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Reached):
        patch.setattr(stages, "recover", reached)
        run_in(tmp_path, "base.lr=0.3", "recover.lr=0.2", "clip_norm=9")
    stored = read_json(tmp_path / "settings.json")
    assert "recipe" not in stored and stored["recipe.recover"] == ["recover.lr=0.2", "clip_norm=9"]
    with pytest.raises(UserError, match=r"recipe\.base was .*base\.lr=0\.3.*, is now .*base\.lr=0\.4"):
        run_in(tmp_path, "base.lr=0.4", "recover.lr=0.2", "clip_norm=9", resume=True)
    result = run_in(tmp_path, "base.lr=0.3", "recover.lr=0.1", "clip_norm=9", resume=True)
    assert result.values["settings"]["recovery"]["lr"] == 0.1
    with pytest.raises(UserError, match=r"recipe\.recover was"):
        run_in(tmp_path, "base.lr=0.3", "recover.lr=0.2", "clip_norm=9", resume=True)


def test_settings_without_a_recipe_are_stored_as_before():
    assert not [name for name in to_json(Settings()) if name.startswith(("recipe", "minutes"))]


# ---------------------------------------------------------------------------------------- minutes
def paced(steps_that_fit):
    """In place of `measure_pace`: so many steps fit into any time."""

    def measure(small, task, recipe, **_):
        steps = task.data.train.steps(recipe.batch_size)
        pace = Pace(spent_s=0.0, begin_s=0.0, step_s=1.0, evaluation_s=0.0, steps=steps)
        return pace if steps_that_fit is None else Fixed(**vars(pace))

    class Fixed(Pace):
        def epochs_within(self, seconds):
            return steps_that_fit / self.steps

    return measure


def test_minutes_become_epochs_which_a_killed_run_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "measure_pace", paced(3))
    with monkeypatch.context() as patch, pytest.raises(Reached):
        patch.setattr(stages, "recover", reached)
        run_in(tmp_path, minutes=2.5, epochs=None)
    monkeypatch.setattr(stages, "measure_pace", reached)  # nothing is measured again
    labels = []

    def recover(*arguments, label, **options):
        labels.append(label)
        return finetune.recover(*arguments, label=label, **options)

    monkeypatch.setattr(stages, "recover", recover)
    result = run_in(tmp_path, minutes=2.5, epochs=None, resume=True)
    steps = tiny_task("residual").data.train.steps(32)
    assert result.values["settings"]["recovery"]["epochs"] == 3 / steps
    assert result.values["settings"]["minutes"] == 2.5
    assert result.values["history"]["recover"][-1]["epoch"] == 3 / steps
    assert labels == [f"recovering for {3 / steps:.3g} epochs"]
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    (planned,) = [event for event in events if event["event"] == "planned"]
    assert (planned["minutes"], planned["epochs"]) == (2.5, 3 / steps)
    with pytest.raises(UserError, match=r"minutes was 2\.5, is now 5"):
        run_in(tmp_path, minutes=5, epochs=None, resume=True)


def test_more_minutes_are_more_epochs_and_a_moment_is_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "measure_pace", paced(None))  # a second for a step

    def epochs(name, minutes):
        return run_in(tmp_path / name, minutes=minutes, epochs=None).values["settings"]["recovery"]["epochs"]

    steps = tiny_task("residual").data.train.steps(32)
    assert epochs("moment", 1e-6) == 1 / steps
    assert epochs("longer", 0.1) == 5 / steps  # 6 s, less a tenth


def test_real_steps_are_tried_and_leave_no_trace_in_what_is_recovered(tmp_path):
    timed = run_in(tmp_path / "measured", minutes=1e-6, epochs=None)
    again = run_in(tmp_path / "again", epochs=timed.values["settings"]["recovery"]["epochs"])
    assert again.values["after"]["accuracy"] == timed.values["after"]["accuracy"]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("again", "measured")]
    assert files[0] == files[1]


def test_a_damaged_plan_is_refused(tmp_path):
    (tmp_path / "recover").mkdir()
    write_json(tmp_path / "recover" / "plan.json", {"epochs": -1})
    with pytest.raises(FileError, match="Remove the folder recover"):
        read_plan(tmp_path)
