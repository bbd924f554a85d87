"""As many epochs of recovery are planned as fit into a time, by steps that were tried."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from prunus.recover import Pace, measure_pace
from prunus.tasks import Classification
from prunus.train import Recipe


def seconds(pace, steps):
    """What a recovery of so many steps takes, with the measuring before it."""
    return (
        pace.spent_s + pace.begin_s + steps * pace.step_s + math.ceil(steps / pace.steps) * pace.evaluation_s
    )


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("evaluation_s", [0.0, 0.1, 30.0])
@pytest.mark.parametrize("within_s", [0.1, 5.0, 60.0, 61.7, 333.0])
def test_the_plan_fits_into_the_time_and_one_step_more_would_not(steps, evaluation_s, within_s):
    pace = Pace(spent_s=2.0, begin_s=0.5, step_s=0.25, evaluation_s=evaluation_s, steps=steps)
    planned = pace.epochs_within(within_s) * steps
    assert planned == pytest.approx(round(planned)) and planned >= 1
    planned = round(planned)
    assert planned == 1 or seconds(pace, planned) <= 0.9 * within_s * (1 + 1e-9)
    # nor would a whole epoch more
    assert all(seconds(pace, planned + more) > 0.9 * within_s * (1 - 1e-9) for more in (1, steps))


@pytest.mark.parametrize(("images", "tried"), [(640, 6), (96, 3), (20, 1)])
def test_a_few_steps_are_tried_and_timed_apart_from_the_evaluation(digits, images, tried):
    """By a clock that is moved by the work itself: 10 s for a step, 3 s for the evaluation."""
    now = [0.0]

    class Counted(Classification):
        def training_loss(self, output, target, recipe):
            now[0] += 10
            return super().training_loss(output, target, recipe)

        def evaluate(self, model, split):
            now[0] += 3
            return super().evaluate(model, split)

    data = replace(digits, train=digits.train.take(np.arange(images)), val=digits.val.take(np.arange(8)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    recipe = Recipe(epochs=5, batch_size=32, lr=0.1, precision="no")
    pace = measure_pace(model, Counted(model, data), recipe, clock=lambda: now[0])
    assert (pace.step_s, pace.evaluation_s, pace.begin_s) == (10, 3, 0)
    assert pace.spent_s == 10 * tried + 3 and pace.steps == math.ceil(images / 32)


def test_a_clock_is_read_in_order(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    data = replace(digits, train=digits.train.take(np.arange(64)), val=digits.val.take(np.arange(8)))
    ticks = itertools.count()
    recipe = Recipe(epochs=5, batch_size=32, precision="no")
    pace = measure_pace(model, Classification(model, data), recipe, clock=lambda: float(next(ticks)))
    assert (pace.begin_s, pace.step_s, pace.evaluation_s, pace.spent_s) == (1, 1, 1, 4)
