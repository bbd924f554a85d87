"""Which of many numbers are the highest, in little more than the time to read them; and LAMP.

Sorting or torch.topk take over a hundred times as long as reading. Here a sample says between which two values the
limit lies, one pass counts what is above them and gathers what is between, a second compares with the limit.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from prunus.errors import UserError

CHUNK = 1 << 16  # numbers looked at together: they fit a core's own cache
SMALL = 1 << 16  # so few are partitioned at once
SIGMAS = 6  # how far from where a sample puts the limit it is looked for


def top(scores: Tensor, count: int, within: Tensor | None = None, *, name: str = "") -> Tensor:
    """Where the `count` highest of `scores` are: a bool tensor of its shape, exactly so many True.

    Equal scores are taken by rising flat index. within: bool, nothing is taken where it is False. Time: a few reads
    of the scores. name: of the weight, for messages. Raises UserError for NaN, infinity, negative numbers, and an
    impossible count.
    """
    flat = checked(scores, name)
    inside = None if within is None else within.reshape(-1).cpu()
    most = alive(len(flat), within)
    if not 0 <= count <= most:
        raise UserError(f"{name or 'scores'}: {count} weights should stay of {most}.")
    return highest(flat, count, inside).view(scores.shape).to(scores.device)


def lamp(scores: Tensor) -> Tensor:
    """Each score over the sum of those in the tensor that are no smaller: float32 in [0, 1], the largest 1.

    For comparing across layers. Scores are squares (w^2 in the paper); all zero gives all zero.
    """
    rising, order = checked(scores, "").cpu().float().sort()
    found = torch.from_numpy(lamp_of_sorted(rising.numpy()))
    return torch.empty_like(found).scatter_(0, order, found).view(scores.shape).to(scores.device)


def lamp_of_sorted(rising: np.ndarray) -> np.ndarray:
    """LAMP (n,) of scores that rise (n,); float32, rises too.

    The sum runs from the large end and in float64: a difference of sums would lose the largest scores.
    """
    found = np.zeros(len(rising), dtype=np.float32)
    end, larger = len(rising), 0.0
    while end and rising[end - 1] > 0:
        start = np.searchsorted(rising, rising[max(0, end - CHUNK)])  # equal ones are never parted
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
    """How many of each array, float32 that rise and are not negative, are among the `total` highest of all.

    Of equal ones those in earlier arrays are taken first. Halves the range of the limit's bits, so nothing is merged.
    """

    def reached(bits: int, side: str) -> list[int]:
        limit = np.array(bits, dtype=np.int32).view(np.float32)
        return [len(each) - int(np.searchsorted(each, limit, side)) for each in rising]

    # the limit's bits: enough reach low, too few reach high
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


def checked(scores: Tensor, name: str) -> Tensor:
    """`scores` (n,), known to be numbers from 0 on."""
    flat = scores.detach().reshape(-1)
    if len(flat):
        low, high = (float(number) for number in torch.aminmax(flat))
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int((~flat.isfinite()).sum())
            raise UserError(
                f"scores of {name or 'a weight'}: {bad} of {len(flat)} are NaN or infinite; are its weights whole?"
            )
        if low < 0:
            raise UserError(
                f"scores of {name or 'a weight'}: the least is {low:g}; expected none below 0 (squares)."
            )
    return flat


def alive(size: int, within: Tensor | None) -> int:
    """How many of so many weights are not pruned yet."""
    return size if within is None else int(within.count_nonzero())


def as_numpy(flat: Tensor) -> np.ndarray:
    """In float32, but float64 stays; not a copy if it need not be one."""
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
    while surplus:  # of those equal to the limit the last go
        start = next(starts)
        values = next(_chunks(flat, inside, start))[1]
        equal = np.flatnonzero(values == limit)[-surplus:]
        mask[start + equal] = False
        surplus -= len(equal)
    return torch.from_numpy(mask)


def _nth_largest(flat: Tensor, count: int, inside: Tensor | None) -> np.floating:
    """The value of the `count`-th largest.

    A sample says between which two values it lies; one pass counts what is above and gathers what is between.
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
        above, between = 0, []
        for _, values in _chunks(flat, inside):
            larger, reached = values > high, values >= low
            above += np.count_nonzero(larger)
            between.append(values[larger != reached])
        between = np.concatenate(between)
        if above < count <= above + len(between):
            place = len(between) - (count - above)
            between.partition(place)
            return between[place]
    values = np.concatenate([values for _, values in _chunks(flat, inside)])
    values.partition(n - count)
    return values[n - count]


def _chunks(flat: Tensor, inside: Tensor | None, first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces of `flat` from `first` on, each with where it starts."""
    for start in range(first, len(flat), CHUNK):
        piece = slice(start, start + CHUNK)
        yield start, _values(flat[piece], None if inside is None else inside[piece])


def _values(flat: Tensor, inside: Tensor | None) -> np.ndarray:
    """`flat` in numpy, -inf where it is not `inside`."""
    return as_numpy(flat if inside is None else flat.masked_fill(~inside, -math.inf))
