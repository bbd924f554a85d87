"""Images and label maps: how they are found, cut, mirrored and padded together, and what is refused."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from prunus.data import ImageOptions, Patches, load_label_maps
from prunus.data.label_maps import read_label_map, resize_nearest
from prunus.errors import UserError
from tests.lib.scenes import scene, write_scenes

PATCHES = Patches(side=12, each=2)


def load(folder, patches=PATCHES, **options):
    return load_label_maps(f"pairs:{folder}", patches, **options)


def same(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a, b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def coordinates(folder, side=20):
    """Images whose gray level in column c is c, and whose classes are the columns too: they must stay together."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number in range(6):
        columns = np.broadcast_to(np.arange(side, dtype=np.uint8), (side + number, side))
        Image.fromarray(columns).save(folder / "images" / f"{number}.png")
        Image.fromarray(columns).save(folder / "masks" / f"{number}.png")
    return folder


def test_image_and_mask_are_cut_and_mirrored_together(tmp_path):
    train = load(coordinates(tmp_path)).train
    x, y = next(train.batches(64, seed=0, augment=True))
    grays = (x[:, 0] * 0.35 + 0.3) * 255
    assert torch.equal(grays.round().long(), y)
    rises = {int(each[0, 1] - each[0, 0]) for each in y}
    assert rises == {1, -1}  # some are mirrored, others are not
    assert len({int(each.min()) for each in y}) > 1  # and cut at different places


def test_a_small_image_gets_a_border_that_does_not_count(tmp_path):
    train = load(coordinates(tmp_path), Patches(side=32, each=1)).train
    x, y = next(train.batches(1))
    assert x.shape == (1, 1, 32, 32) and int((y != 255).sum()) >= 20 * 20
    assert x[:, 0][y == 255].abs().max() < 1e-5  # the mean
    inside = x[:, 0][y != 255] * 0.35 + 0.3
    assert torch.equal((inside * 255).round().long(), y[y != 255])


def test_patches_depend_on_seed_epoch_and_batch_alone(tmp_path):
    folder = write_scenes(tmp_path, {"": 10})
    whole = list(load(folder).train.batches(4, seed=3, epoch=2, augment=True))
    assert same(whole, list(load(folder).train.batches(4, seed=3, epoch=2, augment=True)))
    assert same(whole[2:], list(load(folder).train.batches(4, seed=3, epoch=2, augment=True, start=2)))
    assert not same(whole, list(load(folder).train.batches(4, seed=3, epoch=3, augment=True)))


def test_val_and_test_are_whole_images_in_order(tmp_path):
    folder = write_scenes(tmp_path, {"train": 4, "val": 1, "test": 2})
    data = load(folder, class_names=("floor", "red", "green"))
    assert data.classes == 3 and data.fingerprint.class_names == ("floor", "red", "green")
    assert [len(split) for split in data.splits.values()] == [8, 1, 2]
    for number, (x, y) in enumerate(data.test.batches(5)):
        image, classes = scene(6 + number)
        assert x.shape == (1, 3, 24, 28) and torch.equal(y[0], torch.from_numpy(classes).long())
        pixels = x[0].permute(1, 2, 0) * torch.tensor([0.229, 0.224, 0.225]) + torch.tensor(
            [0.485, 0.456, 0.406]
        )
        assert torch.allclose(pixels * 255, torch.from_numpy(image).float(), atol=1e-3)


def test_splits_may_lie_in_images_and_masks(tmp_path):
    write_scenes(tmp_path / "a", {"train": 4, "test": 2, "val": 1})
    for kind in ("images", "masks"):
        for split in ("train", "test", "val"):
            (tmp_path / "b" / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / "a" / split / kind).rename(tmp_path / "b" / kind / split)
    data = load(tmp_path / "b")
    assert [len(split) for split in data.splits.values()] == [8, 1, 2]


def test_parquet_files_hold_images_and_masks(tmp_path):
    folder = write_scenes(tmp_path / "a", {"": 8})
    paths = [sorted((folder / kind).iterdir()) for kind in ("images", "masks")]
    rows = {name: [str(path) for path in each] for name, each in zip(("image", "mask"), paths, strict=True)}
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "train.parquet")
    ours = load_label_maps(f"parquet:{tmp_path / 'train.parquet'}", PATCHES)
    assert ours.train.patches == PATCHES
    theirs = load(folder)
    assert same(sorted_by_sum(ours), sorted_by_sum(theirs))  # the splits go by content, so they are the same


def sorted_by_sum(data):
    return sorted(data.test.batches(1), key=lambda pair: float(pair[0].sum()))


