"""What brings a pruned model's quality back: renewed norm statistics, then training, taught by the unpruned model."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunus.train import in_mode

RENEW_BATCHES, RENEW_BATCH_SIZE = 16, 256  # 4,096 pictures


def renewing_batches(train, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a training set to renew norms with, always the same for a seed.

    Augmented, for the weights were trained under the statistics of augmented pictures; under those of the pictures as
    they are even an unpruned network may lose points (benchmarks/dhp.py measures it).
    """
    return islice(train.batches(RENEW_BATCH_SIZE, seed=seed, augment=True), RENEW_BATCHES)


@torch.no_grad()
def renew_norms(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set each batch norm's running mean and variance to those of its input over all `batches` of (x, y).

    Pooled exactly, in float64: the mean of the batches' means, and by the law of total variance the mean of
    their variances plus the variance of their means. Momentum plays no part and nothing else changes. Each
    batch is normalised by its own statistics on the way, as in training.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    pooled = {}  # norm -> count, mean, sum of squared distances from the mean

    def watch(norm: _BatchNorm, args: tuple[Tensor]) -> None:
        x = args[0].transpose(0, 1).flatten(1).float()
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square_().mean(1).double()  # torch.var takes four times as long
        pooled[norm] = pool(pooled.get(norm), (x.shape[1], mean[:, 0].double(), variance * x.shape[1]))

    with batch_statistics(model, norms), ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(watch).remove)
        for x, _ in batches if norms else ():
            model(x.to(next(model.parameters()).device))
    for norm, (count, mean, squares) in pooled.items():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(squares / max(count - 1, 1))


Moments = tuple[int, Tensor, Tensor]


def pool(before: Moments | None, new: Moments) -> Moments:
    """Count, mean and squared distances of two sets taken together (Chan et al., 1979, equation 2.1)."""
    if before is None:
        return new
    (n, mean, squares), (m, new_mean, new_squares) = before, new
    apart = new_mean - mean
    return n + m, mean + apart * (m / (n + m)), squares + new_squares + apart.square() * (n * m / (n + m))


@contextmanager
def batch_statistics(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """`model` in evaluation mode but for `norms`, which normalise by the batch and do not count it."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    with in_mode(model, False):
        for norm in norms:
            norm.training, norm.momentum = True, 0.0
        try:
            yield
        finally:
            for norm, momentum, count in kept:
                norm.momentum = momentum
                norm.num_batches_tracked.copy_(count)
