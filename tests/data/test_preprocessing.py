"""What the user, the model and the images decide about how an image is read."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from prunus.data import ImageOptions, Preprocessing, load_data
from prunus.data.asked import NORMS, choose_preprocessing
from prunus.data.preprocessing import center_box
from prunus.errors import UserError
from prunus.zoo import Expected
from tests.lib.photos import write_photos
from tests.lib.pictures import picture

MODEL = Expected(
    size=(40, 40),
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    crop=0.8,
    interpolation="bicubic",
    source="a model",
)


def as_tensor(image):
    """A transform of the user's own: 8x8 pixels, of whatever was read."""
    assert image.mode in ("L", "RGB")
    return torch.from_numpy(np.asarray(image.resize((8, 8)), np.float32).reshape(8, 8, -1)).permute(2, 0, 1)


def noisy(image):
    return as_tensor(image) + torch.rand(1) + np.random.rand() + random.random()  # noqa: NPY002


def as_numpy(image):
    return np.asarray(image)


def of_its_own_size(image):
    return torch.zeros(1, *image.size)


def failing(image):
    raise KeyError("nothing here")


HERE = "tests.data.test_preprocessing"


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", {"cat": 12, "dog": 12}, (90, 70))


def chosen(channels=3, own=None, expected=MODEL, **options):
    return choose_preprocessing(channels, own, ImageOptions(**options), expected)


def test_the_users_word_counts_before_the_models_and_that_before_the_usual():
    usual = chosen(expected=None)
    assert (usual.size, usual.mean, usual.std) == ((224, 224), *NORMS[3])
    assert (usual.crop, usual.interpolation, usual.source) == (0.875, "bilinear", None)
    models = chosen()
    assert (models.size, models.mean, models.std) == (MODEL.size, MODEL.mean, MODEL.std)
    assert (models.crop, models.interpolation, models.source) == (0.8, "bicubic", "a model")
    users = chosen(image_size=50, mean=(0.5,), std=(1.0, 2.0, 3.0), crop=0.6, interpolation="nearest")
    assert (users.size, users.mean, users.std) == ((50, 50), (0.5,) * 3, (1.0, 2.0, 3.0))
    assert (users.crop, users.interpolation) == (0.6, "nearest")
    assert users.source == "a model; image_size, mean, std, crop, interpolation as given"


def test_small_images_of_one_size_stay_whole_unless_the_user_cuts_them():
    found = chosen(own=(8, 8))
    assert (found.size, found.crop, found.mean) == ((8, 8), None, MODEL.mean)
    assert chosen(own=(8, 8), crop=0.5).crop == 0.5