def test_resized_label_maps_hold_the_nearest_numbers(tmp_path):
    data = load(write_scenes(tmp_path, {"": 8}), images=ImageOptions(image_size=12))
    x, y = next(data.test.batches(1))
    assert x.shape == (1, 3, 12, 12) and y.shape == (1, 12, 12)
    assert set(y.unique().tolist()) <= {0, 1, 2, 255}
    assert data.train.patches.side == 12
    classes = np.arange(16).reshape(4, 4)
    assert resize_nearest(classes, 2).tolist() == [[5, 7], [13, 15]]
    assert np.array_equal(resize_nearest(classes, 8), classes.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("mode", ["palette", "bits", "deep"])
def test_every_kind_of_label_map_is_read_as_numbers(mode, tmp_path):
    classes, path = np.array([[0, 1], [1, 0]], np.uint8), tmp_path / "mask.png"
    if mode == "palette":
        image = Image.fromarray(classes)
        image.putpalette([9, 9, 9, 200, 0, 0])
        assert image.mode == "P"
    elif mode == "bits":
        image = Image.fromarray(classes.astype(bool))
    else:
        classes = classes * np.uint16(300)
        image = Image.fromarray(classes)
    image.save(path)
    assert np.array_equal(read_label_map("mask", path), classes)


def test_a_changed_mask_is_noticed(tmp_path):
    folder = write_scenes(tmp_path, {"": 8})
    before = load(folder).fingerprint
    _, classes = scene(1)
    classes[-1, -1] = 2 - classes[-1, -1]
    Image.fromarray(classes).save(folder / "masks" / "0.png")
    (change,) = before.differences(load(folder).fingerprint)
    assert change == "1 image changed: images/0.png"


# -------------------------------------------------------------------------------------- bad input
def without(folder, kind):
    (folder / kind / "3.png").unlink()


def with_mask(classes):
    def change(folder):
        Image.fromarray(np.asarray(classes)).save(folder / "masks" / "3.png")

    return change


def all_ignored(folder):
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.full((24, 28), 255, np.uint8)).save(path)


def binary(folder):
    for path in (folder / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) % 2 * 255).astype(np.uint8)).save(path)


def as_jpeg(folder):
    Image.open(folder / "masks" / "3.png").save(folder / "masks" / "3.jpg")
    (folder / "masks" / "3.png").unlink()


def doubled(folder):
    Image.open(folder / "images" / "3.png").save(folder / "images" / "3.jpg")


def damaged(folder):
    (folder / "masks" / "3.png").write_bytes(b"nothing")


def empty(folder):
    for path in [*folder.rglob("*.png")]:
        path.unlink()


FAULTS = {
    "a missing mask": (lambda folder: without(folder, "masks"), r"1 of 8 images of 'train' in .* have no mask: 3\.png"),
    "a mask alone": (lambda folder: without(folder, "images"), r"1 of 8 masks of 'train' in .* have no image: 3\.png"),
    "another size": (
        with_mask(np.zeros((24, 20), np.uint8)),
        r"1 images and their masks differ in size: images/3.png is 28x24, its mask 20x24",
    ),
    "colours": (with_mask(np.zeros((24, 28, 3), np.uint8)), r"masks/3.png has the mode RGB; expected one number"),
    "a JPEG": (as_jpeg, r"3.jpg is a JPEG, which changes the numbers of pixels; store masks as PNG"),
    "two of one name": (doubled, r"3.jpg and .*3.png have the same name"),
    "a damaged mask": (damaged, r"1 of 8 images of pairs:.* cannot be read:\n.*3.png cannot be decoded"),
    "all ignored": (all_ignored, r"at least two classes.*hold the numbers none.*Pixels of 255 do not count"),
    "0 and 255": (binary, r"at least two classes.*hold the numbers 0, .*Pixels of 255 do not count.*change that"),
    "no images": (empty, r"is empty: no images in 'train'"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_is_said(change, sentence, tmp_path):
    change(write_scenes(tmp_path, {"": 8}))
    with pytest.raises(UserError, match=sentence):
        load(tmp_path)


def test_a_damaged_mask_can_be_left_out_with_its_image(tmp_path):
    damaged(write_scenes(tmp_path, {"": 8}))
    data = load(tmp_path, skip_broken=True)
    assert sum(len(split.members) for split in data.splits.values()) == 7
    assert data.fingerprint.skipped == {"unreadable": 1} and "images/3.png" not in data.fingerprint.items


def test_numbers_that_are_no_classes_are_refused(tmp_path):
    folder = write_scenes(tmp_path, {"train": 4, "val": 2, "test": 2})
    with pytest.raises(UserError, match=r"holds the number 2, but there are 2 classes, 0..1"):
        load(folder, class_names=("floor", "red"))
    Image.fromarray(np.full((24, 28), 3, np.uint8)).save(folder / "val" / "masks" / "1.png")
    with pytest.raises(
        UserError, match=r"mask of val/images/1.png in 'val' holds the number 3.*ignore_index=3"
    ):
        load(folder)
    for number in range(2):
        Image.fromarray(np.full((24, 28), 255, np.uint8)).save(folder / "val" / "masks" / f"{number}.png")
    with pytest.raises(UserError, match=r"all pixels of the 2 masks of 'val' are 255, which does not count"):
        load(folder)


def test_a_place_that_holds_no_pairs_is_refused(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(UserError, match=r"should hold images/ and masks/, .* but it holds cats"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"unknown source of images and masks 'imagefolder:x'"):
        load_label_maps("imagefolder:x", PATCHES)
    write_scenes(tmp_path, {"train": 4, "val": 2})
    (tmp_path / "val" / "masks").rename(tmp_path / "val" / "others")
    with pytest.raises(UserError, match=r"but .*val/masks is not there"):
        load(tmp_path)
