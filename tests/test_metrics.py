"""Metrics: which of two values is worse."""

import math

import pytest

from prunus.metrics import Metric

NONE = (None, math.nan, math.inf)


@pytest.mark.parametrize("higher", [True, False])
def test_a_value_is_worse_on_one_side_of_another_and_never_when_equal(higher):
    metric = Metric(key="x", higher_is_better=higher)
    assert metric.is_worse(0.4, 0.5) is higher
    assert metric.is_worse(0.5, 0.4) is not higher
    assert not metric.is_worse(0.5, 0.5)


@pytest.mark.parametrize("none", NONE)
def test_any_number_is_better_than_none(none):
    metric = Metric(key="x")
    assert metric.is_worse(none, 0.0) and not metric.is_worse(0.0, none)
    assert not any(metric.is_worse(none, other) for other in NONE)