def test_gray_images_take_no_mean_of_colour():
    found = chosen(channels=1)
    assert (found.mean, found.std) == NORMS[1] and "which are of colour" in found.source
    assert found.crop == MODEL.crop


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"std": (0.1, 0.0, 0.1)}, r"std should be finite numbers above 0, .* is \(0.1, 0.0, 0.1\)"),
        ({"mean": (float("nan"),)}, "mean should be finite numbers, one a channel"),
        ({"mean": ()}, "mean should be finite numbers"),
        ({"crop": 1.5}, "crop should be a number above 0 and at most 1, but is 1.5"),
        ({"interpolation": "cubic"}, "bicubic"),
        ({"transform": "a:b", "mean": (0.5,)}, "with a transform of your own there is no use for mean"),
        ({"mean": (0.1, 0.2)}, "mean has 2 numbers, but the images are in colour .* give 1 number or 3"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        chosen(**options)


def test_a_part_has_the_shape_of_the_size_and_lies_in_the_center():
    assert center_box((100, 60), 0.5) == (35.0, 15.0, 65.0, 45.0)
    assert center_box((100, 60), 1.0, (48, 24)) == (0.0, 5.0, 100.0, 55.0)
    assert center_box((100, 60), 0.5, None) == (25.0, 15.0, 75.0, 45.0)


def test_what_is_stored_is_read_back_and_older_files_too(tmp_path):
    for how in (chosen(), chosen(expected=None), Preprocessing(**plain(), squeeze=True, transform="a:b")):
        stored = json.loads(json.dumps(how.to_json()))
        again = Preprocessing.from_json(stored, tmp_path)
        assert again == how and again.source == how.source
    assert "source" not in chosen(expected=None).to_json()
    assert Preprocessing.from_json(plain(), tmp_path).source is None


def plain():
    return {"channels": 1, "size": (8, 8), "mean": (0.0,), "std": (1.0,)}


def test_all_that_reads_reads_as_the_model_expects(photos):
    data = load_data(f"imagefolder:{photos}", expected=MODEL, workers=0)
    how = data.fingerprint.preprocessing
    assert how.size == (40, 40) and data.example.shape == (1, 1, 40, 40)
    names = list(data.fingerprint.items)
    x, _ = data.test.read(np.arange(1))
    assert torch.equal(how.read(photos / names[data.test.members[0]]), x)
    crop = load_data(f"imagefolder:{photos}", images=ImageOptions(image_size=8, crop=0.5))
    image = Image.open(photos / names[crop.train.members[0]])
    exact = image.resize((8, 8), Image.Resampling.BILINEAR, center_box(image.size, 0.5), reducing_gap=2.0)
    assert np.allclose(crop.example[0, 0] * 0.35 + 0.3, np.asarray(exact) / 255, atol=1e-6)


def test_a_transform_of_the_users_own_reads_instead(photos, tmp_path):
    options = ImageOptions(transform=f"{HERE}:as_tensor")
    data = load_data(f"imagefolder:{photos}", images=options, workers=0)
    assert data.example.shape == (1, 1, 8, 8) and data.example.max() > 1
    how = data.fingerprint.preprocessing
    assert how.size == (8, 8) and f"by the transform {HERE}:as_tensor" in str(how)
    names = list(data.fingerprint.items)
    x, _ = data.test.read(np.arange(1))
    assert torch.equal(how.read(photos / names[data.test.members[0]]), x)
    Image.fromarray(picture(1)).save(tmp_path / "colour.png")
    assert how.read(tmp_path / "colour.png").shape == (1, 1, 8, 8)  # read as gray, as all others


def test_what_is_random_in_a_transform_depends_on_the_batch_alone(photos):
    data = load_data(f"imagefolder:{photos}", images=ImageOptions(transform=f"{HERE}:noisy"), workers=0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, other = ([x for x, _ in data.train.batches(4, seed=3, augment=True)] for _ in range(2))
    assert torch.equal(torch.cat(one), torch.cat(other)) and torch.equal(state, torch.get_rng_state())
    later = [x for x, _ in data.train.batches(4, seed=3, augment=True, start=2)]
    assert torch.equal(torch.cat(one[2:]), torch.cat(later))
    plain = [x for x, _ in data.val.batches(4)], [x for x, _ in data.val.batches(4)]
    assert torch.equal(*map(torch.cat, plain))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "as_numpy",
            r"should return a float tensor \(C, H, W\), but of image .*/photos/cat/0.png it returned ndarray",
        ),
        ("failing", r"failed on image .*/photos/cat/0.png: KeyError: 'nothing here'"),
        ("missing", "^unknown callable in tests.data.test_preprocessing"),
    ],
)
def test_a_transform_that_is_wrong_is_refused_with_the_image(photos, name, sentence):
    with pytest.raises(UserError, match=sentence):
        load_data(f"imagefolder:{photos}", images=ImageOptions(transform=f"{HERE}:{name}"))


def test_a_transform_that_gives_images_of_different_sizes_is_refused(photos):
    Image.new("L", (20, 30)).save(photos / "dog" / "other.png")
    data = load_data(
        f"imagefolder:{photos}", images=ImageOptions(transform=f"{HERE}:of_its_own_size"), workers=0
    )
    with pytest.raises(
        UserError, match=r"gives image .*other.png \(20, 30\) pixels, but the first image \(90, 70\)"
    ):
        for split in data.splits.values():
            list(split.batches(4))


def test_tensors_of_the_users_own_take_no_options():
    with pytest.raises(UserError, match=r"returns tensors, .* so crop would have no effect"):
        load_data(f"{HERE}:tensors", images=ImageOptions(crop=0.5))


def tensors():
    items = [(torch.full((1, 4, 4), float(index)), index % 2) for index in range(20)]
    return items, items
