"""What denoising and super-resolution share: images from images, judged by PSNR and SSIM.

Answers are judged as an image file would hold them, cut off and rounded to 8 bits, whole and one by one; the figures of
a split are the means over its images.
"""

from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from prunus.charts import Panels
from prunus.data import Data, Degradation, Examples, Patches, load_pairs, read_whole
from prunus.errors import UserError
from prunus.inputs import model_device, move
from prunus.metrics import Metric
from prunus.options import Count, Pixels
from prunus.tasks import _contract
from prunus.tasks._answers import Answer, picture
from prunus.tasks._contract import File, Given, Task
from prunus.tasks._panels import Case, compare_cases, first_examples
from prunus.tasks._quality import psnr, ssim
from prunus.tasks._tiles import Restorer
from prunus.train import Recipe, in_mode

EVALUATION_BATCH = 64  # patches; whole images are always alone


@dataclass(frozen=True, kw_only=True)
class Options(_contract.Options):
    """The options that both tasks have.

    Args:
        patch: The side in pixels of the clean patches to train on.
        patches: The number of patches that an epoch takes from each image.
        test: The SPEC of other images to test on: imagefolder:DIR or parquet:FILE.
    """

    patch: Pixels = 64
    patches: Count = 16
    test: str | None = None


def load_given(given: Given, degradation: Degradation, options: Options) -> Data:
    """Load the pairs that a user's SPEC names, or return the data that were given as an object.

    Args:
        given: What the user gave.
        degradation: What the images lose.
        options: How patches are cut, and what is tested on.

    Returns:
        The data.

    Raises:
        UserError: The data do not fit, or images should be resized, by which they would lose what is restored.
    """
    given.refuse_images(
        "restoration reads images as they are (the side of its patches is the task's option patch)"
    )
    data = given.data
    if isinstance(data, str):
        patches = Patches(side=options.patch, each=options.patches)
        data = load_pairs(
            data,
            degradation,
            patches,
            test=options.test,
            seed=given.seed,
            skip_broken=given.skip_broken,
        )
    return data if given.example is None else replace(data, example=given.example)


