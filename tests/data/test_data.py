"""Data from a SPEC: disjoint splits, batches that depend on the seed alone, correct images, helpful errors."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from prunus.data import ImageOptions, Preprocessing, Split, load_data
from prunus.data.asked import NORMS
from prunus.data.images import InMemory, Lazy
from prunus.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def make_image(shade, size=(8, 8), mode="L"):
    return Image.new(mode, size, shade if mode == "L" else (shade, shade // 2, 255 - shade))


def encode(*args, format="PNG", **options):
    file = io.BytesIO()
    make_image(*args, **options).save(file, format)
    return file.getvalue()


def write_parquet(file, shades, labels, **options):
    images = [{"bytes": encode(shade, **options), "path": None} for shade in shades]
    pq.write_table(pa.table({"image": images, "label": pa.array(labels, pa.int64())}), file)


def write_folder(folder, counts, size=(8, 8), mode="L"):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            make_image(20 * index, size, mode).save(folder / name / f"{index}.png")


def identities(split):
    return set(split.members.tolist())


def assert_all_are_used_once(data, count):
    """Every image is in one of the three splits, and each split has some of each class."""
    splits = data.train, data.val, data.test
    assert sorted(member for split in splits for member in split.members) == list(range(count))
    assert all(np.bincount(split.labels, minlength=data.classes).min() >= 1 for split in splits)


def centered(side):
    return Preprocessing(channels=1, size=(side, side), mean=(0.3,), std=(0.35,), crop=0.875)


def test_digits_are_split_into_disjoint_balanced_parts(digits):
    train, val, test = (identities(part) for part in (digits.train, digits.val, digits.test))
    assert not (train & val or train & test or val & test)
    assert len(train) + len(val) + len(test) == 1797 and digits.classes == 10
    assert digits.example.shape == (1, 1, 8, 8) and digits.example.dtype == torch.float32
    # each class gives its share on average: within four standard deviations of a fifth of some 180, and of 7
    assert all(abs(count - 36) < 4 * 5.4 for count in np.bincount(digits.test.labels))
    assert all(1 <= count < 7 + 4 * 2.6 for count in np.bincount(digits.val.labels))


def test_seed_moves_val_but_never_test(digits):
    other = load_data("digits", seed=1)
    assert identities(other.test) == identities(digits.test)
    assert identities(other.val) != identities(digits.val)
    assert identities(load_data("digits", seed=0).val) == identities(digits.val)


def test_batches_cover_every_image_once_in_nearly_equal_parts(digits):
    sizes, labels = [], []
    for x, y in digits.train.batches(100, seed=3):
        assert x.dtype == torch.float32 and y.dtype == torch.int64 and len(x) == len(y)
        sizes.append(len(y))
        labels += y.tolist()
    assert len(sizes) == digits.train.steps(100) and max(sizes) <= 100 and max(sizes) - min(sizes) <= 1
    assert np.array_equal(np.bincount(labels), np.bincount(digits.train.labels))
    assert labels != digits.train.labels.tolist()


def test_a_start_in_the_middle_gives_the_same_batches(digits):
    whole = list(digits.train.batches(128, seed=5, epoch=2, augment=True))
    rest = list(digits.train.batches(128, seed=5, epoch=2, start=4, augment=True))
    assert len(rest) == len(whole) - 4
    for (x, y), (other_x, other_y) in zip(whole[4:], rest, strict=True):
        assert torch.equal(x, other_x) and torch.equal(y, other_y)


@pytest.mark.parametrize("other", [{"seed": 6}, {"epoch": 3}])
def test_seed_and_epoch_change_order_and_augmentation(digits, other):
    asked = {"seed": 5, "epoch": 2, "augment": True}
    x, y = next(digits.train.batches(128, **asked))
    other_x, other_y = next(digits.train.batches(128, **(asked | other)))
    assert not torch.equal(y, other_y) and not torch.equal(x, other_x)


def test_the_same_image_is_augmented_differently_in_every_epoch(digits):
    (x, y), (other_x, other_y) = (
        next(digits.train.batches(128, epoch=epoch, augment=True)) for epoch in (0, 1)
    )
    assert torch.equal(y, other_y) and not torch.equal(x, other_x)


def test_processes_share_each_batch(digits):
    whole = next(digits.train.batches(10, seed=1))[1]
    parts = [next(digits.train.batches(10, seed=1, share=(rank, 2)))[1] for rank in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(), whole)


def test_images_are_normalised_and_in_order_without_a_seed(digits):
    x, y = next(digits.test.batches(1000))
    assert torch.equal(y, torch.from_numpy(digits.test.labels))
    first = digits.test.source.pixels[digits.test.members[0]].permute(2, 0, 1).float() / 255
    assert torch.allclose(x[0], (first - 0.3) / 0.35, atol=1e-6)


@pytest.mark.parametrize(("channels", "reach", "mirrors"), [(1, 1, False), (3, 2, True)])
def test_augmentation_shifts_and_mirrors_whole_images(channels, reach, mirrors):
    """Every augmented image is one of the shifts (and mirrors) of its original, and all of them occur."""
    side = 16
    pixels = np.random.default_rng(0).integers(1, 255, (1, side, side, channels), dtype=np.uint8)
    mean, std = NORMS[channels]
    how = Preprocessing(channels=channels, size=(side, side), mean=mean, std=std)
    source = InMemory(pixels, how)
    plain = how.normalise(source.pixels)[0].permute(1, 2, 0)
    wide = torch.zeros(1, side + 2 * reach, side + 2 * reach, channels)
    black = how.normalise(wide)[0].permute(1, 2, 0)
    possible = {}
    for mirror in (False, True) if mirrors else (False,):
        padded = black.clone()
        padded[reach:-reach, reach:-reach] = plain
        for top in range(2 * reach + 1):
            for left in range(2 * reach + 1):
                window = padded[top : top + side, left : left + side]
                possible[top, left, mirror] = window.flip(1) if mirror else window
    x = source.read(np.zeros(300, np.int64), np.random.default_rng(1)).permute(0, 2, 3, 1)
    seen = {key for key, window in possible.items() for one in x if torch.equal(one, window)}
    matched = sum(any(torch.equal(one, window) for window in possible.values()) for one in x)
    assert matched == 300 and len(seen) == len(possible)


def test_parquet_keeps_pixels_and_takes_val_from_train(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", range(0, 100, 5), [0, 1] * 10)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", range(100, 200, 5), [0, 1] * 10)
    write_parquet(tmp_path / "test.parquet", [7, 9, 11], [0, 1, 1])
    data = load_data(f"parquet:{tmp_path}", val_share=0.1)
    assert (len(data.train) + len(data.val), len(data.test), data.classes) == (40, 3, 2)
    x, y = next(data.test.batches(3))
    assert torch.allclose(x[:, 0, 0, 0] * 0.35 + 0.3, torch.tensor([7, 9, 11]) / 255, atol=1e-6)
    assert y.tolist() == [0, 1, 1]
    assert np.bincount(data.val.labels).min() >= 1
    assert not identities(data.train) & identities(data.val)


def test_parquet_of_other_names_is_split(tmp_path):
    write_parquet(tmp_path / "images.parquet", range(50), [0, 1] * 25)
    data = load_data(f"parquet:{tmp_path}")
    assert_all_are_used_once(data, 50)


def test_folder_with_val_only_tests_on_it(tmp_path):
    write_folder(tmp_path / "train", {"cat": 10, "dog": 6}, mode="RGB")
    write_folder(tmp_path / "val", {"cat": 2, "dog": 3}, mode="RGB")
    data = load_data(f"imagefolder:{tmp_path}")
    assert (len(data.train) + len(data.val), len(data.test), data.classes) == (16, 5, 2)
    assert np.bincount(data.val.labels).min() >= 1
    assert data.test.labels.tolist() == [0, 0, 1, 1, 1] and data.example.shape == (1, 3, 8, 8)


def test_one_folder_is_split_and_large_images_are_decoded_lazily(tmp_path):
    write_folder(tmp_path, {"a": 10, "train station": 10}, size=(90, 70), mode="RGB")
    data = load_data(f"imagefolder:{tmp_path}", images=ImageOptions(image_size=80))
    assert isinstance(data.train.source, Lazy) and data.example.shape == (1, 3, 80, 80)
    assert_all_are_used_once(data, 20)
    whole = list(data.train.batches(4, seed=0, augment=True))
    again = list(data.train.batches(4, seed=0, augment=True, start=2))
    assert torch.equal(whole[2][0], again[0][0]) and len(whole) == data.train.steps(4)


def test_lazy_augmentation_crops_and_mirrors():
    """An image whose shade rises from left to right: its crops show different parts, half of them mirrored."""
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (100, 1)))
    x = Lazy([("ramp", ramp)], centered(32)).read(np.zeros(64, np.int64), np.random.default_rng(0))
    left, right = x[:, 0, 16, 0], x[:, 0, 16, -1]
    assert 16 <= (left > right).sum() <= 48
    assert len(torch.minimum(left, right).unique()) > 32


def test_a_lazy_image_shows_the_center(tmp_path):
    """Left half black, right half white: without augmentation so is the resized center."""
    image = Image.new("L", (200, 100))
    image.paste(255, (100, 0, 200, 100))
    x = Lazy([("half", image)], centered(64)).read(np.array([0]), None)
    assert torch.allclose(x[0, 0, :, :30] * 0.35 + 0.3, torch.zeros(64, 30), atol=1e-5)
    assert torch.allclose(x[0, 0, :, -30:] * 0.35 + 0.3, torch.ones(64, 30), atol=1e-5)


def test_image_size_takes_precedence_over_the_images_own(tmp_path):
    write_folder(tmp_path, {"a": 10, "b": 10})
    assert load_data(f"imagefolder:{tmp_path}", images=ImageOptions(image_size=16)).example.shape == (
        1,
        1,
        16,
        16,
    )


def user_data():
    """Data sets for the tests below: prepared float tensors, and uint8 arrays."""
    floats = [(torch.full((2, 4, 4), float(i)), i % 2) for i in range(20)]
    arrays = [(np.full((4, 4), i, np.uint8), i % 2) for i in range(20)]
    return {"floats": (floats, floats), "arrays": (arrays, arrays)}


def floats():
    return user_data()["floats"]


def arrays():
    return user_data()["arrays"]


def test_a_callable_may_return_prepared_tensors():
    data = load_data(f"{__name__}:floats")
    x, y = next(data.test.batches(20, augment=True))
    assert torch.equal(x[:, 1, 2, 3], torch.arange(20.0)) and y.tolist() == [0, 1] * 10


def test_a_callable_may_return_arrays_of_pixels():
    data = load_data(f"{__name__}:arrays", classes=2)
    x, _ = next(data.test.batches(20))
    assert torch.allclose(x[:, 0, 0, 0] * 0.35 + 0.3, torch.arange(20) / 255, atol=1e-6)


def test_errors_name_cause_and_remedy(tmp_path, monkeypatch):
    def refuses(words, spec, **options):
        with pytest.raises(UserError, match=words):
            load_data(spec, **options)

    refuses("unknown data source 'digit'.*Did you mean digits", "digit")
    refuses("has 10 classes, but 7 were expected", "digits", classes=7)
    refuses("not there", f"parquet:{tmp_path / 'no'}")
    refuses("is empty: no .parquet", f"parquet:{tmp_path}")
    refuses("is empty", f"imagefolder:{tmp_path}")
    refuses("should return a Data", "builtins:list")
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    (tmp_path / "hollow" / "b").mkdir()
    refuses("is empty: no images in 'train'", f"imagefolder:{tmp_path / 'hollow'}")


def test_labels_out_of_range_are_named(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(10), [0, 1] * 5)
    write_parquet(tmp_path / "test.parquet", [1, 2], [1, 5])
    with pytest.raises(UserError, match=r"label 5 of image 1 in 'test' is not in 0\.\.1"):
        load_data(f"parquet:{tmp_path}")


def test_a_damaged_parquet_file_is_named(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(10), [0, 1] * 5)
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"parquet files in .* cannot be read"):
        load_data(f"parquet:{tmp_path}")


@pytest.mark.parametrize("size", [(8, 8), (90, 70)])
def test_a_damaged_image_is_named(tmp_path, size):
    write_folder(tmp_path, {"a": 10, "b": 10}, size)
    for file in (tmp_path / "b").iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"image .*b/\d\.png cannot be decoded"):
        data = load_data(f"imagefolder:{tmp_path}")
        list(data.train.batches(4))


def test_wrong_columns_are_named(tmp_path):
    pq.write_table(pa.table({"photo": [1], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="columns photo, label; needed are image"):
        load_data(f"parquet:{tmp_path}")


def test_val_keeps_one_image_of_a_rare_class():
    labels = np.array([0] * 100 + [1] * 2)
    split = Split(None, labels, np.arange(102))
    from prunus.data import hold_out

    rest, held = hold_out(split.labels, 0.05, seed=0)
    assert np.bincount(labels[held]).tolist() == [5, 1] and np.bincount(labels[rest]).tolist() == [95, 1]


def test_mnist_is_gray_and_whole():
    if not (SHARED / "mnist").exists():
        pytest.skip("MNIST is not beside the project")
    files = pq.ParquetFile(SHARED / "mnist" / "test.parquet")
    data = load_data(f"parquet:{SHARED / 'mnist'}")
    assert (data.classes, len(data.test), data.example.shape) == (10, files.metadata.num_rows, (1, 1, 28, 28))
    assert len(data.train) + len(data.val) == 60_000 and len(data.val) == pytest.approx(
        3000, abs=215
    )  # 4 deviations
