"""Segmentation: a class for every pixel, judged by the mean intersection over union.

    prunus run --task segment --model zoo:unet_segmenter --data pairs:streets --out runs/streets

The loss is cross-entropy over the pixels that count. Networks may answer at another resolution, which is enlarged
bilinearly, and with a dict, as torchvision's do: "out", and "aux" for a loss beside it, by half as in torchvision's own
training. Source: Long et al., CVPR 2015, arXiv:1411.4038.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from prunus.charts import Panels
from prunus.data import IGNORED, Data, Examples, IgnoreIndex, Patches, load_label_maps, read_whole
from prunus.errors import UserError
from prunus.inputs import call, in_words, model_device, move
from prunus.metrics import Metric
from prunus.options import Count, Pixels
from prunus.tasks import _contract
from prunus.tasks._answers import Answer, picture
from prunus.tasks._contract import File, Given, Task
from prunus.tasks._panels import SIDE, Case, compare_cases, first_examples, panel
from prunus.tasks._regions import class_ious, confusion, mean_iou, pixel_accuracy
from prunus.train import Recipe, in_mode
from prunus.zoo import expected_images

EVALUATION_BATCH = 16  # patches; whole images are always alone
AUXILIARY_WEIGHT = 0.5
MOST_NAMED = 20  # classes whose figures are rows of the report
MEAN_IOU = Metric(key="mean_iou", unit="%", factor=100.0)
WHITE = 255


@dataclass(frozen=True, kw_only=True)
class Options(_contract.Options):
    """The options of segmentation.

    Args:
        patch: The side in pixels of the patches to train on; a smaller image gets a border that does not count.
        patches: The number of patches that an epoch takes from each image.
        ignore_index: The number in a mask of pixels that do not count; -1: all count.
        class_names: The names of the classes in the order of their numbers, such as road,car,sky; empty: their numbers.
    """

    patch: Pixels = 256
    patches: Count = 1
    ignore_index: IgnoreIndex = IGNORED
    class_names: tuple[str, ...] = ()


def make(given: Given, options: Options) -> "Segmentation":
    """Make the task of segmenting images."""
    data = given.data
    if not isinstance(data, str):
        given.refuse_images("data that are given as an object say themselves how they are read")
    else:
        data = load_label_maps(
            data,
            Patches(side=options.patch, each=options.patches),
            ignore_index=options.ignore_index,
            class_names=options.class_names,
            seed=given.seed,
            images=given.images,
            expected=expected_images(given.model, given.weights),
            skip_broken=given.skip_broken,
        )
    data = data if given.example is None else replace(data, example=given.example)
    model = given.build_model(classes=data.classes, in_shape=tuple(data.example.shape[1:]))
    task = Segmentation(model, data, ignore_index=options.ignore_index)
    task.image_size = given.image_size
    return task


PALETTE = 256  # colours of an image with 8 bits


class Segmentation(Task):
    """Images (B, C, H, W) to logits (B, classes, h, w), enlarged to the label map int64 (B, H, W).

    Args:
        model: The model; methods leave it unchanged.
        data: The images and their label maps; `data.classes` is their number of classes.
        recipe_fields: Fields that replace the advised ones in every recipe of this task.
        ignore_index: The number in a label map of pixels that do not count.

    Raises:
        UserError: The data say of no number of classes.
    """

    metric = MEAN_IOU
    free_dims = (0, 2, 3)

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        recipe_fields: dict[str, Any] | None = None,
        *,
        ignore_index: int = IGNORED,
    ):
        super().__init__(model, data, recipe_fields)
        if data.classes is None:
            raise UserError(f"{data.name} has no number of classes; segmentation needs data with classes.")
        named = data.fingerprint and data.fingerprint.class_names
        self.class_names = named or tuple(map(str, range(data.classes)))
        self.ignore_index = ignore_index
        self.image_size: int | None = (
            None  # the side in pixels to which images are resized; None: their own size
        )
        shown = self.class_names if len(self.class_names) <= MOST_NAMED else ()
        self.further_metrics = (
            Metric(key="pixel_accuracy", unit="%", factor=100.0),
            *(replace(MEAN_IOU, key=f"iou of {name}") for name in shown),
        )

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats over the pixels that count, plus half that of an auxiliary output."""
        counted = (target != self.ignore_index).sum().clamp(min=1)  # a patch may have none
        losses = self._entropy(class_logits(output), target)
        if isinstance(output, Mapping) and "aux" in output:
            losses = losses + AUXILIARY_WEIGHT * self._entropy(output["aux"], target)
        return losses / counted

    def _entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum of the cross-entropy over the pixels that count."""
        sized = enlarged(logits, target)
        return F.cross_entropy(sized, target, ignore_index=self.ignore_index, reduction="sum")

    def distil(self, output: Any, teacher_output: Any, temperature: float, target: Any = None) -> Tensor:
        """Return the mean over pixels of the KL divergence of the softened outputs, times the temperature squared.

        Hinton et al., arXiv:1503.02531, section 2, for every pixel.
        """
        student, teacher = (
            F.log_softmax(class_logits(o).float() / temperature, 1) for o in (output, teacher_output)
        )
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1).mean()
        return divergence * temperature**2

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Examples) -> dict[str, float]:
        """Return {"mean_iou": 0..1, "pixel_accuracy": 0..1, "iou of CLASS": 0..1, "loss": nats} over all pixels."""
        device = model_device(model)
        counts: Tensor | None = None
        sums: Counter[str] = Counter()
        with in_mode(model, False):
            for x, y in split.batches(EVALUATION_BATCH):
                x, y = move((x, y), device)
                output = call(model, x)
                pixels = int((y != self.ignore_index).sum())
                sums.update({"loss": float(self.loss(output, y)) * pixels, "pixels": pixels})
                found = self._confusion(output, y)
                counts = found if counts is None else counts + found
        if counts is None:
            raise UserError(f"{self.data.name}: there are no images to evaluate on; give some.")
        ious = class_ious(counts, self.ignore_index)[: len(self.class_names)].tolist()
        return {
            "mean_iou": mean_iou(counts, self.ignore_index),
            "pixel_accuracy": pixel_accuracy(counts),
            **{f"iou of {name}": iou for name, iou in zip(self.class_names, ious, strict=True)},
            "loss": sums["loss"] / max(sums["pixels"], 1),
        }

    def _confusion(self, output: Any, target: Tensor) -> Tensor:
        """Count the pixels of a batch by true and predicted class."""
        sized = enlarged(class_logits(output), target)
        return confusion(sized.argmax(1), target, sized.shape[1], self.ignore_index)

    def recipe(self, purpose: str) -> Recipe:
        """Return AdamW at a rate that suits small networks from scratch as well as large ones; recovery distils."""
        return RECIPES[purpose].adapt(**self.recipe_fields)

    def check(self, model: nn.Module) -> None:
        """Raise UserError if the model cannot read the images, or has no logits for every class."""
        example, data, classes = move(self.example, model_device(model)), self.data, len(self.class_names)
        try:
            with in_mode(model, False), torch.no_grad():
                found = call(model, example)
        except RuntimeError as error:
            raise UserError(
                f"the model cannot read images of shape {tuple(example.shape)} ({data.name}): {error}. Build it for "
                "such images, or give another side of patches."
            ) from error
        shape = tuple(class_logits(found).shape)
        if len(shape) != 4:
            raise UserError(
                f"the model's output for one image has shape {shape}; expected (1, {classes}, height, width), a logit "
                "for each class and pixel. Take a network for segmentation, such as zoo:unet_segmenter."
            )
        if shape[1] < classes:
            raise UserError(
                f"the model has {shape[1]} outputs for each pixel, but the masks of {data.name} hold {classes} classes "
                f"({', '.join(self.class_names[:5])}{', ...' * (classes > 5)}). Build the model for {classes} classes."
            )

    def asked_of_model(self) -> dict[str, Any]:
        """Return the number of classes, and the images' shape (C, H, W)."""
        return {"classes": len(self.class_names), "in_shape": list(self.example.shape[1:])}

    def conventions(self) -> dict[str, Any]:
        """Return the names of the classes, and the number of pixels that do not count."""
        return {
            "class_names": list(self.class_names),
            "ignore_index": self.ignore_index,
            "image_size": self.image_size,
        }

    def restore(self, conventions: dict[str, Any]) -> None:
        """Take over the size of images."""
        self.image_size = conventions["image_size"]

    def read_file(self, file: File) -> Tensor:
        """Read an image as the run read its own, float32 (1, C, H, W)."""
        known = self.data.fingerprint
        if known is None or known.preprocessing is None:
            raise UserError(
                f"{self.data.name} does not say how an image is read: its data were tensors. Prepare the tensor "
                "yourself, and call the model with it."
            )
        how = known.preprocessing
        if self.image_size is not None:
            return how.read(file)
        return how.normalise(255 * read_whole(file, how.channels).permute(0, 2, 3, 1))

    def respond(self, inputs: Tensor) -> Tensor:
        """Return the class of each pixel, int64 (H, W)."""
        return enlarged(class_logits(call(self.model, inputs)), inputs[:, 0]).argmax(1)[0]

    def answer(self, output: Tensor, most: int) -> Answer:
        """Return an image of the classes' numbers, whose palette has the colours of up to 256 classes."""
        classes = output.cpu().numpy()
        if len(self.class_names) > PALETTE:
            return picture(Image.fromarray(classes.astype(np.uint16)))
        image = Image.fromarray(classes.astype(np.uint8))
        image.putpalette(colours(PALETTE).tobytes())
        return picture(image)

    @torch.no_grad()
    def examples(self, original: nn.Module, small: nn.Module) -> list[Panels]:
        """Return the colours of the classes, and test images: input, truth and both answers, each with its mean IoU.

        Of the first 16 images they are those that lose most, least, and the median of mean IoU by pruning.
        """
        cases: list[Case] = []
        with in_mode(original, False), in_mode(small, False):
            for number, x, y in first_examples(self.data.judged, small):
                outputs = [call(model, x) for model in (original, small)]
                ious = [mean_iou(self._confusion(output, y), self.ignore_index) for output in outputs]
                answers = [enlarged(class_logits(output), y).argmax(1) for output in outputs]
                names = "answer of the original", "answer of the smaller model"
                shown: list[tuple[str, Tensor, float | None]] = [
                    ("input", stretched(x), None),
                    ("truth", self._coloured(y), None),
                    *zip(names, map(self._coloured, answers), ious, strict=True),
                ]
                images = [(name, thinned(image), value) for name, image, value in shown]
                if not np.isnan(ious).any():  # as those of an image are whose pixels are all ignored
                    cases.append(Case(number=number, images=images, change=ious[1] - ious[0]))
        note = "Mean IoU is that of this image, over the classes that are in it or in the answer; white does not count."
        swatches = [
            panel(name, self._coloured(torch.full((1, 8, 8), number)))
            for number, name in enumerate(self.class_names)
        ]
        legend = Panels(title="The colours of the classes", note="", panels=swatches)
        return [legend, *compare_cases(cases, self.metric, note)] if cases else []

    def _coloured(self, classes: Tensor) -> Tensor:
        """A label map (1, H, W) as an image (1, 3, H, W), white where pixels do not count."""
        classes = classes.cpu()
        found = torch.from_numpy(colours(max(int(classes.max()) + 1, 1)))[classes.clamp(min=0)]
        found[classes == self.ignore_index] = WHITE
        return found.permute(0, 3, 1, 2)


