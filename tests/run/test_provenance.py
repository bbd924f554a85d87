"""A run knows its data: it refuses to resume on others, and a saved run reads a new image as the run did."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import prunus
from prunus import zoo
from prunus.data import Data, load_data
from prunus.errors import FileError, UserError
from prunus.files import read_json, write_json
from prunus.run import Settings, load_run, prune
from prunus.selection import Budget
from tests.lib.photos import write_photos

SETTINGS = {"base_epochs": 1, "epochs": 1, "method": "magnitude"}


def run_on(photos, folder, resume=False, **options):
    settings = Settings(**(SETTINGS | options))
    data = f"imagefolder:{photos}"
    return prune(
        "zoo:digits_resnet", data=data, budget=Budget(macs=0.5), out=folder, settings=settings, resume=resume
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos", {"cat": 60, "dog": 60})


@pytest.fixture(scope="module")
def finished(photos):
    folder = photos.parent / "run"
    run_on(photos, folder)
    return folder


@pytest.fixture
def copies(photos, finished, tmp_path):
    """A copy of the photos, and of a run on them that is as if killed in its last stage."""
    data, run = shutil.copytree(photos, tmp_path / "photos"), shutil.copytree(finished, tmp_path / "run")
    (run / "stages" / "evaluate.json").unlink()
    (run / "result.json").unlink()
    settings = read_json(run / "settings.json") | {"data": f"imagefolder:{data}"}
    write_json(run / "settings.json", settings)
    return data, run


def test_the_data_are_stored_with_the_run_and_in_the_log(finished):
    stored, result = read_json(finished / "data.json"), read_json(finished / "result.json")
    assert len(stored["items"]) == 120 and stored["class_names"] == ["cat", "dog"]
    assert result["data"] == {k: v for k, v in stored.items() if k not in ("items", "format")}
    events = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    (line,) = [event for event in events if event["event"] == "data"]
    assert (line["found"], line["used"], line["skipped"]) == (120, 120, {})
    assert sum(line["images"].values()) == 120
    assert "120 images" in (finished / "report.html").read_text()


def test_it_resumes_on_the_same_data(copies):
    run_on(*copies, resume=True)
    assert (copies[1] / "result.json").exists()


def test_it_refuses_to_resume_on_data_that_changed_and_says_what(copies):
    data, run = copies
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(data / "cat" / "new.png")
    (data / "dog" / "5.png").unlink()
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"new: cat/new\.png.*gone: dog/5\.png.*other folder"):
        run_on(data, run, resume=True)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_before_anything_is_trained_data_may_still_change(copies):
    data, run = copies
    for name in ("stages", "base", "prune", "pruned", "recover"):
        shutil.rmtree(run / name, ignore_errors=True)
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(data / "cat" / "new.png")
    run_on(data, run, resume=True)
    assert "cat/new.png" in read_json(run / "data.json")["items"]


def test_a_damaged_data_json_is_named(copies):
    data, run = copies
    (run / "data.json").write_text("{}")
    with pytest.raises(FileError, match=r"data\.json"):
        run_on(data, run, resume=True)


def test_a_run_of_version_0_1_0_resumes_with_a_sentence_and_its_own_split(photos, tmp_path, monkeypatch):
    """It stored no data.json, and held out by position: its test images must stay its test images."""
    folder = tmp_path / "old"
    with monkeypatch.context() as patch:
        patch.setattr("prunus.run.provenance.split_of", lambda folder: "position")
        run_on(photos, folder)
    (folder / "data.json").unlink()
    for stage in ("recover", "evaluate"):
        (folder / "stages" / f"{stage}.json").unlink()
    with pytest.warns(UserWarning, match="stored nothing about its data.*by position"):
        result = run_on(photos, folder, resume=True)
    assert result.values["data"]["split_by"] == "position"
    old = load_data(f"imagefolder:{photos}", split_by="position").fingerprint
    assert result.values["data"]["splits"] == old.summary()["splits"]
    run_on(photos, folder, resume=True)  # and from now on it is known, without a word


def test_unreadable_images_are_left_out_on_request_and_reported(tmp_path):
    data = write_photos(tmp_path / "photos", {"cat": 30, "dog": 30})
    (data / "cat" / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="1 of 60 images"):
        run_on(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    result = run_on(data, tmp_path / "run", skip_broken=True).values
    assert result["data"]["skipped"] == {"unreadable": 1} and result["settings"]["skip_broken"]
    assert "1 unreadable" in (tmp_path / "run" / "report.html").read_text()


def test_data_of_a_users_own_are_known_by_their_numbers(tmp_path):
    data = load_data("digits")
    own = Data("mine", 10, data.example, data.train.take(np.arange(200)), data.val, data.test)
    model, settings = zoo.build("digits_resnet"), Settings(epochs=1, method="magnitude")
    arguments = {"budget": Budget(macs=0.5), "out": tmp_path / "run", "settings": settings}
    prune(model, data=own, **arguments)
    (tmp_path / "run" / "stages" / "evaluate.json").unlink()
    fewer = Data("mine", 10, data.example, data.train.take(np.arange(199)), data.val, data.test)
    with pytest.raises(UserError, match="train had 200 images, has 199"):
        prune(model, data=fewer, resume=True, **arguments)


def test_a_split_that_a_user_has_replaced_is_noticed(photos, finished):
    data = load_data(f"imagefolder:{photos}")
    saved = prunus.load(finished)
    saved.check(data)
    with pytest.raises(UserError, match="test had"):
        saved.check(replace(data, test=data.test.take(np.arange(3))))
    order = np.arange(len(data.test))[::-1]
    with pytest.raises(UserError, match="test holds other images, or in another order"):
        saved.check(replace(data, test=data.test.take(order)))


def test_a_saved_run_gives_back_classes_and_reading(photos, finished):
    saved = prunus.load(finished)
    assert saved.class_names == ("cat", "dog") and saved.preprocessing.size == (8, 8)
    data = load_data(f"imagefolder:{photos}")
    names = list(data.fingerprint.items)
    files = [photos / names[member] for member in data.test.members]
    x, _ = next(data.test.batches(len(files)))
    assert torch.equal(torch.cat([saved.read(file) for file in files]), x)
    best = [found[0].class_name for found in saved.predict(files)]
    right = sum(
        name == data.fingerprint.class_names[label]
        for name, label in zip(best, data.test.labels, strict=True)
    )
    assert right / len(files) == read_json(finished / "result.json")["after"]["accuracy"]


def test_predictions_are_probabilities_in_order(photos, finished):
    (found,) = prunus.load(finished).predict([photos / "cat" / "0.png"], top=5)
    assert {each.class_name for each in found} == {"cat", "dog"}
    assert found[0].probability >= found[1].probability
    assert sum(each.probability for each in found) == pytest.approx(1)


def test_files_that_cannot_be_read_are_all_named(finished, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"(?s)a\.png.*b\.png"):
        prunus.load(finished).predict([tmp_path / "a.png", tmp_path / "b.png"])


def test_the_readmes_three_lines_for_a_new_image_work(photos, finished, capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = [b for b in readme.split("```python\n")[1:] if "saved" in b]
    block = block.partition("```")[0]
    assert len(block.splitlines()) == 3
    block = block.replace("run/", f"{finished}/").replace("new.jpg", str(photos / "dog" / "1.png"))
    exec(block, {"prunus": prunus})
    assert capsys.readouterr().out.strip() in ("cat", "dog")


def test_a_saved_run_says_whether_data_are_those_it_was_made_with(photos, finished, tmp_path):
    saved = prunus.load(finished)
    saved.check(load_data(f"imagefolder:{photos}", seed=0))
    other = write_photos(tmp_path / "other", {"cat": 60, "dog": 60}, seed=1)
    with pytest.raises(UserError, match="120 images changed"):
        saved.check(load_data(f"imagefolder:{other}"))


def test_a_run_of_version_0_1_0_loads_without_what_it_did_not_store(photos, finished, tmp_path):
    old = shutil.copytree(finished, tmp_path / "old")
    (old / "data.json").unlink()
    result = read_json(old / "result.json")
    del result["data"]
    write_json(old / "result.json", result)
    saved = prunus.load(old)
    assert saved.class_names == ("0", "1") and saved.preprocessing is None
    assert saved.model(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    with pytest.raises(UserError, match="does not say how an image is read"):
        saved.read(photos / "cat" / "0.png")
    with pytest.raises(UserError, match="nothing about its data"):
        saved.check(load_data("digits"))


def test_a_model_of_ones_own_is_handed_in(tmp_path):
    model = zoo.build("digits_resnet")
    settings = Settings(epochs=1, method="magnitude")
    prune(model, data="digits", budget=Budget(macs=0.5), out=tmp_path / "run", settings=settings)
    with pytest.raises(UserError, match=r"load_run\(folder, model\)"):
        prunus.load(tmp_path / "run")
    assert isinstance(prunus.load(tmp_path / "run", model), type(model))  # as ever
    saved = load_run(tmp_path / "run", model)
    assert saved.class_names == tuple("0123456789") and saved.read(np_image()).shape == (1, 1, 8, 8)


def np_image():
    return Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        prunus.load(tmp_path)
    graph = prunus.trace(model := nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), torch.zeros(1, 4))
    keep = {next(iter(graph.axes)): [0, 1]}
    prunus.save(tmp_path / "small", prunus.shrink(model, graph, keep), keep, graph)
    with pytest.raises(UserError, match=r"prunus\.load\(folder, model\)"):
        prunus.load(tmp_path / "small")
