"""Evaluating the networks of a search on images: weights, recalibrated norms, and a score on held-out images.

The training images are in three parts: the largest may be trained on, one compares networks, one compares the last few
again. `val` and `test` are not used. Norms are recalibrated on images of the first part, augmented as in training and
the same for every network. Source: MetaPruning (Liu et al., ICCV 2019, arXiv:1903.10258), section 3.3; computing the
statistics exactly, over few images, is ours.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunus.data import Examples, Split, generator
from prunus.errors import UserError
from prunus.inputs import call, model_device, move, tensors_in
from prunus.recover import renew_norms
from prunus.search.evaluation import Score
from prunus.search.space import Widths
from prunus.tasks import Task
from prunus.train import in_mode

SHARE = 0.15  # of the training images, the most that each of the two held-out parts has
BATCH = 256  # images
KEPT_BYTES = (
    2**30
)  # of decoded and augmented images, kept in memory for all networks; larger sets are read each time

Network = Callable[
    [Widths], nn.Module
]  # makes a separate module of these widths, its norms not yet recalibrated
Renew = Callable[[nn.Module, Iterable[tuple[Any, Any]]], None]


@dataclass(frozen=True)
class SearchSplits:
    """The training images in three parts.

    Args:
        train: The images to train on.
        search: The images that networks are compared on.
        confirm: The images that the last few networks are compared on.
    """

    train: Examples
    search: Examples
    confirm: Examples


def split_training(train: Examples, images: int, seed: int) -> SearchSplits:
    """Hold out two parts of the training images, with an equal share of each class.

    Args:
        train: The training images.
        images: The number of images in each part, at most 15 % of all.
        seed: The seed of the choice.

    Returns:
        The three parts.

    Raises:
        UserError: There are too few images to hold any out.
    """
    share = min(SHARE, images / max(1, len(train)))
    rest, search = train.hold_out(share, seed)
    rest, confirm = rest.hold_out(share / (1 - share), seed)
    if not len(search) or not len(confirm):
        raise UserError(
            f"a search compares networks on two parts of the training images, but of {len(train)} images it could hold "
            "out none: with two or fewer of every class that is not possible. Give more images, or take a method that "
            "does not search."
        )
    return SearchSplits(rest, search, confirm)


class FixedImages:
    """The images of a split, in batches that are always the same; kept in memory if they fit.

    Args:
        split: The split.
        seed: The seed of augmentation, as in training; None: images as they are.
    """

    def __init__(self, split: Examples, seed: int | None = None):
        self.split, self.seed = split, seed
        self._kept: dict[tuple[int, int], tuple[Any, Any]] = {}
        one, _ = split.read(np.arange(1))
        self._keeps = sum(t.numel() * t.element_size() for t in tensors_in(one)) * len(split) <= KEPT_BYTES

    def __len__(self) -> int:
        return len(self.split)

    def between(self, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
        """Iterate over the images from `start` to before `stop` in batches (x, y); sizes differ by at most one."""
        count = -(-(stop - start) // BATCH)
        ends = [start + round((stop - start) * number / count) for number in range(count + 1)]
        for first, end in pairwise(ends):
            draw = None if self.seed is None else (self.seed, first, end)
            found = self._kept.get((first, end)) or self.split.read(np.arange(first, end), draw)
            if self._keeps:
                self._kept[first, end] = found
            yield found


def calibration_set(train: Examples, images: int, seed: int) -> FixedImages:
    """Choose random images to recalibrate norms with.

    Args:
        train: The images to choose from.
        images: How many to choose, at most all.
        seed: The seed of choice and augmentation.

    Returns:
        The images, augmented as in training.
    """
    chosen = generator(seed, len(train)).permutation(len(train))[:images]
    return FixedImages(train.take(chosen), seed)


class Builder:
    """Builds the network of given widths, with recalibrated norms.

    Args:
        network: network(widths) makes a separate module, its norms not yet recalibrated.
        calibration: The images to recalibrate norms with.
        renew: renew(model, batches) recalibrates the norms.
    """

    def __init__(self, network: Network, calibration: FixedImages, renew: Renew = renew_norms):
        self.network, self.calibration, self.renew = network, calibration, renew

    def __call__(self, widths: Widths) -> nn.Module:
        model = self.network(widths)
        self.renew(model, self.calibration.between(0, len(self.calibration)))
        return model


class ImageEvaluator:
    """An `Evaluator` that scores networks image by image.

    Args:
        task: A task that judges single examples.
        maker: Builds the networks.
        split: The images to score on.
    """

    def __init__(self, task: Task, maker: Builder, split: Examples):
        self.task, self.maker, self.held_out = task, maker, FixedImages(split)
        self.images = len(split)
        self._last: tuple[dict[str, int], nn.Module] | None = None

    @torch.no_grad()
    def score(self, widths: Widths, images_from: int, images_to: int) -> Tensor:
        """Return whether the network is right on each of these images: bool (images_to - images_from,)."""
        if self._last is None or self._last[0] != widths:
            self._last = dict(widths), self.maker(widths)
        model = self._last[1]
        device = model_device(model)
        with in_mode(model, False):
            batches = (move(batch, device) for batch in self.held_out.between(images_from, images_to))
            found = [self.task.verdicts(call(model, x), y).cpu() for x, y in batches]
        return torch.cat(found)


def scorer(task: Task, maker: Builder, split: Examples) -> Score:
    """Return the function, or evaluator, that scores networks on a split; higher is better.

    Args:
        task: The task.
        maker: Builds the networks.
        split: The images to score on.

    Returns:
        An `ImageEvaluator` if the task judges single examples, so that networks can race; otherwise a function of
        widths that returns the task's metric, negated if lower is better.
    """
    if task.judges_examples:
        return ImageEvaluator(task, maker, split)
    sign = 1 if task.metric.higher_is_better else -1
    return lambda widths: sign * task.evaluate(maker(widths), split)[task.metric.key]


@torch.no_grad()
def moving_norms(model: nn.Module, batches: Iterable[tuple[Any, Any]]) -> None:
    """Recalibrate norms as the paper's code does, for comparison; `recover.renew_norms` is exact.

    The statistics are moving averages of momentum 0.1 that start at mean 0 and variance 1, so with few batches the
    initial values still count. Source: MetaPruning (Liu et al., ICCV 2019, arXiv:1903.10258).

    Args:
        model: The model, changed in place.
        batches: Pairs (inputs, targets), of which only the inputs are used.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    for norm in norms:
        norm.reset_running_stats()
    device = model_device(model)
    with in_mode(model, False):
        for norm in norms:
            norm.training, norm.momentum = True, 0.1
        for x, _ in batches if norms else ():
            call(model, move(x, device))


def labels_hash(*splits: Examples) -> str:
    """Compute a hash of the examples in some splits.

    Args:
        splits: The splits.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for split in splits:
        if isinstance(split, Split):  # as version 0.1.0 stored it
            digest.update(split.members.tobytes() + split.labels.tobytes())
        else:
            digest.update(split.digest().encode())
    return digest.hexdigest()[:16]


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """Compute a hash of tensors, from their names, types, shapes and values.

    Args:
        tensors: The tensors by name.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
