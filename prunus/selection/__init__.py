"""Selection: scores and a budget give a keep.

Its files, in the order in which to read them:

    depth       what each block costs
    cost        closed forms of widths: macs, params, memory
    budget      limits: Budget, Metered, Sparsity
    patterns    the axes that names stand for
    bounds      floors, caps, axes that stay whole
    fill        units taken from a queue until the budget is full
    shares      axes that are tied, as one variable of a choice
    prices      what a budget limits, as a function of widths
    multiplier  widths that leave out the least sum of scores
    choose      select, and the options of a method that selects
    changes     Plan: the changes that a keep makes
"""

from prunus.selection.bounds import CAP, FLOOR, Bound, min_units
from prunus.selection.budget import Budget, CostMeter, Metered, Sparsity
from prunus.selection.changes import plan
from prunus.selection.choose import (
    FREE,
    TOLERANCE,
    Bounds,
    How,
    Selection,
    Unreachable,
    select,
)
from prunus.selection.cost import CLOSED_FORMS, cache_mb, coverage, macs, memory_mb, params, weights_mb
from prunus.selection.depth import Depth, is_deep
from prunus.selection.fill import GRIDS, Price, blocks, count_fitting
from prunus.selection.patterns import holders
from prunus.selection.prices import price_of

__all__ = [
    "CAP",
    "CLOSED_FORMS",
    "FLOOR",
    "FREE",
    "GRIDS",
    "TOLERANCE",
    "Bound",
    "Bounds",
    "Budget",
    "CostMeter",
    "Depth",
    "How",
    "Metered",
    "Price",
    "Selection",
    "Sparsity",
    "Unreachable",
    "blocks",
    "cache_mb",
    "count_fitting",
    "coverage",
    "holders",
    "is_deep",
    "macs",
    "memory_mb",
    "min_units",
    "params",
    "plan",
    "price_of",
    "select",
    "weights_mb",
]