RECIPES = {
    "scratch": Recipe(
        epochs=60, batch_size=16, optimizer="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=1
    ),
    "tune": Recipe(
        epochs=10, batch_size=16, optimizer="adamw", lr=2e-4, weight_decay=1e-4, warmup_epochs=0.5
    ),
    "recover": Recipe(
        epochs=20,
        batch_size=16,
        optimizer="adamw",
        lr=5e-4,
        weight_decay=1e-4,
        warmup_epochs=0.5,
        distill_weight=0.5,
    ),
}


def class_logits(output: Any) -> Tensor:
    """Return the logits of an output: itself, its entry "out" or "logits", or its `.logits`.

    Raises UserError if there are none.
    """
    if isinstance(output, Mapping):
        found = output.get("out", output.get("logits"))
    else:
        found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise UserError(
            f"the model's output is {in_words(output)}; expected logits: a tensor, or an output with 'out' or 'logits'."
        )
    return found


def enlarged(logits: Tensor, target: Tensor) -> Tensor:
    """Return logits (B, classes, h, w) in single precision at the size of the target (B, H, W)."""
    logits, size = logits.float(), target.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def colours(count: int) -> np.ndarray:
    """Return a colour for each class, uint8 (count, 3), as in PASCAL VOC: the bits of the number, spread."""
    numbers, found = np.arange(count), np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            found[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return found


def stretched(x: Tensor) -> Tensor:
    """Return a normalised image (1, C, H, W) as numbers 0..255, its darkest pixel 0 and its brightest 255."""
    x = x[:, :3] if x.shape[1] >= 3 else x[:, :1]
    low, high = x.amin(), x.amax()
    return ((x - low) / (high - low).clamp(min=1e-6) * 255).round()


def thinned(image: Tensor) -> Tensor:
    """Leave out rows and columns of a large image (1, C, H, W), so that all of it is shown."""
    step = -(-max(image.shape[-2:]) // SIDE)
    return image[..., ::step, ::step]
