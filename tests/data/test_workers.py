"""Processes that read: every number of them gives the same batches, in the same order."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from prunus.data import ImageOptions, load_data
from prunus.data.workers import Workers
from prunus.errors import UserError
from tests.lib.photos import write_photos

NUMBERS = (0, 1, 3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data"), {"cat": 20, "dog": 20}, (90, 70))


def loaded(photos, workers, **options):
    options = ImageOptions(**{"image_size": 70} | options if "transform" not in options else options)
    return load_data(f"imagefolder:{photos}", images=options, workers=workers)


def batches(data, **options):
    return list(data.train.batches(5, seed=1, augment=True, **options))


def same(one, other):
    assert len(one) == len(other)
    for (x, y), (x_other, y_other) in zip(one, other, strict=True):
        assert torch.equal(x, x_other) and torch.equal(y, y_other)


@pytest.mark.parametrize("options", [{}, {"transform": "tests.data.test_preprocessing:noisy"}])
def test_every_number_of_workers_gives_the_same_batches(photos, options):
    alone, *others = (loaded(photos, workers, **options) for workers in NUMBERS)
    for data in others:
        for epoch in range(2):  # the second is read by the processes of the first
            same(batches(alone, epoch=epoch), batches(data, epoch=epoch))
        same(list(alone.val.batches(3)), list(data.val.batches(3)))
        same(batches(alone, share=(1, 2)), batches(data, share=(1, 2)))


@pytest.mark.parametrize("workers", NUMBERS)
def test_a_start_in_the_middle_gives_the_rest(photos, workers):
    data = loaded(photos, workers)
    whole = batches(data)
    same(whole[3:], batches(data, start=3))
    assert not torch.equal(whole[0][0], batches(data, epoch=1)[0][0])


def test_a_reading_that_is_left_disturbs_no_other(photos):
    data = loaded(photos, 2)
    whole = batches(data)
    left = iter(data.train.batches(5, seed=1, augment=True))
    first = next(left)
    same(whole, batches(data))  # while the other is not at its end
    same([whole[0], *whole[1:]], [first, *left])
    next(iter(data.train.batches(5, seed=1, augment=True)))  # and is dropped
    same(whole, batches(data))


def test_splits_of_one_folder_share_processes_and_copies_have_none(photos):
    data = loaded(photos, 2)
    assert data.train.workers is data.val.workers is data.test.workers
    whole = batches(data)
    copied = pickle.loads(pickle.dumps(data.train))
    same(whole, list(copied.batches(5, seed=1, augment=True)))


def test_small_images_and_the_users_own_are_read_in_this_process(photos, digits):
    assert digits.train.workers is None
    assert loaded(photos, None).train.workers.number >= 1
    own = load_data("tests.data.test_workers:own", workers=None)
    assert own.train.workers is None
    asked = load_data("tests.data.test_workers:own", workers=1)
    same(list(own.train.batches(4)), list(asked.train.batches(4)))


def own():
    rng = np.random.default_rng(0)
    items = [
        (Image.fromarray(rng.integers(0, 256, (70, 90)).astype(np.uint8)), index % 2) for index in range(20)
    ]
    return items, items


def test_an_image_that_is_damaged_later_stops_the_reading_with_its_name(tmp_path):
    photos = write_photos(tmp_path, {"cat": 12, "dog": 12}, (90, 70))
    data = loaded(photos, 2)
    for file in photos.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^image .*png cannot be decoded") as refused:
        batches(data)
    assert "Traceback" not in str(refused.value)


def ended(*job):
    raise SystemExit(3)


def test_a_process_that_ends_is_said_with_what_to_do():
    with pytest.raises(UserError, match=r"a process that reads images ended .*--workers 0"):
        list(Workers(ended, 1).batches([(1,), (2,)]))


def broken(*job):
    raise KeyError("ours")


def test_faults_of_the_program_are_shown_as_they_are():
    with pytest.raises(KeyError, match="ours"):
        list(Workers(broken, 1).batches([(1,)]))
