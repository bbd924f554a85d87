"""Latency: milliseconds, measured, predicted, and as a budget.

Its files, in the order in which to read them:

    clock              timing calls in turns
    milliseconds       timing whole models
    operators          operators that can be built at any widths
    operator_timing    timing single operators
    decoding           timing a step of decoding
    table              a rising table with linear interpolation
    cache              times on disk
    profiling          measuring operators and random sub-networks
    predictor          predicting milliseconds at any widths
    fast               widths that no wider one matches in speed
    meter              meeting a budget by measuring
"""

from prunus.latency.cache import device_name, library_version
from prunus.latency.clock import take_turns
from prunus.latency.decoding import Decoding
from prunus.latency.fast import fast_widths
from prunus.latency.meter import Meter, select_measured
from prunus.latency.milliseconds import latency_ms, measure
from prunus.latency.profiling import measure_tables

__all__ = [
    "Decoding",
    "Meter",
    "device_name",
    "fast_widths",
    "latency_ms",
    "library_version",
    "measure",
    "measure_tables",
    "select_measured",
    "take_turns",
]
