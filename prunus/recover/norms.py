"""The running statistics of batch norms, estimated again on data after a cut."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunus.data import Examples
from prunus.inputs import call, model_device, move
from prunus.train import in_mode

RENEW_BATCHES, RENEW_BATCH_SIZE = 16, 256  # 4,096 images


def calibration_batches(train: Examples, seed: int) -> Iterator[tuple[Any, Any]]:
    """Take the batches with which norms are renewed; they are the same for the same seed.

    They are augmented, because the weights were trained under the statistics of augmented images; under those
    of plain images even an unpruned network may lose accuracy (benchmarks/dhp.py measures it).

    Args:
        train: The training split.
        seed: The seed of the order and the augmentation.

    Returns:
        16 batches (x, y) of 256 examples, or of the loader's own size; fewer if the split is smaller.
    """
    return islice(train.batches(RENEW_BATCH_SIZE, seed=seed, augment=True), RENEW_BATCHES)


@torch.no_grad()
def renew_norms(model: nn.Module, batches: Iterable[tuple[Any, Any]]) -> None:
    """Set the running mean and variance of each batch norm to those of its input over all batches.

    They are pooled exactly, in float64: the mean of the batches' means, and by the law of total variance the
    mean of their variances plus the variance of their means. Momentum has no effect and nothing else changes.
    Each batch is normalised by its own statistics, as in training.

    Args:
        model: The model, changed in place.
        batches: Pairs (x, y), of which only x is used; they are moved to the model's device.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    pooled: dict[_BatchNorm, Moments] = {}

    def watch(norm: _BatchNorm, args: tuple[Tensor]) -> None:
        x = args[0].transpose(0, 1).flatten(1).float()
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square_().mean(1).double()  # torch.var takes four times as long
        pooled[norm] = pool(pooled.get(norm), (x.shape[1], mean[:, 0].double(), variance * x.shape[1]))

    device = model_device(model)
    with batch_statistics(model, norms), ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(watch).remove)
        for x, _ in batches if norms else ():
            call(model, move(x, device))
    for norm, (count, mean, squares) in pooled.items():
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(squares / max(count - 1, 1))


Moments = tuple[int, Tensor, Tensor]  # count, mean, sum of squared distances from the mean


def pool(before: Moments | None, new: Moments) -> Moments:
    """Combine the moments of two sets (Chan et al., 1979, equation 2.1)."""
    if before is None:
        return new
    (n, mean, squares), (m, new_mean, new_squares) = before, new
    apart = new_mean - mean
    return n + m, mean + apart * (m / (n + m)), squares + new_squares + apart.square() * (n * m / (n + m))


@contextmanager
def batch_statistics(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Put the model into evaluation mode except `norms`, which normalise by the batch and do not count it."""
    kept: list[tuple[_BatchNorm, float | None, Tensor]] = []
    for norm in norms:
        assert norm.num_batches_tracked is not None, "a norm with a running mean counts batches"
        kept.append((norm, norm.momentum, norm.num_batches_tracked.clone()))
    with in_mode(model, False):
        for norm in norms:
            norm.training, norm.momentum = True, 0.0
        try:
            yield
        finally:
            for norm, momentum, count in kept:
                norm.momentum = momentum
                assert norm.num_batches_tracked is not None
                norm.num_batches_tracked.copy_(count)
