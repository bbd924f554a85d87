"""The highest of many numbers, in little more time than reading them takes; and LAMP.

Sorting or torch.topk take over a hundred times as long as reading. Here a sample gives two values between
which the limit lies, one pass counts the numbers above both and gathers those between, a second compares with
the limit.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prunus.errors import UserError

CHUNK = 1 << 16  # numbers processed at once: they fit a core's own cache
SMALL = 1 << 16  # up to this many are partitioned without a sample
SIGMAS = 6  # half the range searched around the sample's limit, in standard errors


def top(scores: Tensor, count: int, within: Tensor | None = None, *, name: str = "") -> Tensor:
    """Find the highest scores, in the time of a few reads of them.

    Args:
        scores: The scores, finite and not negative, of any shape.
        count: The number to take; of equal scores those of lower flat index are taken.
        within: A bool tensor of the same shape; none is taken where it is False.
        name: The name of the weight, for messages.

    Returns:
        A bool tensor of the scores' shape, exactly `count` of it True.

    Raises:
        UserError: A score is NaN, infinite or negative, or there are fewer than `count`.
    """
    flat = check_scores(scores, name)
    inside = None if within is None else within.reshape(-1).cpu()
    most = count_alive(len(flat), within)
    if not 0 <= count <= most:
        raise UserError(f"{name or 'scores'}: {count} weights should stay of {most}; expected 0 to {most}.")
    return highest(flat, count, inside).view(scores.shape).to(scores.device)


def lamp(scores: Tensor) -> Tensor:
    """Divide each score by the sum of those in its tensor that are no smaller, to compare layers.

    Scores are squares (w^2 in the paper); the result is float32 in [0, 1], the largest 1, or all zero if they
    are. Source: Lee et al., ICLR 2021, arXiv:2010.07611.
    """
    rising, order = check_scores(scores, "").cpu().float().sort()
    found = torch.from_numpy(lamp_of_sorted(rising.numpy()))
    return torch.empty_like(found).scatter_(0, order, found).view(scores.shape).to(scores.device)


def lamp_of_sorted(rising: np.ndarray) -> np.ndarray:
    """LAMP (n,) of ascending scores (n,): float32, ascending too.

    The sum starts at the large end, in float64, because a difference of sums would lose the largest scores.
    """
    found = np.zeros(len(rising), dtype=np.float32)
    end, larger = len(rising), 0.0
    while end and rising[end - 1] > 0:
        start = np.searchsorted(rising, rising[max(0, end - CHUNK)])  # equal ones are never separated
        values = rising[start:end]
        tail = np.cumsum(values[::-1], dtype=np.float64)[::-1] + larger
        again = np.flatnonzero(values[1:] == values[:-1]) + 1
        if len(again):  # equal scores share the sum that starts with the first of them
            fresh = np.diff(again, prepend=-1) > 1
            tail[again] = tail[again[fresh] - 1][np.cumsum(fresh) - 1]
        np.divide(values, tail.astype(np.float32), out=found[start:end], casting="same_kind")
        end, larger = start, tail[0]
    return found


def counts_above(rising: Sequence[np.ndarray], total: int) -> list[int]:
    """Count the numbers of each array (float32, ascending, not negative) among the `total` highest.

    Of equal ones those in earlier arrays are taken first. A bisection of the limit's bits saves merging the
    arrays.
    """

    def reached(bits: int, side: Literal["left", "right"]) -> list[int]:
        limit = np.array(bits, dtype=np.int32).view(np.float32)
        return [len(each) - int(np.searchsorted(each, limit, side)) for each in rising]

    # the limit's bits lie between: `total` numbers or more reach low, fewer reach high
    low, high = 0, int(np.float32(np.inf).view(np.int32)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sum(reached(middle, "left")) >= total else (low, middle)
    above, up_to = reached(low, "right"), reached(low, "left")
    rest = total - sum(above)
    for i, (fewest, most) in enumerate(zip(above, up_to, strict=True)):
        taken = min(rest, most - fewest)
        above[i] += taken
        rest -= taken
    return above


def check_scores(scores: Tensor, name: str) -> Tensor:
    """Check that scores are finite and not negative; returns them flat (n,). Raises UserError otherwise."""
    flat = scores.detach().reshape(-1)
    if len(flat):
        low, high = (float(number) for number in torch.aminmax(flat))
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int((~flat.isfinite()).sum())
            raise UserError(
                f"scores of {name or 'a weight'}: {bad} of {len(flat)} are NaN or infinite; check its values."
            )
        if low < 0:
            raise UserError(
                f"scores of {name or 'a weight'}: the least is {low:g}; expected none below 0 (squares)."
            )
    return flat


def count_alive(size: int, within: Tensor | None) -> int:
    """The number of `size` weights that a mask, if there is one, has not pruned yet."""
    return size if within is None else int(within.count_nonzero())


def as_numpy(flat: Tensor) -> np.ndarray:
    """The numbers in numpy, float64 if they are, otherwise float32; without a copy if possible."""
    flat = flat.cpu()
    return (flat if flat.dtype == torch.float64 else flat.float()).numpy()


def highest(flat: Tensor, count: int, inside: Tensor | None = None) -> Tensor:
    """The mask (n,) of the highest `count` of `flat` (n,)."""
    n = len(flat)
    mask = np.zeros(n, dtype=bool)
    if not count:
        return torch.from_numpy(mask)
    flat = flat.cpu()
    limit = _nth_largest(flat, count, inside)
    surplus = -count
    for start, values in _chunks(flat, inside):
        surplus += np.count_nonzero(np.greater_equal(values, limit, out=mask[start : start + len(values)]))
    starts = reversed(range(0, n, CHUNK))
    while surplus:  # drop the last of those that equal the limit
        start = next(starts)
        values = next(_chunks(flat, inside, start))[1]
        equal = np.flatnonzero(values == limit)[-surplus:]
        mask[start + equal] = False
        surplus -= len(equal)
    return torch.from_numpy(mask)


def _nth_largest(flat: Tensor, count: int, inside: Tensor | None) -> np.floating:
    """The value of the `count`-th largest.

    A sample gives two values between which it lies; one pass counts the numbers above and gathers those
    between.
    """
    n = len(flat)
    if n > SMALL:
        draws = int(n ** (2 / 3))
        index = torch.randint(n, (draws,), generator=torch.Generator().manual_seed(n))
        sample = _values(flat[index], None if inside is None else inside[index])
        rank, spread = draws * count / n, SIGMAS * math.sqrt(draws) / 2
        low, high = int(draws - rank - spread), math.ceil(draws - rank + spread)
        sample.sort()
        low, high = (-np.inf if low < 0 else sample[low]), (np.inf if high >= draws else sample[high])
        above, gathered = 0, list[np.ndarray]()
        for _, values in _chunks(flat, inside):
            larger, reached = values > high, values >= low
            above += np.count_nonzero(larger)
            gathered.append(values[larger != reached])
        between = np.concatenate(gathered)
        if above < count <= above + len(between):
            place = len(between) - (count - above)
            between.partition(place)
            return between[place]
    values = np.concatenate([values for _, values in _chunks(flat, inside)])
    values.partition(n - count)
    return values[n - count]


def _chunks(flat: Tensor, inside: Tensor | None, first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """The pieces of `flat` from index `first` on, each with its start."""
    for start in range(first, len(flat), CHUNK):
        piece = slice(start, start + CHUNK)
        yield start, _values(flat[piece], None if inside is None else inside[piece])


def _values(flat: Tensor, inside: Tensor | None) -> np.ndarray:
    """The numbers in numpy, -inf where `inside` is False."""
    return as_numpy(flat if inside is None else flat.masked_fill(~inside, -math.inf))
