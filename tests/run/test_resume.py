"""Resuming: which settings may be corrected, and what is said of another environment."""

import json
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import fields

import pytest
import torch

from prunus.errors import PrunusError, UserError
from prunus.files import read_json, write_json
from prunus.run import RunFolder, Settings, folder, pipeline, prune
from prunus.run.recipes import PARTS
from prunus.run.settings import OF_ENVIRONMENT, READ_BY
from prunus.selection import Budget

SETTINGS = {"seed": 0, "base_lr": 0.1, "method": "taylor", "budget": {"macs": 0.5}, "lr": 0.1}


def begun(path, *stages, **changes):
    """A run in which the stages are finished."""
    with RunFolder(path, SETTINGS | changes) as run:
        for stage in stages:
            run.stage(stage, dict)
    return path


def resume(path, **changes):
    with RunFolder(path, SETTINGS | changes, resume=True) as run:
        return run


# ----------------------------------------------------------------------------------- corrected settings
def test_every_setting_belongs_to_a_stage_or_to_the_environment():
    of_stages = [name for names in READ_BY.values() for name in names]
    assert len(of_stages) == len(set(of_stages))
    known = {field.name for field in fields(Settings)} - {"recipe"} | {"model", "data", "task", "budget"}
    known |= {f"recipe.{part}" for part in PARTS}  # as they are stored
    assert known == {*of_stages, *OF_ENVIRONMENT}


def test_settings_that_nothing_depends_on_yet_may_be_corrected(tmp_path):
    begun(tmp_path, "base")
    resume(tmp_path, method="magnitude", budget={"macs": 0.4}, lr=0.2)
    assert read_json(tmp_path / "settings.json")["method"] == "magnitude"
    for name, value in {"seed": 1, "base_lr": 0.2}.items():
        with pytest.raises(UserError, match=rf"{name} was .*, is now {value}\. What is done .*stages base"):
            resume(tmp_path, method="magnitude", **{name: value})


def test_before_the_first_stage_everything_may_be_corrected(tmp_path):
    write_json(tmp_path / "settings.json", SETTINGS)  # a kill while the data was read left this
    resume(tmp_path, seed=5, base_lr=0.7)
    assert read_json(tmp_path / "settings.json")["seed"] == 5


def test_a_finished_stage_holds_the_settings_of_all_before_it(tmp_path):
    begun(tmp_path, "base", "prune", "shrink")
    with pytest.raises(UserError, match=r"budget\.macs was 0\.5, is now 0\.4\. "):
        resume(tmp_path, budget={"macs": 0.4})
    resume(tmp_path, lr=0.2)


def test_a_begun_stage_holds_its_settings_and_says_how_to_begin_again(tmp_path):
    begun(tmp_path, "base", "prune", "shrink")
    (tmp_path / "recover").mkdir()
    resume(tmp_path, lr=0.3)
    (tmp_path / "recover" / "checkpoint.safetensors").touch()
    with pytest.raises(
        UserError, match=rf"compute stage recover anew .*, remove {tmp_path}/recover and resume"
    ):
        resume(tmp_path, lr=0.2)
    with pytest.raises(UserError) as refused:
        resume(tmp_path, lr=0.2, seed=1)
    assert "anew" not in str(refused.value)  # because of the seed the base would have to go, too


def test_settings_of_a_later_version_hold_from_the_first_stage_on(tmp_path):
    begun(tmp_path, "base")
    with pytest.raises(UserError, match="colour was None, is now 3"):
        resume(tmp_path, colour=3)


def test_a_corrected_run_ends_in_what_was_corrected(digits_run, tmp_path):
    copy = shutil.copytree(digits_run, tmp_path / "copy")
    for stage in ("recover", "evaluate"):
        (copy / "stages" / f"{stage}.json").unlink()
    shutil.rmtree(copy / "recover")
    settings = Settings(base_epochs=3, epochs=1)
    half = Budget(macs=0.5)
    result = prune("zoo:digits_resnet", data="digits", budget=half, out=copy, settings=settings, resume=True)
    assert [len(result.values["history"][stage]) for stage in ("base", "recover")] == [3, 1]
    assert result.values["settings"]["epochs"] == 1


