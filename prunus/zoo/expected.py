"""What published networks expect of their images, as the libraries that they come from state it.

timm:NAME, a model of timm   its pretrained_cfg, as timm itself resolves it
torchvision:NAME             the transforms of its weights: those whose file has the name of the weights that are
                             loaded, otherwise torchvision's default ones
hf:CONFIG_DIR                preprocessor_config.json in the folder, if there is one
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from PIL import Image
from torch import nn

from prunus.errors import UserError
from prunus.files import Positive, Real, expand_home, read_json
from prunus.zoo.sources import library

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
BYTE = 255
LARGE_CROP = 384  # pixels; from here on ConvNeXt's processor squeezes the whole image instead of cutting


@dataclass(frozen=True, kw_only=True)
class Expected:
    """How a network expects its images.

    Args:
        size: The height and width in pixels.
        mean: The mean of each channel over 0..1, which is subtracted.
        std: The standard deviation of each channel over 0..1, by which is divided.
        crop: The part that is cut out in the center, as a share of the largest that has the shape of `size`; None: the
            whole image, squeezed into that shape.
        squeeze: Whether the same share of both sides is cut out instead, and squeezed.
        interpolation: The way of resizing.
        source: Where this stands, in words.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float | None
    squeeze: bool = False
    interpolation: str = "bilinear"
    source: str


def expected_images(model: nn.Module | str, weights: str | None = None) -> Expected | None:
    """Look up how a model expects its images.

    Args:
        model: A model, or the SPEC of one.
        weights: The file of weights that will be loaded; its name tells torchvision's weights apart.

    Returns:
        What its library states; None where that states nothing, or there is none.

    Raises:
        UserError: The library is missing, or does not know the model.
        FileError: The folder's preprocessor_config.json is damaged.
    """
    if isinstance(model, nn.Module):
        config = vars(model).get("pretrained_cfg")  # which timm sets
        return None if config is None else _of_timm(config)
    source, _, name = model.partition(":")
    if source == "timm":
        timm = library("timm")
        known = name in (timm.list_pretrained() if "." in name else timm.list_models())
        return _of_timm(timm.get_pretrained_cfg(name)) if known else None  # building it names the nearest
    if source == "torchvision":
        return _of_torchvision(name, weights)
    return _of_folder(expand_home(name)) if source == "hf" else None


def _of_timm(config: Any) -> Expected:
    """What timm resolves from the configuration of a model's weights, a PretrainedCfg or a dict."""
    values = config if isinstance(config, dict) else config.to_dict()
    found = library("timm.data").resolve_data_config({}, pretrained_cfg=values)
    name = ".".join(filter(None, (values.get("architecture"), values.get("tag"))))
    squeeze = found["crop_mode"] == "squash"
    as_center = (
        ""
        if found["crop_mode"] in ("center", "squash")
        else f", its {found['crop_mode']} crop as a center one"
    )
    known = found["interpolation"].upper() in Image.Resampling.__members__
    return Expected(
        size=tuple(found["input_size"][1:]),
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        crop=found["crop_pct"],
        squeeze=squeeze,
        interpolation=found["interpolation"] if known else "bilinear",  # timm has "random" for training
        source=f"timm's pretrained_cfg of {name or 'the model'}{as_center}",
    )


def _of_torchvision(name: str, weights: str | None) -> Expected | None:
    """What torchvision applies before a classifier with its weights."""
    models = library("torchvision.models")
    if name not in models.list_models():
        return None  # building it names the nearest
    published = list(models.get_model_weights(name))
    if not published:
        return None
    of_file = [each for each in published if weights and Path(each.url).name == Path(weights).name]
    chosen = of_file[0] if of_file else models.get_model_weights(name).DEFAULT
    preset = vars(chosen.transforms())
    if "crop_size" not in preset:
        return None  # of detectors and the like, which resize within the model
    (crop,), (side,) = preset["crop_size"], preset["resize_size"]
    return Expected(
        size=(crop, crop),
        mean=tuple(preset["mean"]),
        std=tuple(preset["std"]),
        crop=crop / side,
        interpolation=preset["interpolation"].value,
        source=f"torchvision's transforms of {chosen}",
    )


class Sides(msgspec.Struct, frozen=True):
    """The size of an image in a processor's file."""

    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None


class ProcessorFile(msgspec.Struct, frozen=True):
    """preprocessor_config.json, as far as it says how an image is resized, cut and normalised."""

    image_mean: list[Real] | None = None
    image_std: list[Positive] | None = None
    size: int | Sides | None = None
    crop_size: int | Sides | None = None
    crop_pct: Positive | None = None
    resample: int | None = None
    rescale_factor: Positive = 1 / BYTE
    rescale_offset: bool = False
    do_resize: bool = True
    do_center_crop: bool = False
    do_rescale: bool = True
    do_normalize: bool = True


def _of_folder(folder: Path) -> Expected | None:
    """What the preprocessor_config.json of a folder says; None if there is no such file."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return None
    found = read_json(path, ProcessorFile)
    size, crop, squeeze = _sides(path, found)
    mean, std = _norms(path, found)
    resample = Image.Resampling.BILINEAR if found.resample is None else found.resample
    if resample not in list(Image.Resampling):
        raise UserError(
            f"{path}: resample should be one of Pillow's numbers 0 to 5, but is {resample}; correct it."
        )
    return Expected(
        size=size,
        mean=mean,
        std=std,
        crop=crop,
        squeeze=squeeze,
        interpolation=Image.Resampling(resample).name.lower(),
        source=str(path),
    )


def _sides(path: Path, found: ProcessorFile) -> tuple[tuple[int, int], float | None, bool]:
    """The size (height, width), the share that is cut out, and whether the image is squeezed."""
    whole, shortest = _size(found.size)
    cut, _ = _size(found.crop_size)
    if found.crop_pct is not None and shortest:  # as ConvNeXt's processor does
        return whole, (found.crop_pct if whole[0] < LARGE_CROP else None), False
    if (
        not found.do_resize
        or not whole[0]
        or (found.do_center_crop and not cut[0])
        or (shortest and not cut[0])
    ):
        raise UserError(
            f"{path} does not fix one size of images: expected do_resize with a size of height and width, or one of a "
            "shortest_edge with do_center_crop and a crop_size. Correct it, or give a --transform of your own "
            "(package.module:callable) that reads an image as that processor does."
        )
    if not found.do_center_crop:
        return whole, None, False
    return cut, min(1.0, cut[0] / whole[0]), not shortest


def _size(stated: int | Sides | None) -> tuple[tuple[int, int], bool]:
    """A size as (height, width), 0 where it is not stated, and whether it is that of the shortest side alone."""
    if stated is None:
        return (0, 0), False
    if isinstance(stated, int):
        return (stated, stated), False
    edge = stated.shortest_edge
    return (stated.height or edge or 0, stated.width or edge or 0), edge is not None


def _norms(path: Path, found: ProcessorFile) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation over 0..1, into which the processor's own scaling is counted."""
    mean, std = found.image_mean, found.image_std
    if not found.do_normalize:
        mean, std = [0.0] * 3, [1.0] * 3
    if mean is None or std is None or len(mean) != len(std):
        raise UserError(
            f"{path} should state image_mean and image_std, a number for each channel; it states {mean} and {std}. Add "
            "them, or give --mean and --std."
        )
    scale = BYTE * (found.rescale_factor if found.do_rescale else 1.0)
    offset = 1.0 if found.do_rescale and found.rescale_offset else 0.0
    return tuple((m + offset) / scale for m in mean), tuple(s / scale for s in std)
