"""How good a network of a search is: its weights made once, its norms renewed exactly, tried on pictures held out.

Three parts of the training pictures: on the largest a method may train, on one networks are compared, on one the last
few are compared once more. What `val` and `test` hold is not touched. Norms are renewed on pictures of the first part,
changed as in training and the same for every network. Source: MetaPruning (Liu et al., ICCV 2019, arXiv:1903.10258),
section 3.3; that statistics are pooled exactly, over few pictures, is ours.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunus.data import Split, generator
from prunus.errors import UserError
from prunus.recover import renew_norms
from prunus.search.evaluation import Score
from prunus.search.space import Widths
from prunus.tasks import Task
from prunus.train import in_mode

SHARE = 0.15  # of the training pictures, that each of the two parts held out has at the most
BATCH = 256  # pictures
KEPT_BYTES = (
    2**30
)  # of pictures, decoded and changed once for all networks; sets that need more are read each time

Network = Callable[[Widths], nn.Module]  # a module of these widths, of its own, its norms still to be renewed
Renew = Callable[[nn.Module, Iterable[tuple[Tensor, Tensor]]], None]


@dataclass(frozen=True)
class Parts:
    """Training pictures, each in one part. train: to learn from; search, confirm: to choose on."""

    train: Split
    search: Split
    confirm: Split


def parted(train: Split, images: int, seed: int) -> Parts:
    """Hold out two parts of `images` pictures, or of the share SHARE if that is less, an equal share of each class.

    Raises UserError if nothing would be left to hold out.
    """
    share = min(SHARE, images / max(1, len(train)))
    rest, search = train.hold_out(share, seed)
    rest, confirm = rest.hold_out(share / (1 - share), seed)
    if not len(search) or not len(confirm):
        raise UserError(
            "a search compares networks on pictures held out of training, twice: with two pictures or fewer of every "
            "class that is not possible. Give more, or take a method that does not search."
        )
    return Parts(rest, search, confirm)


class Pictures:
    """The pictures of a split, in batches that are always the same; kept in memory if they fit.

    seed: given, as in training, changed at random by it; None: as they are.
    """

    def __init__(self, split: Split, seed: int | None = None):
        self.split, self.seed = split, seed
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        one = split.source.read(split.members[:1], None)
        self._keeps = one.numel() * one.element_size() * len(split) <= KEPT_BYTES

    def __len__(self) -> int:
        return len(self.split)

    def between(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (x, y) of the pictures from `start` to before `stop`, of equal size but for one."""
        count = -(-(stop - start) // BATCH)
        ends = [start + round((stop - start) * number / count) for number in range(count + 1)]
        for first, end in pairwise(ends):
            found = self._kept.get((first, end)) or self._read(first, end)
            if self._keeps:
                self._kept[first, end] = found
            yield found

    def _read(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        draw = None if self.seed is None else generator(self.seed, first, end)
        x = self.split.source.read(self.split.members[first:end], draw)
        return x, torch.from_numpy(self.split.labels[first:end])


def to_renew_with(train: Split, images: int, seed: int) -> Pictures:
    """`images` pictures, or as many as there are, to renew norms with: drawn and changed by the seed."""
    chosen = generator(seed, len(train)).permutation(len(train))[:images]
    return Pictures(train.take(chosen), seed)


class Maker:
    """Makes the network of some widths ready to be tried. renew: how its norms get their statistics."""

    def __init__(self, network: Network, calibration: Pictures, renew: Renew = renew_norms):
        self.network, self.calibration, self.renew = network, calibration, renew

    def __call__(self, widths: Widths) -> nn.Module:
        model = self.network(widths)
        self.renew(model, self.calibration.between(0, len(self.calibration)))
        return model


class Trial:
    """Tries networks image by image, as `search.Evaluator` has it. task: judges single examples."""

    def __init__(self, task: Task, maker: Maker, split: Split):
        self.task, self.maker, self.pictures = task, maker, Pictures(split)
        self.images = len(split)
        self._last: tuple[dict[str, int], nn.Module] | None = None

    @torch.no_grad()
    def score(self, widths: Widths, images_from: int, images_to: int) -> Tensor:
        """Of each of these pictures whether the network of these widths is right: bool (images_to - images_from,)."""
        if self._last is None or self._last[0] != widths:
            self._last = dict(widths), self.maker(widths)
        model = self._last[1]
        device = next(model.parameters()).device
        with in_mode(model, False):
            found = [
                self.task.verdicts(model(x.to(device)), y.to(device)).cpu()
                for x, y in self.pictures.between(images_from, images_to)
            ]
        return torch.cat(found)


def tried_on(task: Task, maker: Maker, split: Split) -> Score:
    """Return how networks are scored on a split: image by image, so that they can race, if the task judges single
    examples; otherwise by the task's metric, negated if lower is better."""
    if task.judges_examples:
        return Trial(task, maker, split)
    sign = 1 if task.metric.higher_is_better else -1
    return lambda widths: sign * task.evaluate(maker(widths), split)[task.metric.key]


@torch.no_grad()
def moving_norms(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Norm statistics as the paper's code has them, for comparison: moving averages of momentum 0.1 that start at mean
    0 and variance 1, so that with few batches the start still counts. `recover.renew_norms` is exact."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    for norm in norms:
        norm.reset_running_stats()
    with in_mode(model, False):
        for norm in norms:
            norm.training, norm.momentum = True, 0.1
        for x, _ in batches if norms else ():
            model(x.to(next(model.parameters()).device))


def labels_hash(*splits: Split) -> str:
    """Differs for other pictures in a part, by their places and labels."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(
            np.ascontiguousarray(split.members).tobytes() + np.ascontiguousarray(split.labels).tobytes()
        )
    return digest.hexdigest()[:16]


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """Differs for other values, names or shapes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
