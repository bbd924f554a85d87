"""How published networks expect their images: what timm, torchvision and a processor's file state."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from prunus.data import ImageOptions
from prunus.data.asked import choose_preprocessing
from prunus.errors import FileError, UserError
from prunus.zoo import expected_images, load_model
from tests.lib.models import imported_beside_torchvision
from tests.lib.pictures import picture

HALF = (0.5, 0.5, 0.5)
PROCESSOR = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "size": {"height": 32, "width": 48},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}


def read(expected, image):
    """The image as a run of this model reads it."""
    return choose_preprocessing(3, None, ImageOptions(), expected).read(image)


def of_folder(folder, **changes):
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | changes))
    return expected_images(f"hf:{folder}")


def test_timm_states_them_by_name_by_tag_and_on_its_models():
    timm = imported_beside_torchvision("timm")
    found = expected_images("timm:vit_tiny_patch16_224")
    assert (found.size, found.mean, found.std) == ((224, 224), HALF, HALF)
    assert (found.crop, found.interpolation) == (0.9, "bicubic")
    assert "vit_tiny_patch16_224.augreg_in21k_ft_in1k" in found.source
    assert expected_images(timm.create_model("vit_tiny_patch16_224")) == found
    crops = {tag: expected_images(f"timm:resnet50.{tag}").crop for tag in ("a1_in1k", "tv_in1k")}
    assert crops == {"a1_in1k": 0.95, "tv_in1k": 0.875}


def test_timms_tags_name_models_too_and_unknown_ones_are_refused():
    imported_beside_torchvision("timm")
    assert load_model("timm:resnet18.tv_in1k", classes=4, in_shape=(3, 32, 32)).fc.out_features == 4
    with pytest.raises(UserError, match=r"timm has no model 'resnet18\.tv'.* resnet18\.tv_in1k"):
        load_model("timm:resnet18.tv", classes=4, in_shape=(3, 32, 32))
    assert expected_images("timm:resnet18.tv") is None and expected_images("timm:resnit") is None


def test_an_image_is_read_as_timm_reads_it():
    data = imported_beside_torchvision("timm.data")
    timm = imported_beside_torchvision("timm")
    for name in ("vit_tiny_patch16_224", "resnet50"):
        config = data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        assert_close(expected_images(f"timm:{name}"), data.create_transform(**config))


def assert_close(expected, theirs):
    """Libraries resize first and cut then, at whole pixels; so images differ a little, by less than a fifth of what
    they do if they are read in the usual way."""
    y, x = np.mgrid[:300, :300] / 300
    waves = [np.sin(9 * x + 7 * y), np.cos(5 * x - 8 * y), np.sin(11 * x * y)]
    image = Image.fromarray((127 + 100 * np.stack(waves, -1)).astype(np.uint8))
    ours, usual = (read(each, image) for each in (expected, None))
    exact = theirs(image)[None]
    assert ours.shape == exact.shape
    assert (ours - exact).abs().mean() < 0.2 * (usual - exact).abs().mean()


def test_torchvisions_weights_state_them_and_a_file_is_told_by_its_name():
    models = imported_beside_torchvision("torchvision.models")
    newest, first = (
        expected_images("torchvision:resnet50", file) for file in (None, "elsewhere/resnet50-0676ba61.pth")
    )
    assert (newest.crop, first.crop) == (224 / 232, 224 / 256)
    assert newest.source.endswith("IMAGENET1K_V2") and first.source.endswith("IMAGENET1K_V1")
    assert_close(newest, models.ResNet50_Weights.IMAGENET1K_V2.transforms())
    assert expected_images("torchvision:resnit") is None
    assert expected_images("torchvision:fasterrcnn_resnet50_fpn") is None


def test_other_models_state_nothing():
    assert expected_images("zoo:resnet20") is None and expected_images("tests.lib.nets:Plain") is None
    assert expected_images(torch.nn.Linear(1, 1)) is None


def test_a_folder_without_a_processor_states_nothing(tmp_path):
    assert expected_images(f"hf:{tmp_path}") is None


def test_a_processors_file_is_read(tmp_path):
    found = of_folder(tmp_path)
    assert (found.size, found.mean, found.std) == ((32, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (found.crop, found.interpolation) == (None, "bicubic")
    assert found.source == f"{tmp_path}/preprocessor_config.json"
    image = Image.fromarray(picture(1, 60, 90))
    plain = np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC)).astype(np.float32) / 255
    assert np.allclose(
        read(found, image)[0].permute(1, 2, 0), (plain - found.mean) / np.array(found.std), atol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "size", "crop", "squeeze"),
    [
        ({"size": 40}, (40, 40), None, False),
        (
            {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 28, "width": 28}},
            (28, 28),
            0.875,
            False,
        ),
        ({"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 32}, (32, 32), 1.0, False),
        (
            {"size": {"height": 32, "width": 32}, "do_center_crop": True, "crop_size": 24},
            (24, 24),
            0.75,
            True,
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, 224), 0.875, False),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 384), None, False),
    ],
)
def test_the_sides_of_every_kind_of_processor(tmp_path, changes, size, crop, squeeze):
    found = of_folder(tmp_path, **changes)
    assert (found.size, found.crop, found.squeeze) == (size, crop, squeeze)


def test_another_scale_is_counted_into_mean_and_deviation(tmp_path):
    """EfficientNet's processors map 0..255 to -1..1 before they normalise; pixels come out the same."""
    image = Image.fromarray(picture(1, 32, 48))
    pixels = np.asarray(image).astype(np.float64)
    for changes, exact in (
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True}, pixels / 127.5 - 1),
        ({"do_rescale": False, "image_mean": [9.0] * 3, "image_std": [7.0] * 3}, pixels),
    ):
        found = of_folder(tmp_path, **changes)
        values = PROCESSOR | changes
        exact = (exact - values["image_mean"]) / np.array(values["image_std"])
        assert np.allclose(read(found, image)[0].permute(1, 2, 0), exact, atol=1e-4)
    plain = read(of_folder(tmp_path, do_normalize=False), image)[0].permute(1, 2, 0)
    assert np.allclose(plain, pixels / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        ({"size": {"shortest_edge": 32}}, UserError, "does not fix one size of images"),
        ({"do_resize": False}, UserError, "does not fix one size of images"),
        ({"do_center_crop": True}, UserError, "does not fix one size of images"),
        ({"image_std": [1.0]}, UserError, "a number for each channel"),
        ({"image_mean": None}, UserError, "should state image_mean and image_std"),
        ({"resample": 9}, UserError, "one of Pillow's numbers 0 to 5, but is 9"),
        ({"image_std": [0.0, 1.0, 1.0]}, FileError, r"damaged at \$.image_std\[0\]"),
        ({"size": "large"}, FileError, r"damaged at \$.size"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, changes, kind, sentence):
    with pytest.raises(kind, match=sentence):
        of_folder(tmp_path, **changes)
