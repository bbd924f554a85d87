"""How fast a recovery goes on this machine, measured, and how many epochs fit into a time."""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from prunus.progress import Step, silent
from prunus.recover.norms import calibration_batches, renew_norms
from prunus.train import Along, Recipe, Trainable, Training, fit

TRIED = 6  # steps, the first of which warms up
MARGIN = 0.9  # the share of the time that is planned for; other programs may take the rest


@dataclass(frozen=True)
class Pace:
    """How fast a recovery goes.

    Args:
        spent_s: Seconds that were spent on measuring.
        begin_s: Seconds before the first step, in which norms are renewed.
        step_s: Seconds for a step of the optimiser, the teacher's answers included.
        evaluation_s: Seconds for an evaluation, at the end of each epoch.
        steps: Steps in an epoch.
    """

    spent_s: float
    begin_s: float
    step_s: float
    evaluation_s: float
    steps: int

    def epochs_within(self, seconds: float) -> float:
        """Count the epochs that fit into a time, of which a tenth is left as a margin.

        Args:
            seconds: The time, from the beginning of the measurement on.

        Returns:
            The number of epochs, a whole number of steps; at least one step.
        """
        left_s = MARGIN * seconds - self.spent_s - self.begin_s
        epoch_s = self.steps * self.step_s + self.evaluation_s
        whole = max(0, int(left_s // epoch_s))
        more = int((left_s - whole * epoch_s - self.evaluation_s) // self.step_s)
        return max(1, whole * self.steps + max(0, more)) / self.steps


def measure_pace(
    small: nn.Module,
    task: Trainable,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    seed: int = 0,
    progress: Callable[..., AbstractContextManager[Step]] = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> Pace:
    """Begin a recovery, and take the time of a few steps and of an evaluation.

    Args:
        small: The pruned model, which is trained by these steps; give one that is not needed any more.
        task: As in `recover`.
        recipe: As in `recover`.
        teacher: As in `recover`.
        seed: As in `recover`.
        progress: As in `recover`.
        clock: Returns seconds.

    Returns:
        The pace.
    """
    began = clock()
    renew_norms(small, calibration_batches(task.data.train, seed))
    renewed = clock()
    steps, watch = task.data.train.steps(recipe.batch_size), Stopwatch(clock)
    trial = recipe.adapt(epochs=min(TRIED, steps) / steps)
    fit(
        small,
        task,
        trial,
        seed=seed,
        teacher=teacher,
        along=watch,
        progress=progress,
        label="taking the time",
    )
    ended = clock()
    times = watch.times if len(watch.times) > 1 else [renewed, *watch.times]
    return Pace(
        spent_s=ended - began,
        begin_s=renewed - began,
        step_s=statistics.median(after - before for before, after in pairwise(times)),
        evaluation_s=ended - times[-1],
        steps=steps,
    )


class Stopwatch(Along):
    """Notes when each step of a training ended.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.times: list[float] = []

    def after_step(self, at: Training, step: int, lr: float) -> None:
        """Note the time."""
        self.times.append(self.clock())
