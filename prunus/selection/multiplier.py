"""Widths that leave out the least sum of scores: one multiplier, with the price of a unit at the widths that it gives.

With one multiplier m for the cost c(w), widths w leave out least where the next unit of every axis scores m times its
price dc/dw (Lagrange). The cost is a product of widths, so prices are not those of the whole network: a unit of a layer
whose neighbours are narrow is cheap. Prices and widths follow from each other, and are iterated.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prunus.selection.fill import Queue, _fill, _Limits, _queue

ROUNDS = 20
NEAR = 1e-3  # prices that change by less have settled


def least_left_out(
    limits: _Limits, scores: Sequence[Tensor], prices: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Queue]:
    """Find the widths that leave out the least sum of scores.

    The first of the widths that are compared are those at the prices of the whole network, so none leave out more.

    Args:
        limits: The range of the widths, and the limit.
        scores: For each axis its scores, falling.
        prices: prices(widths (A,)) -> the costs of one unit more or less of each axis (A,).

    Returns:
        The widths (A,), and the queue of blocks that gave them.
    """
    price, found = prices(limits.sizes), []
    for _ in range(ROUNDS):
        ranked = [score / each for score, each in zip(scores, price, strict=True)]
        queue = _queue(ranked, limits)
        widths = _fill(limits, limits.base, queue)
        left_out = sum(float(score[int(w) :].sum()) for score, w in zip(scores, widths, strict=True))
        found.append((left_out, widths, queue))
        new = (price * prices(widths)).sqrt()  # the mean of both, so that they do not swing
        if torch.allclose(new, price, rtol=NEAR, atol=0):
            break
        price = new
    _, widths, queue = min(found, key=lambda each: each[0])
    return widths, queue
