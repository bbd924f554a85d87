"""How images are read is stored with a run, and everything that goes on with the run reads them so."""

import json

import pytest
import torch
from PIL import Image

import prunus
from prunus import cli
from prunus.errors import UserError
from prunus.files import read_json
from prunus.run import Settings, compare_data, prune
from tests.lib.models import imported_beside_torchvision
from tests.lib.photos import write_photos

SHORT = {"base_epochs": 1, "epochs": 1, "batch_size": 8, "workers": 0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data"), {"cat": 14, "dog": 14}, (40, 36))


def run(photos, out, model="zoo:digits_resnet", resume=False, **settings):
    settings = Settings(**SHORT | settings)
    return prune(model, data=f"imagefolder:{photos}", out=out, settings=settings, resume=resume)


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "own"
    run(photos, out, image_size=16, mean=(0.2,), std=(0.7,), crop=0.5, interpolation="nearest")
    return out


def test_a_runs_preprocessing_is_stored_logged_and_used(photos, finished):
    saved = prunus.load(finished)
    how = saved.preprocessing
    assert (how.size, how.mean, how.std, how.crop) == ((16, 16), (0.2,), (0.7,), 0.5)
    stored = read_json(finished / "result.json")["data"]["preprocessing"]
    assert stored["source"] == "image_size, mean, std, crop, interpolation as given"
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    (said,) = [line["how"] for line in lines if line["event"] == "preprocessing"]
    assert said == (
        "gray, 16x16 pixels, the central 50 %, nearest, mean 0.2, deviation 0.7; from image_size, mean, std, crop, "
        "interpolation as given"
    )
    x = saved.read(photos / "cat" / "0.png")
    assert x.shape == (1, 1, 16, 16) and torch.isclose(x.min() * 0.7 + 0.2, torch.tensor(0.0), atol=0.1)


def test_resuming_with_another_preprocessing_is_refused(photos, finished):
    options = {"image_size": 16, "mean": (0.2,), "std": (0.7,), "crop": 0.5, "interpolation": "nearest"}
    for changed in ({"mean": (0.3,)}, {"interpolation": "bicubic"}, {"crop": None}):
        with pytest.raises(UserError, match=f"begun with other settings: {next(iter(changed))} was"):
            run(photos, finished, resume=True, **options | changed)
    run(photos, finished, resume=True, **options | {"workers": 1})


def test_compare_says_that_images_were_read_otherwise(photos, finished, tmp_path):
    run(photos, tmp_path / "run", image_size=16)
    (said,) = compare_data([finished, tmp_path / "run"])
    assert (
        "mean of the images was (0.2,), is (0.3,)" in said
        and "interpolation of the images was nearest" in said
    )


def test_the_command_takes_them_and_a_transform(photos, tmp_path, capsys):
    common = ["run", "--model", "zoo:digits_resnet", "--data", f"imagefolder:{photos}", "--base-epochs", "1"]
    common += ["--epochs", "1", "--workers", "0", "--out"]
    given = "--image-size 12 --mean 0.4 --std 0.5 --crop 0.9 --interpolation bicubic".split()
    assert cli.main([*common, str(tmp_path / "one"), *given]) == 0
    how = prunus.load(tmp_path / "one").preprocessing
    assert (how.size, how.mean, how.crop, how.interpolation) == ((12, 12), (0.4,), 0.9, "bicubic")
    transform = "tests.data.test_preprocessing:as_tensor"
    capsys.readouterr()
    assert cli.main([*common, str(tmp_path / "two"), "--transform", transform, "--crop", "0.5"]) == 2
    assert "with a transform of your own there is no use for crop" in capsys.readouterr().err
    assert cli.main([*common, str(tmp_path / "two"), "--transform", transform]) == 0
    saved = prunus.load(tmp_path / "two")
    assert saved.preprocessing.transform == transform
    assert saved.read(photos / "cat" / "0.png").shape == (1, 1, 8, 8)
    assert [len(found) for found in saved.predict([photos / "cat" / "0.png"])] == [1]


def test_a_model_of_timm_brings_its_own(tmp_path):
    imported_beside_torchvision("timm")
    photos = write_photos(tmp_path / "photos", {"cat": 10, "dog": 10}, (90, 70))
    for image in photos.rglob("*.png"):
        Image.open(image).convert("RGB").save(image)
    run(photos, tmp_path / "run", "timm:test_vit", method="magnitude", image_size=160)
    how = prunus.load(tmp_path / "run").preprocessing
    assert "timm's pretrained_cfg of test_vit" in how.source and how.mean == (0.5,) * 3


def test_data_that_are_given_as_an_object_take_no_options(digits):
    with pytest.raises(UserError, match=r"given as an object .* so mean=\(0.1,\) has no meaning"):
        prune("zoo:digits_resnet", data=digits, out="never", settings=Settings(mean=(0.1,)))
