"""Timing calls in turns, so that a busy machine slows all of them alike."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from prunus.export import Call

WARMUP = 3
LEAST_MS = 1.0  # of one measurement: shorter calls are repeated within it
ATTEMPTS, LONG_MS = 3, 10.0  # to time a call without another program between; from where on that is in vain
WAITED = Path("/proc/thread-self/schedstat")  # nanoseconds of running, of waiting to run, turns


def take_turns(
    calls: Mapping[str, Call],
    seconds: float,
    step: Callable,
    *,
    rounds: tuple[int, int] = (20, 400),
    least_ms: float = LEAST_MS,
) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, for `seconds`, but for no fewer and no more `rounds` than given.

    step: told how many more whole seconds have passed. least_ms: shorter calls are repeated until they take so long.
    """
    repeats = {name: repeats_of(call, least_ms) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    tick, lot = Ticker(step, seconds), random.Random(0)
    for number in range(rounds[1]):
        for name in lot.sample(list(calls), len(calls)):
            times[name].append(undisturbed(calls[name], repeats[name]))
        if tick() > seconds and number + 1 >= rounds[0]:
            break
    return times


class Ticker:
    """Tells how many of `seconds`, whole ones, have passed since it was made."""

    def __init__(self, step: Callable, seconds: float):
        self.step, self.seconds = step, seconds
        self.begun, self.shown = time.monotonic(), 0

    def __call__(self) -> float:
        """The seconds that have passed; `step` is told how many more than last time."""
        past = time.monotonic() - self.begun
        now = min(round(past), round(self.seconds))
        self.step(now - self.shown)
        self.shown = now
        return past


def milliseconds(call: Call, repeats: int = 1) -> float:
    """Of a call, over so many."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1e3 * (time.perf_counter() - start) / repeats


def undisturbed(call: Call, repeats: int = 1) -> float:
    """`milliseconds`, less what the system gave to others meanwhile; of a few tries the first without.

    What other threads of the call waited for is not known, so a try without is better. Long calls are tried once.
    """
    ms = waited = 0.0
    for _ in range(ATTEMPTS):
        before = _waited_ms()
        ms = milliseconds(call, repeats)
        waited = _waited_ms() - before
        if not waited or ms * repeats - waited > LONG_MS:
            break
    return ms - waited / repeats if waited < ms * repeats else ms  # it may have waited just before or after


def _waited_ms() -> float:
    """How long this thread was ready and another had its processor, ever; always 0 where the system does not tell."""
    try:
        return int(WAITED.read_bytes().split()[1]) / 1e6
    except (OSError, ValueError, IndexError):
        return 0.0


def repeats_of(call: Call, least_ms: float = LEAST_MS) -> int:
    """How many calls make one measurement; the call is warm after."""
    fastest = min(milliseconds(call) for _ in range(WARMUP))
    return max(1, math.ceil(least_ms / max(fastest, 1e-4)))


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """The models in evaluation mode; each of their modules goes back to its own afterwards."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
