"""What a data set was: a change is noticed and named, and the hold-out does not move."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from prunus.data import Fingerprint, ImageOptions, fingerprint_of_splits, load_data
from prunus.errors import FileError, UserError
from tests.lib.photos import write_photos

FILE = Path("data.json")


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", {"cat": 40, "dog": 40, "owl": 40})


@pytest.fixture
def many_photos(tmp_path):
    """So many that some of each class are below every share; see `hold_out_by_content`."""
    return write_photos(tmp_path / "many", {"cat": 250, "owl": 250})


def fingerprint(folder, **options):
    return load_data(f"imagefolder:{folder}", **options).fingerprint


def names_of(folder, split):
    data = load_data(f"imagefolder:{folder}")
    names = list(data.fingerprint.items)
    return {names[member] for member in getattr(data, split).members}


def test_the_same_data_have_the_same_fingerprint_wherever_they_lie(photos, tmp_path):
    moved = shutil.copytree(photos, tmp_path / "elsewhere")
    assert fingerprint(photos) == fingerprint(moved)
    assert fingerprint(photos).differences(fingerprint(moved)) == []


def test_it_survives_json(photos):
    one = fingerprint(photos)
    again = Fingerprint.from_json(json.loads(json.dumps(one.to_json())), FILE)
    assert again == one and again.items == dict(one.items)
    assert "items" not in one.summary()


def test_counts_classes_and_reading_are_in_it(photos):
    one = fingerprint(photos)
    assert one.class_names == ("cat", "dog", "owl") and one.classes == 3
    assert (one.found, one.used, one.skipped, one.split_by) == (120, 120, {}, "content")
    assert one.preprocessing.size == (8, 8) and one.preprocessing.std == (0.35,)
    assert sum(part.images for part in one.splits.values()) == 120
    assert load_data("digits").fingerprint.class_names == tuple("0123456789")


def test_what_is_new_gone_and_changed_is_named(photos):
    before = fingerprint(photos)
    for index in range(5):
        Image.fromarray(np.full((8, 8), 200 + index, np.uint8)).save(photos / "cat" / f"new{index}.png")
    (photos / "dog" / "3.png").unlink()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(photos / "owl" / "7.png")
    said = "; ".join(before.differences(fingerprint(photos)))
    assert "5 images new: cat/new0.png, cat/new1.png, cat/new2.png and 2 more" in said
    assert "1 image gone: dog/3.png" in said and "1 image changed: owl/7.png" in said
    write_photos(photos, {"ant": 5})
    shutil.rmtree(photos / "owl")
    said = "; ".join(before.differences(fingerprint(photos)))
    assert "1 class new: ant" in said and "1 class gone: owl" in said and "images gone: dog/3.png" in said


def test_numbers_of_images_are_compared(photos):
    before = fingerprint(photos)
    for file in (photos / "cat").iterdir():
        file.unlink() if file.stem.startswith("1") else None
    after = fingerprint(photos)
    had, has = before.splits["train"].images, after.splits["train"].images
    assert f"train had {had} images, has {has}" in before.differences(after)


def test_other_names_and_another_order_are_noticed(photos):
    before = fingerprint(photos)
    (photos / "cat" / "0.png").rename(photos / "cat" / "99.png")
    (said,) = before.differences(fingerprint(photos))
    assert "another order" in said


def test_an_image_of_another_class_is_a_change(photos):
    before = fingerprint(photos)
    (photos / "cat" / "0.png").rename(photos / "dog" / "cat0.png")
    said = "; ".join(before.differences(fingerprint(photos)))
    assert "1 image new: dog/cat0.png" in said and "1 image gone: cat/0.png" in said


def test_another_way_of_reading_is_named(photos):
    said = "; ".join(fingerprint(photos).differences(fingerprint(photos, images=ImageOptions(image_size=16))))
    assert "size of the images was (8, 8), is (16, 16)" in said


def test_test_is_the_same_for_every_seed_and_val_is_not(photos):
    one, two = fingerprint(photos), fingerprint(photos, seed=1)
    assert one.differences(two, splits=("test",)) == []
    assert one.differences(two)


def test_an_image_that_is_added_moves_no_other(many_photos):
    photos = many_photos
    before = {split: names_of(photos, split) for split in ("train", "val", "test")}
    assert all(before.values())
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(photos / "cat" / "000 first.png")
    Image.fromarray(np.full((8, 8), 78, np.uint8)).save(photos / "owl" / "5a.png")
    added = {"cat/000 first.png", "owl/5a.png"}
    assert {split: names_of(photos, split) - added for split in before} == before


def test_split_by_position_is_that_of_version_0_1_0(photos):
    data = load_data(f"imagefolder:{photos}", split_by="position")
    assert (len(data.train), len(data.val), len(data.test)) == (90, 6, 24)  # exact shares of each class
    assert data.fingerprint.split_by == "position"
    said = data.fingerprint.differences(fingerprint(photos))
    assert said


def test_rows_of_a_table_that_moved_are_neither_new_nor_gone():
    items = {f"train {i}": f"0:{i:x}" for i in range(5)}
    moved = {f"train {i}": f"0:{i - 1:x}" if i else "0:ff" for i in range(6)}
    one, two = (
        Fingerprint(hashed="all bytes", split_by="content", classes=2, splits={}, items=each)
        for each in (items, moved)
    )
    assert one.differences(two) == ["1 image new: train 0"]


def test_splits_of_a_users_own_are_known_by_numbers_and_targets(digits):
    splits = {"train": digits.train, "val": digits.val, "test": digits.test}
    one = fingerprint_of_splits(10, splits)
    assert one.differences(fingerprint_of_splits(10, splits)) == []
    fewer = fingerprint_of_splits(10, splits | {"val": digits.val.take(np.arange(5))})
    assert one.differences(fewer) == [f"val had {len(digits.val)} images, has 5"]


def test_data_that_a_callable_returns_are_known_by_their_positions():
    data = load_data(f"{__name__}:tensors")
    assert data.fingerprint.hashed == "not hashed" and data.fingerprint.preprocessing is None
    assert data.fingerprint.differences(load_data(f"{__name__}:tensors").fingerprint) == []


def tensors():
    """A data set for the test above; it may be random, so its items are not read twice."""
    items = [(torch.rand(1, 4, 4), index % 2) for index in range(40)]
    return items, items[:6]


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 2},
        {"splits": {"train": {"images": "many", "digest": "0"}}},
        {"splits": {"train": 3}},
        {"splits": None},
        {"items": {"a": 1}},
        {"items": None},
        {"skipped": []},
        {"class_names": 3},
        {"class_names": [1]},
        {"preprocessing": {"channels": 3}},
        {"preprocessing": {"channels": 3, "size": [8], "mean": [0], "std": [1]}},
        {"preprocessing": 8},
        *(
            {"preprocessing": {"channels": 1, "size": [8, 8], "mean": [0.3], "std": [0.3]} | wrong}
            for wrong in (
                {"size": [8, 2**40]},
                {"size": [8.5, 8]},
                {"std": [0.0]},
                {"mean": ["a"]},
                {"crop": 2},
                {"interpolation": "best"},
                {"interpolation": 3},
                {"channels": 2},
                {"unknown": 1},
            )
        ),
    ],
)
def test_a_damaged_file_is_refused_by_name(photos, damage):
    with pytest.raises(FileError, match=r"data\.json"):
        Fingerprint.from_json(fingerprint(photos).to_json() | damage, FILE)


def test_names_of_classes_in_a_parquet_file_are_kept(tmp_path):
    import datasets

    kind = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [Image.fromarray(np.full((8, 8), 3 * index, np.uint8)) for index in range(40)]
    rows = {"image": images, "label": [index % 2 for index in range(40)]}
    datasets.Dataset.from_dict(rows, features=kind).to_parquet(tmp_path / "train.parquet")
    found = load_data(f"parquet:{tmp_path}").fingerprint
    assert found.class_names == ("cat", "dog") and found.hashed == "all bytes"
    assert len(set(found.items.values())) == 40


def test_a_row_without_an_image_is_one_of_the_unreadable(tmp_path):
    rng = np.random.default_rng(0)
    files = [write_photos(tmp_path / "photos", {"cat": 20}) / "cat" / f"{index}.png" for index in range(20)]
    images = [{"bytes": file.read_bytes(), "path": None} for file in files]
    images[3] = None
    images[7] = {"bytes": rng.bytes(50), "path": None}
    images[9] = {"bytes": None, "path": str(files[9])}
    table = pa.table({"image": images, "label": pa.array([index % 2 for index in range(20)], pa.int64())})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"(?s)2 of 20 images.*3 of 'train'.*missing.*7 of 'train'"):
        load_data(f"parquet:{tmp_path}")
    found = load_data(f"parquet:{tmp_path}", skip_broken=True).fingerprint
    assert found.used == 18 and {"train 3", "train 7"}.isdisjoint(found.items)
