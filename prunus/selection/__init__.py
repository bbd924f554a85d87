"""Selection: scores and a budget give a keep.

Its files, in the order in which to read them:

    cost       closed forms of widths: macs, params, memory_mb
    budget     what can be asked: Budget, Metered, Sparsity
    bounds     floors, caps, frozen axes
    fill       units taken from a queue until the budget is full
    choose     select, and the options of a method that selects
    changes    Plan: what a keep would change
"""

from prunus.selection.bounds import CAP, FLOOR, Rule, holders, least
from prunus.selection.budget import Budget, CostMeter, Metered, Sparsity, short
from prunus.selection.changes import plan
from prunus.selection.choose import FREE, GRIDS, TOLERANCE, How, Selection, Unreachable, price_of, select
from prunus.selection.cost import macs, memory_mb, params
from prunus.selection.fill import Price, blocks, longest

__all__ = [
    "CAP",
    "FLOOR",
    "FREE",
    "GRIDS",
    "TOLERANCE",
    "Budget",
    "CostMeter",
    "How",
    "Metered",
    "Price",
    "Rule",
    "Selection",
    "Sparsity",
    "Unreachable",
    "blocks",
    "holders",
    "least",
    "longest",
    "macs",
    "memory_mb",
    "params",
    "plan",
    "price_of",
    "select",
    "short",
]
