"""How a user wants images to be read, and what follows from that, from the model and from the images themselves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated

from prunus.data.preprocessing import Preprocessing
from prunus.errors import UserError
from prunus.options import Checked, Pixels, Range, reject_unused
from prunus.zoo import Expected, Interpolation

# Channels -> mean and standard deviation over 0..1. For colour ImageNet's, which most published weights expect.
NORMS = {1: ((0.3,), (0.35,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
CENTER = 0.875  # of the shorter side: what is cut out of large images
LARGE_SIDE = (
    224  # pixels; the size of large images and mixed sizes, unless the model or the user says another
)
Crop = Annotated[float, Range(0, 1, above=True)]


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Checked):
    """How a user wants images to be read; None: as the model expects them.

    Args:
        image_size: The side in pixels to which images are resized.
        mean: The mean of each channel over 0..1; a single number holds for all.
        std: The standard deviation of each channel over 0..1; a single number holds for all.
        crop: The side of the central square that is cut out, as a share of the shorter side.
        interpolation: The way of resizing.
        transform: "package.module:callable", which maps a PIL image to a float tensor (C, H, W) and replaces all of
            the above.

    Raises:
        UserError: A value is out of range, or another option has no effect beside a transform.
    """

    image_size: Pixels | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: Crop | None = None
    interpolation: Interpolation | None = None
    transform: str | None = None

    def __post_init__(self):
        super().__post_init__()
        for name, values, least, words in (
            ("mean", self.mean, -math.inf, "finite numbers"),
            ("std", self.std, 0.0, "finite numbers above 0"),
        ):
            if values is not None and not (values and all(least < value < math.inf for value in values)):
                raise UserError(f"{name} should be {words}, one a channel, but is {tuple(values)}.")
        others = tuple(field.name for field in fields(self) if field.name != "transform")
        reject_unused(self, [("a transform of your own", self.transform is not None, others)])

    @property
    def given(self) -> list[str]:
        """The names of the options that are given."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]


AS_EXPECTED = ImageOptions()


def choose_preprocessing(
    channels: int, own_size: tuple[int, int] | None, options: ImageOptions, expected: Expected | None
) -> Preprocessing:
    """Choose how images are read: as the user says, otherwise as the model expects, otherwise as is usual.

    Args:
        channels: 1 if all images are gray, otherwise 3.
        own_size: The (height, width) of small images that stay whole; None: they are cut and resized.
        options: What the user says.
        expected: What the model expects; None: nothing is known.

    Returns:
        The preprocessing.

    Raises:
        UserError: mean or std have another number of channels than the images.
    """
    usual = Expected(
        size=(LARGE_SIDE, LARGE_SIDE), mean=NORMS[channels][0], std=NORMS[channels][1], crop=CENTER, source=""
    )
    model = expected or usual
    # a mean of three channels says nothing about gray images
    norms = model if len(model.mean) == channels else usual
    side = options.image_size
    size = (side, side) if side else own_size or model.size
    taken = [expected.source] if expected else []
    taken += ["but for mean and std, which are of colour"] if norms is not model else []
    taken += [f"{', '.join(options.given)} as given"] if options.given else []
    return Preprocessing(
        channels=channels,
        size=size,
        mean=_each(options.mean, channels, "mean") or norms.mean,
        std=_each(options.std, channels, "std") or norms.std,
        crop=options.crop or (model.crop if own_size is None else None),
        squeeze=model.squeeze and own_size is None and options.crop is None,
        interpolation=options.interpolation or model.interpolation,
        source="; ".join(taken) or None,
    )


def _each(values: Sequence[float] | None, channels: int, name: str) -> tuple[float, ...] | None:
    """A number for each channel."""
    if values is None:
        return None
    if len(values) not in (1, channels):
        kind = "gray (1 channel)" if channels == 1 else "in colour (3 channels)"
        raise UserError(
            f"{name} has {len(values)} numbers, but the images are {kind}; give 1 number or {channels}."
        )
    return tuple(values) * (channels // len(values))
