"""Pairs of degraded and clean images: what is cut, turned and drawn, and what is refused."""

import re
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import mse_loss

import prunus
from prunus.data import Downscaling, Noise, Pairs, Patches, load_pairs, resize, split_given, to_bytes, unpack
from prunus.data.pairs import turned
from prunus.errors import UserError
from tests.lib.pictures import picture, write_pictures
from tests.lib.restoring import Denoiser

PATCHES = Patches(side=16, each=3)


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path / "images", 10)


def load(folder, degradation=None, patches=PATCHES, **options):
    return load_pairs(f"imagefolder:{folder}", degradation or Noise(25), patches, **options)


def everything(pairs: Pairs, **options) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(pairs.batches(4, **options))


def same(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a, b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_patches_depend_on_seed_epoch_and_batch_alone(folder):
    train = load(folder).train
    whole = everything(train, seed=3, epoch=2, augment=True)
    assert sum(len(x) for x, _ in whole) == len(train) == 3 * len(train.members)
    assert len(whole) == train.steps(4)
    assert same(whole, everything(load(folder).train, seed=3, epoch=2, augment=True))
    assert same(whole[3:], everything(train, seed=3, epoch=2, augment=True, start=3))
    assert not same(whole, everything(train, seed=4, epoch=2, augment=True))
    assert not same(whole, everything(train, seed=3, epoch=3, augment=True))


def test_processes_share_a_batch(folder):
    train = load(folder).train
    halves = [everything(train, seed=0, share=(rank, 2)) for rank in (0, 1)]
    sizes = [len(x) for x, _ in everything(train, seed=0)]
    assert [len(a[0]) + len(b[0]) for a, b in zip(*halves, strict=True)] == sizes


@pytest.mark.parametrize("augment", [True, False])
def test_every_patch_is_a_part_of_an_image_turned_only_if_asked(folder, augment):
    train = load(folder, Downscaling(2)).train
    clean = [train.source.pair(index) for index in train.members.tolist()]
    ways = set()
    for x, y in everything(train, seed=1, augment=augment):
        for small, large in zip(x, y, strict=True):
            found = [
                way
                for way in range(8)
                for low, high in clean
                for top, left in places(high, turned_back(large, way))
                if np.array_equal(turned_back(small, way), low[top // 2 :, left // 2 :][:8, :8])
            ]
            assert len(found) == 1
            ways.update(found)
    assert ways == {0} if not augment else len(ways) > 4


def turned_back(floats: torch.Tensor, way: int) -> np.ndarray:
    """The image uint8 (H, W, C) of which the patch was turned and mirrored in one of eight ways."""
    image = (floats * 255).round().byte().permute(1, 2, 0).numpy()
    return np.rot90(image[:, ::-1] if way >= 4 else image, -(way % 4))


def places(image: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
    """The even places of an image at which a part of it stands."""
    windows = np.lib.stride_tricks.sliding_window_view(image, part.shape)[::2, ::2, 0]
    return [(2 * top, 2 * left) for top, left in np.argwhere((windows == part).all((2, 3, 4))).tolist()]


def test_all_eight_ways_are_different():
    square = picture(0, 8, 8)
    assert len({turned(square, way).tobytes() for way in range(8)}) == 8


def test_noise_is_new_in_training_and_fixed_in_evaluation(folder):
    data = load(folder, Noise(40))
    noises = [
        torch.cat([(x - y).flatten() for x, y in everything(data.train, seed=0, epoch=e)]) for e in (0, 1)
    ]
    for noise in noises:
        assert noise.std() * 255 == pytest.approx(40, rel=0.03) and abs(noise.mean() * 255) < 1
    assert not torch.equal(*noises)
    first, again = everything(data.test), everything(load(folder, Noise(40), seed=9).test)
    assert same(first, again)  # whatever the seed of the run
    assert all(len(x) == 1 for x, _ in first)
    backwards = everything(data.test.take(np.arange(len(data.test))[::-1]))
    assert same(first, backwards[::-1])  # noise goes by the image, not by its place
    (x, y), _ = first[:2]
    assert (x - y).std() * 255 == pytest.approx(40, rel=0.1) and x.max() > 1  # not cut off
    assert not torch.equal(first[0][0] - first[0][1], first[1][0] - first[1][1])


def test_single_examples_are_read_and_taken(folder):
    data = load(folder)
    count = len(data.train.members)
    x, y = data.train.read(np.array([0, count, 2]))
    assert same([(x, y)], [data.train.read(np.array([0, count, 2]))]) and not torch.equal(x[0], x[1])
    assert not same([(x, y)], [data.train.read(np.array([0, count, 2]), (1, 2))])
    taken = data.train.take(np.array([1, count + 1, 0]))
    assert len(taken) == 3 and taken.members.tolist() == data.train.members[[1, 1, 0]].tolist()
    whole = [data.test.read(np.array([at])) for at in range(len(data.test))]
    assert same(whole, everything(data.test))
    assert len({part.digest() for part in (data.train, data.test, taken, load(folder, Noise(9)).train)}) == 4
    assert data.train.digest() == load(folder).train.digest()


def test_pairs_are_a_split_for_a_task_of_ones_own_too(folder):
    data = load(folder)
    assert split_given(data.train, "train", unpack) is data.train
    model = Denoiser((3, 16, 16))
    task = prunus.Task(model, train=data.train, val=data.val, test=data.test, loss=mse_loss)
    assert task.evaluate(model, data.test)["loss"] > 0


def test_low_resolution_images_are_downscaled_whole_and_rounded(tmp_path):
    folder = write_pictures(tmp_path, 6, height=43, width=38)
    data = load(folder, Downscaling(4))
    for x, y in data.val.batches(8):
        assert y.shape == (1, 3, 40, 36) and x.shape == (1, 3, 10, 9)
    low, high = data.train.source.pair(0)
    original = np.asarray(Image.open(folder / "0.png"))[:40, :36]
    assert np.array_equal(high, original) and np.array_equal(low, to_bytes(resize(original, 10, 9)))
    assert data.example.shape == (1, 3, 4, 4)


def test_splits_of_folders_and_of_parquet_files(tmp_path):
    for name, count, seed in (("train", 5, 0), ("val", 2, 1), ("test", 3, 2)):
        write_pictures(tmp_path / "split" / name / "deeper", count, seed=seed)
    data = load(tmp_path / "split")
    assert [len(part.members) for part in (data.train, data.val, data.test)] == [5, 2, 3]
    files = [{"path": None, "bytes": path.read_bytes()} for path in sorted(tmp_path.rglob("*.png"))]
    table = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "some.parquet")
    one = load_pairs(f"parquet:{tmp_path}/some.parquet", Noise(25), PATCHES)
    other = load_pairs(f"parquet:{tmp_path}", Noise(25), PATCHES)
    assert one.fingerprint == other.fingerprint and one.fingerprint is not None
    assert one.fingerprint.used == 10 and len(one.test) >= 1 and len(one.val) >= 1
    other_test = f"imagefolder:{tmp_path}/split/test"
    tested = load_pairs(f"parquet:{tmp_path}/some.parquet", Noise(25), PATCHES, test=other_test)
    assert len(tested.test) == 3 and len(tested.val.members) + len(tested.train.members) == 10
    table.rename_column("image", "pixels").to_parquet(tmp_path / "other" / "a.parquet")
    with pytest.raises(
        UserError, match="has the columns pixels; expected one of images, called image or img"
    ):
        load_pairs(f"parquet:{tmp_path}/other", Noise(25), PATCHES)


def test_an_image_that_changes_is_noticed(folder):
    before = load(folder).fingerprint
    Image.fromarray(picture(77)).save(folder / "3.png")
    after = load(folder).fingerprint
    assert before and after and "1 image changed: 3.png" in before.differences(after)


def test_gray_images_are_gray_and_among_others_in_colour(tmp_path):
    gray = write_pictures(tmp_path / "gray", 5, channels=1)
    assert load(gray).example.shape == (1, 1, 16, 16)
    mixed = write_pictures(tmp_path / "mixed", 5)
    (gray / "0.png").rename(mixed / "gray.png")
    assert load(mixed).example.shape == (1, 3, 16, 16)
    with pytest.raises(UserError, match="images of train are in colour, those of 'test' gray"):
        load(mixed, test=f"imagefolder:{gray}")
    with pytest.raises(UserError, match="images of train are gray, those of 'test' in colour"):
        load(gray, test=f"imagefolder:{mixed}")


def test_images_kept_in_memory_and_images_decoded_anew_are_the_same(folder):
    train = load(folder).train
    lazy = replace(train, source=type(train.source)(train.source.rows, 3, Noise(25), keeps=False))
    assert same(everything(train, seed=0), everything(lazy, seed=0))
    assert not lazy.source._kept and train.source._kept


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda f: load(f, patches=Patches(side=64, each=1)), r"are smaller than a patch, 64x64 pixels: .*36x40"),
        (lambda f: load(f, Downscaling(3)), "the side of a patch, 16, should be a multiple of the scale, 3; give 15"),
        (lambda f: load(f, patches=Patches(side=16, each=0)), "each should be a whole number from 1, but is 0"),
        (lambda f: Downscaling(1), "scale should be a whole number from 2 to 8, but is 1; usual values are 2, 3 and 4"),
        (lambda f: Downscaling(9), "but is 9"),
        (lambda f: Noise(0), "sigma should be a number above 0 and at most 255, but is 0; usual values are 15, 25"),
        (lambda f: Noise(-5), "but is -5"),
        (lambda f: Noise(float("nan")), "but is nan"),
        (lambda f: load_pairs("imagefolder:nowhere", Noise(25), PATCHES), "imagefolder:nowhere should name a folder"),
        (lambda f: load_pairs("digits", Noise(25), PATCHES), "unknown source of images without labels 'digits'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(folder, wrong, message):
    with pytest.raises(UserError, match=message):
        wrong(folder)


def test_too_few_too_small_and_broken_images(tmp_path):
    few = write_pictures(tmp_path / "few", 2)
    with pytest.raises(UserError, match="has 2 images to train on; at least 3 are needed to hold out"):
        load(few)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="is empty: no images in 'train'"):
        load(tmp_path / "none")
    small = write_pictures(tmp_path / "small", 4)
    tiny = write_pictures(tmp_path / "tiny", 2, height=18, width=30)
    with pytest.raises(UserError, match=r"2 of 2 images of 'test' are smaller than 24x24 pixels"):
        load(small, Downscaling(4), test=f"imagefolder:{tiny}")
    (small / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(UserError, match=r"1 of 5 images .* cannot be read"):
        load(small)
    assert load(small, skip_broken=True).fingerprint.skipped == {"unreadable": 1}
    (small / "notes.txt").write_text("no image")
    with pytest.warns(UserWarning, match=re.escape("1 file is left out, because of the suffix: 1 .txt")):
        load(small, skip_broken=True)