class Restoration(Task):
    """Clean images (B, C, scale * H, scale * W) from degraded ones (B, C, H, W), in 0..1.

    Args:
        model: The model; methods leave it unchanged.
        data: Pairs of degraded and clean images.
        recipe_fields: Fields that replace the advised ones in every recipe of this task.
    """

    metric = Metric(key="psnr", unit="dB")
    free_dims = (0, 2, 3)
    further_metrics = (Metric(key="ssim", digits=4),)
    scale: int = 1
    epochs: ClassVar[dict[str, int]]  # by purpose
    batch_size: ClassVar[int]

    @abstractmethod
    def shown(self, images: Tensor) -> Tensor:
        """Return what of images (B, C, H, W) on the scale 0..255 is judged, such as their brightness."""

    def enlarged(self, x: Tensor) -> Tensor:
        """Return a degraded image (1, C, H, W) at the size of the clean one, for people to look at."""
        return x

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Examples) -> dict[str, float]:
        """Return {"psnr": dB, "ssim": up to 1, "loss": ...}, the means over the images of `split`."""
        device, restore = model_device(model), Restorer(model, self.scale)
        sums: Counter[str] = Counter()
        with in_mode(model, False):
            for x, y in split.batches(EVALUATION_BATCH):
                x, y = move((x, y), device)
                output = restore(x)
                found = self.judge(output, y) | {"loss": self.loss(output, y).expand(len(y))}
                sums.update({key: float(values.sum()) for key, values in found.items()})
        return {key: total / len(split) for key, total in sums.items()}

    def judge(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return {"psnr": float64 (B,) in dB, "ssim": float64 (B,)} of answers to a batch."""
        ours, truth = (self.shown(as_stored(images)) for images in (output, target))
        return {"psnr": psnr(ours, truth), "ssim": ssim(ours, truth)}

    def recipe(self, purpose: str) -> Recipe:
        """Return the recipe of DHP's experiments, with a cosine in place of steps; recovery is a third of it.

        Adam is AdamW without weight decay. Everything is computed in full precision, because bf16 has 8 bits, as many
        as the images.
        """
        advised = Recipe(
            epochs=self.epochs[purpose],
            batch_size=self.batch_size,
            optimizer="adamw",
            lr=1e-4,
            weight_decay=0.0,
            precision="no",
        )
        return advised.adapt(**self.recipe_fields)

    def check(self, model: nn.Module) -> None:
        """Raise UserError if the model cannot read the images, or its answers have another size."""
        example = move(self.example, model_device(model))
        channels, height, width = example.shape[1:]
        kind = f"{'gray' if channels == 1 else 'colour'} images ({channels} channel{'s' * (channels > 1)})"
        try:
            with in_mode(model, False), torch.no_grad():
                shape = tuple(model(example).shape)
        except RuntimeError as error:
            raise UserError(
                f"the model cannot read {self.data.name}, {kind} of {height}x{width} pixels: {error}. Build it for "
                "them, or give images of the kind that it reads."
            ) from error
        wanted = (1, channels, self.scale * height, self.scale * width)
        if shape != wanted:
            times = shape[-1] / width if len(shape) == 4 and shape[-1] * height == shape[-2] * width else None
            advice = f"Build the model for scale {self.scale}"
            if times is not None and times != self.scale:
                advice += f": it makes sides {times:g} times as long, the task asks for {self.scale} times"
            raise UserError(
                f"the model answers {kind} of shape {tuple(example.shape)} with the shape {shape}; expected {wanted}. "
                f"{advice}."
            )
        x, y = next(iter(self.data.val.batches(1)))
        if y.shape[-2:] != (self.scale * x.shape[-2], self.scale * x.shape[-1]):
            raise UserError(
                f"{self.data.name} has clean images of shape {tuple(y.shape)} for degraded ones of {tuple(x.shape)}, "
                f"but the task's scale is {self.scale}; give data of the same scale."
            )

    def asked_of_model(self) -> dict[str, Any]:
        """Return the images' shape (C, H, W)."""
        return {"in_shape": list(self.example.shape[1:])}

    def read_file(self, file: File) -> Tensor:
        """Read a degraded image as it is, float32 (1, C, H, W) in 0..1; nothing is added to it or taken away."""
        return read_whole(file, self.example.shape[1])

    def respond(self, inputs: Any) -> Tensor:
        """Return the restored image (1, C, scale * H, scale * W), computed by parts if it is large."""
        return Restorer(self.model, self.scale)(inputs)

    def answer(self, output: Any, most: int) -> Answer:
        """Return the restored image with 8 bits."""
        pixels = as_stored(output)[0].permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        return picture(Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels))

    @torch.no_grad()
    def examples(self, original: nn.Module, small: nn.Module) -> list[Panels]:
        """Return images of the test set side by side: input, both answers and truth, each with its PSNR.

        Of the first 16 images they are those that lose most, least, and the median of PSNR by pruning.
        """
        cases: list[Case] = []
        restorers = [Restorer(model, self.scale) for model in (original, small)]
        names = "input", "answer of the original", "answer of the smaller model"
        with in_mode(original, False), in_mode(small, False):
            for number, x, y in first_examples(self.data.judged, small):
                images = [self.enlarged(x), *(restore(x) for restore in restorers)]
                decibels = [float(self.judge(each, y)["psnr"]) for each in images]
                stored = map(as_stored, images)
                shown = [*zip(names, stored, decibels, strict=True), ("truth", as_stored(y), None)]
                cases.append(Case(number=number, images=shown, change=decibels[2] - decibels[1]))
        note = "The middle of the image; the PSNR is that of the whole image."
        return compare_cases(cases, self.metric, note)


def as_stored(images: Tensor) -> Tensor:
    """Return images in 0..1 as a file of 8 bits holds them: whole numbers 0..255, float64."""
    return (images.double().clamp(0, 1) * 255).round()
