"""Rows of tables: which columns are inputs, how they are scaled and split, and what is refused."""

from functools import partial

import numpy as np
import pytest
import torch

from prunus.data import Columns, Features, ImageOptions, load_rows, read_labels, read_numbers
from prunus.errors import UserError
from tests.lib.tables import LABELS, numbers, pictures, write

HEIGHT = partial(read_numbers, columns=("height",))
TAGS = partial(read_labels, columns=("labels",))


def load(path, read=HEIGHT, columns=None, augment=False, **options):
    spec = f"{path.suffix[1:]}:{path}" if path.suffix else f"csv:{path}"
    return load_rows(spec, read, columns or Columns(), augment=augment, **options)


def everything(split) -> tuple[torch.Tensor, torch.Tensor]:
    return split.read(np.arange(len(split)))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_columns_of_numbers_are_standardised_by_train(suffix, tmp_path):
    rows = numbers(60)
    data = load(write(tmp_path / f"table{suffix}", rows))
    source = data.train.source
    assert isinstance(source, Features)
    assert source.names == ("a", "b", "c", "constant", "d", "depth", "warm", "wet")  # no text, no target
    x, y = everything(data.train)
    assert x.shape == (len(data.train), 8) and y.shape == (len(data.train), 1)
    changing = [number for number, name in enumerate(source.names) if name != "constant"]
    assert torch.allclose(x.mean(0), torch.zeros(8), atol=1e-5)
    assert torch.allclose(x.std(0, correction=0)[changing], torch.ones(7), atol=1e-5)
    assert (x[:, 3] == 0).all()
    for split in data.splits.values():
        x, y = everything(split)
        raw = x.double().numpy() * source.std + source.mean
        for values, target, member in zip(raw, y, split.members, strict=True):
            assert values == pytest.approx([rows[member][name] for name in source.names], abs=1e-3)
            assert target.item() == pytest.approx(rows[member]["height"])
    assert sorted(np.concatenate([s.members for s in data.splits.values()])) == list(range(60))


def test_splits_are_files_of_a_folder_and_share_the_scale_of_train(tmp_path):
    for seed, (name, count) in enumerate({"train": 20, "val": 6, "test": 8}.items()):
        write(tmp_path / f"{name}.csv", numbers(count, seed))
    data = load(tmp_path, columns=Columns(features=("b", "d")))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 20, "val": 6, "test": 8}
    train = np.array([[row["b"], row["d"]] for row in numbers(20, 0)])
    x, _ = everything(data.test)
    test = np.array([[row["b"], row["d"]] for row in numbers(8, 2)])
    assert np.allclose(x, (test - train.mean(0)) / train.std(0), atol=1e-5)


def test_a_row_that_is_added_moves_no_other(tmp_path):
    before = load(write(tmp_path / "a.csv", numbers(40)))
    after = load(write(tmp_path / "b.csv", numbers(41)))
    for name, split in before.splits.items():
        assert set(split.members) <= set(after.splits[name].members)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_images_are_named_by_a_column(suffix, tmp_path):
    rows = pictures(tmp_path, 30)
    data = load(write(tmp_path / f"train{suffix}", rows), partial(read_numbers, columns=("brightness",)))
    for split in data.splits.values():
        x, y = everything(split)
        gray = x.permute(0, 2, 3, 1) * torch.tensor([0.229, 0.224, 0.225]) + torch.tensor(
            [0.485, 0.456, 0.406]
        )
        assert torch.allclose(255 * gray.mean((1, 2, 3)), y[:, 0], atol=0.5)
    assert data.example.shape == (1, 3, 12, 12)
    x, _ = everything(data.train)
    assert torch.equal(x, data.train.read(np.arange(len(x)), (1, 2))[0])  # a change might change the number
    moved = load(
        tmp_path / f"train{suffix}", partial(read_numbers, columns=("brightness",)), augment=True
    ).train
    assert not torch.equal(x, moved.read(np.arange(len(x)), (1, 2))[0])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_labels_are_listed_or_stand_in_columns(suffix, tmp_path):
    rows = pictures(tmp_path, 30)
    data = load(write(tmp_path / f"train{suffix}", rows), TAGS)
    assert data.fingerprint.class_names == tuple(sorted(LABELS)) and data.classes is None
    for split in data.splits.values():
        for member, target in zip(split.members, everything(split)[1], strict=True):
            assert {name for name, there in zip(sorted(LABELS), target, strict=True) if there} == set(
                rows[member]["labels"]
            )
    flags = [{"file": row["file"], **{name: int(name in row["labels"]) for name in LABELS}} for row in rows]
    wide = load(write(tmp_path / f"wide{suffix}", flags), partial(read_labels, columns=LABELS))
    for name, split in data.splits.items():
        assert np.array_equal(wide.splits[name].labels, split.labels)