# ----------------------------------------------------------------------------- before the first stage
def test_settings_are_stored_before_any_data_is_read_and_go_if_the_run_is_refused(tmp_path, monkeypatch):
    there = []

    def read(*_):
        there.extend(path.name for path in sorted((tmp_path / "run").iterdir()))
        raise UserError("the data is damaged")

    monkeypatch.setattr(pipeline, "make_task", read)
    with pytest.raises(UserError, match="damaged"):
        prune("zoo:digits_resnet", data="digits", out=tmp_path / "run")
    assert there == [".lock", "settings.json"]
    assert not (tmp_path / "run").exists()


def test_a_refused_run_leaves_a_folder_that_was_there_empty(tmp_path):
    with pytest.raises(PrunusError), RunFolder(tmp_path, SETTINGS):
        raise PrunusError("no")
    assert not list(tmp_path.iterdir())


def test_a_refused_resume_leaves_the_run(tmp_path):
    begun(tmp_path, "base")
    with pytest.raises(PrunusError), RunFolder(tmp_path, SETTINGS, resume=True):
        raise PrunusError("no")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "settings.json", "stages"]


# ------------------------------------------------------------------------------------ the environment
@pytest.fixture
def environments(monkeypatch):
    """The environment that runs see, to be changed by the test."""
    here = folder.environment(torch.device("cpu"), 1)
    monkeypatch.setattr(folder, "environment", lambda device, processes: dict(here))
    return here


def test_the_environment_is_stored_with_the_run(tmp_path):
    begun(tmp_path, "base")
    (stored,) = read_json(tmp_path / "settings.json")["environments"]
    assert stored["threads"] == torch.get_num_threads() and stored["device"] == "cpu"
    assert set(stored) == {"threads", "processes", "device", "instructions", "python", "torch", "prunus"}


def test_a_run_that_goes_on_elsewhere_says_so_once_and_remembers(tmp_path, environments):
    begun(tmp_path, "base")
    environments |= {"threads": 7, "python": "3.99"}
    with pytest.warns(UserWarning) as said, RunFolder(tmp_path, SETTINGS, resume=True) as run:
        run.stage("prune", dict)
        run.stage("shrink", dict)
    (text,) = [str(each.message) for each in said]
    here = torch.get_num_threads()
    assert f"threads was {here}, is now 7; python was" in text and "last digits" in text
    assert [each["threads"] for each in run.environments][1:] == [7]
    assert read_json(tmp_path / "settings.json")["environments"] == run.environments


@pytest.mark.parametrize("name", ["device", "torch", "prunus"])
def test_what_may_change_more_than_the_last_digits_is_said(tmp_path, environments, name):
    begun(tmp_path, "base")
    environments |= {name: "another", "threads": 7}
    with pytest.warns(UserWarning, match=rf"{name} was .*, is now another.* as with another seed"):
        with RunFolder(tmp_path, SETTINGS, resume=True) as run:
            run.stage("prune", dict)


def test_the_same_environment_and_finished_stages_say_nothing(tmp_path, environments):
    begun(tmp_path, "base")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with RunFolder(tmp_path, SETTINGS, resume=True) as run:
            run.stage("prune", dict)
        environments["threads"] = 7
        with RunFolder(tmp_path, SETTINGS, resume=True) as run:
            run.stage("prune", dict)
    assert len(run.environments) == 1


def test_a_run_of_an_earlier_version_has_no_environment_and_resumes(tmp_path):
    begun(tmp_path, "base")
    write_json(tmp_path / "settings.json", SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with RunFolder(tmp_path, SETTINGS, resume=True) as run:
            run.stage("prune", dict)
    assert len(run.environments) == 1


def test_threads_are_set_for_the_run_stored_and_set_back(digits_run, tmp_path):
    copy = shutil.copytree(digits_run, tmp_path / "copy")
    (copy / "stages" / "evaluate.json").unlink()
    before, seen = torch.get_num_threads(), []

    @contextmanager
    def progress(label, total):
        seen.append(torch.get_num_threads())
        yield lambda done=1, note="": None

    settings = Settings(base_epochs=3, epochs=2, threads=before + 1)
    with pytest.warns(UserWarning, match=rf"threads was {before}, is now {before + 1}\. .*last digits"):
        result = prune(
            "zoo:digits_resnet",
            data="digits",
            budget=Budget(macs=0.5),
            out=copy,
            settings=settings,
            resume=True,
            progress=progress,
        )
    assert set(seen) == {before + 1} and torch.get_num_threads() == before
    assert [each["threads"] for each in result.values["environments"]] == [before, before + 1]
    assert result.values["settings"]["threads"] == before + 1
    assert json.loads((copy / "result.json").read_text())["environments"] == result.values["environments"]
