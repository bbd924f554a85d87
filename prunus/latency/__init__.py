"""Milliseconds: measured, predicted, and kept as a budget.

Its files, in the order in which to read them:

    clock              timing in turns
    milliseconds       how long a whole model takes
    operators          operators that can be built at any widths
    operator_timing    how long one operator takes alone
    table              a rising table with straight lines between its points
    cache              times on disk
    profiling          measuring operators and random sub-networks
    predictor          milliseconds at any widths
    meter              keeping a budget by measuring
"""

from prunus.latency.cache import device_name, version_of
from prunus.latency.clock import take_turns
from prunus.latency.meter import Meter, select_measured
from prunus.latency.milliseconds import latency_ms, measure

__all__ = [
    "Meter",
    "device_name",
    "latency_ms",
    "measure",
    "select_measured",
    "take_turns",
    "version_of",
]
