"""Timing calls in turns, so that a busy machine slows all of them alike.

Machines are noisy, and slow for seconds at a time. So calls that are compared take turns, in a new random order each
round, and a time is only compared with others of the same round. Time that the system gives to another program does
not count: long calls are interrupted more often than short ones, so their ratio would be wrong. (Only Linux reports
that time.) Source: ours.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from prunus.export import Call

WARMUP = 3
LEAST_MS = 1.0  # length of one measurement; shorter calls are repeated within it
ATTEMPTS = 3  # to time a call without an interruption by another program
LONG_MS = 10.0  # calls that run longer are not timed again, because they are nearly always interrupted
WAITED = Path("/proc/thread-self/schedstat")  # nanoseconds of running, of waiting to run, and time slices


def take_turns(
    calls: Mapping[str, Call],
    seconds: float,
    step: Callable,
    *,
    rounds: tuple[int, int] = (20, 400),
    least_ms: float = LEAST_MS,
) -> dict[str, list[float]]:
    """Time calls in turns, in a random order each round.

    Args:
        calls: The calls by name.
        seconds: How long to measure.
        step: Called with the number of whole seconds that have passed since its last call.
        rounds: The least and the most rounds, whatever `seconds` allows.
        least_ms: The length of one measurement in milliseconds; shorter calls are repeated within it.

    Returns:
        The milliseconds of one call in each round, by name.
    """
    repeats = {name: count_repeats(call, least_ms) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    tick, rng = Ticker(step, seconds), random.Random(0)
    for number in range(rounds[1]):
        for name in rng.sample(list(calls), len(calls)):
            times[name].append(time_undisturbed(calls[name], repeats[name]))
        if tick() > seconds and number + 1 >= rounds[0]:
            break
    return times


class Ticker:
    """A counter that reports whole seconds to `step`, up to `seconds` in all."""

    def __init__(self, step: Callable, seconds: float):
        self.step, self.seconds = step, seconds
        self.begun, self.shown = time.monotonic(), 0

    def __call__(self) -> float:
        """Report the whole seconds since the last call; returns the seconds since the counter was made."""
        past = time.monotonic() - self.begun
        now = min(round(past), round(self.seconds))
        self.step(now - self.shown)
        self.shown = now
        return past


def milliseconds(call: Call, repeats: int = 1) -> float:
    """Mean milliseconds per call over `repeats` calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1e3 * (time.perf_counter() - start) / repeats


def time_undisturbed(call: Call, repeats: int = 1) -> float:
    """Mean milliseconds per call, less the time in which this thread waited for other programs.

    Of a few attempts the first without waiting counts, because only this thread's waiting is known, not that of other
    threads of the call. Long calls get one attempt.
    """
    ms = waited = 0.0
    for _ in range(ATTEMPTS):
        before = _waited_ms()
        ms = milliseconds(call, repeats)
        waited = _waited_ms() - before
        if not waited or ms * repeats - waited > LONG_MS:
            break
    return ms - waited / repeats if waited < ms * repeats else ms  # otherwise it waited outside of the call


def _waited_ms() -> float:
    """Milliseconds that this thread has waited for a processor since its start; 0 if the system does not report it."""
    try:
        return int(WAITED.read_bytes().split()[1]) / 1e6
    except (OSError, ValueError, IndexError):
        return 0.0


def count_repeats(call: Call, least_ms: float = LEAST_MS) -> int:
    """Count the calls that take `least_ms` together; this also warms the call up."""
    fastest = min(milliseconds(call) for _ in range(WARMUP))
    return max(1, math.ceil(least_ms / max(fastest, 1e-4)))