def test_a_changed_target_is_noticed(tmp_path):
    rows = numbers(20)
    before = load(write(tmp_path / "a.csv", rows)).fingerprint
    rows[3]["height"] += 1
    (change,) = before.differences(load(write(tmp_path / "a.csv", rows)).fingerprint)
    assert change == "1 image changed: train 3"


# -------------------------------------------------------------------------------------- bad input
def changed(column, value, row=4, count=20):
    rows = numbers(count)
    rows[row][column] = value
    return rows


FAULTS = {
    "an empty target": (
        changed("height", ""),
        {},
        r"column 'height' of .*: 1 of 20 rows hold no finite number; the first is row 5, nan",
    ),
    "an infinite target": (changed("height", float("inf")), {}, r"the first is row 5, inf"),
    "a text as target": (
        changed("height", "tall"),
        {},
        r"column 'height' .*should hold numbers, but row 5 holds 'tall'",
    ),
    "no such column": (
        numbers(20),
        {"read": partial(read_numbers, columns=("hight",))},
        r"unknown column of 'train' in .* 'hight'\. Did you mean height.* Name the right one with --target, --labels",
    ),
    "an empty feature": (changed("c", ""), {}, r"column 'c' of .*the first is row 5"),
    "a text as feature": (
        numbers(20),
        {"columns": Columns(features=("name",))},
        r"column 'name' .*row 1 holds 'row 0'",
    ),
    "a target as feature": (
        numbers(20),
        {"columns": Columns(features=("height",))},
        r"'height' of .* is a target, so it cannot be an input",
    ),
    "images and features": (
        numbers(20),
        {"columns": Columns(image="name", features=("a",))},
        r"image_column and features are both given",
    ),
    "no image": (numbers(20), {"columns": Columns(image="photo")}, r"unknown column of .*'photo'"),
    "images that are not there": (
        numbers(20),
        {"columns": Columns(image="name")},
        r"none of the 20 images of .*row 0 cannot be read",
    ),
    "no input": (
        [{"height": n, "name": "x"} for n in range(9)],
        {},
        r"has the columns height, name, of which none is an input",
    ),
    "too few": (numbers(2), {}, r"has 2 rows to train on; at least 3 are needed"),
    "a size for numbers": (
        numbers(20),
        {"images": ImageOptions(image_size=8)},
        "so image_size would have no effect",
    ),
    "flags that are none": (
        changed("wet", 2),
        {"read": partial(read_labels, columns=("warm", "wet"))},
        r"column 'wet' .*should hold 0 and 1, but row 5 holds 2\. Give one column",
    ),
    "a label never true": (
        [row | {"wet": 0} for row in numbers(20)],
        {"read": partial(read_labels, columns=("warm", "wet"))},
        r"label 'wet' is true in no row of 'train'",
    ),
    "no labels": (
        [row | {"labels": ";"} for row in numbers(20)],
        {"read": TAGS},
        r"column 'labels' .*holds no label in any row",
    ),
}


@pytest.mark.parametrize(("rows", "options", "sentence"), FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_is_said(rows, options, sentence, tmp_path):
    path = write(tmp_path / "table.csv", rows)
    with pytest.raises(UserError, match=sentence):
        load(path, **options)


def test_labels_that_train_lacks_are_refused(tmp_path):
    rows = pictures(tmp_path, 20)
    write(tmp_path / "train.csv", rows[:10])
    write(tmp_path / "val.csv", [*rows[10:14], rows[15] | {"labels": ["red", "tall"]}])
    write(tmp_path / "test.csv", rows[16:])
    with pytest.raises(
        UserError, match=r"row 5 of 'val' in .* has the label 'tall', which no row of train has"
    ):
        load(tmp_path, TAGS)


def test_damaged_images_are_listed_or_left_out(tmp_path):
    rows = pictures(tmp_path, 20)
    (tmp_path / "photos" / "3.png").write_bytes(b"nothing")
    (tmp_path / "photos" / "5.png").unlink()
    path = write(tmp_path / "train.csv", rows)
    with pytest.raises(UserError, match=r"2 of 20 images of .* cannot be read(.|\n)*3.png(.|\n)*5.png"):
        load(path, TAGS)
    data = load(path, TAGS, skip_broken=True)
    assert sum(len(split) for split in data.splits.values()) == 18 and len(data.fingerprint.items) == 18


def test_places_without_tables_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"unknown source of tables 'imagefolder:x'"):
        load_rows("imagefolder:x", HEIGHT, Columns(), augment=False)
    with pytest.raises(UserError, match=r"is empty: no \.csv files"):
        load_rows(f"csv:{tmp_path}", HEIGHT, Columns(), augment=False)
    (tmp_path / "train.jsonl").write_text('{"a": 1\nnothing')
    with pytest.raises(UserError, match=r"the jsonl files in .* cannot be read"):
        load_rows(f"jsonl:{tmp_path}", HEIGHT, Columns(), augment=False)
