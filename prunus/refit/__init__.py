"""Weights fitted again by least squares, so that a small model answers as the original did; no labels, no training.

Its files, in the order in which to read them:

    batches       the batches of inputs to which weights are fitted, as a user gives them
    products      a product of an input and a weight, as a system of linear equations
    systems       the normal equations of a product: gathered, and solved
    sites         the products of a model that may be fitted again
    walk          forward passes that stop at each product
    fitted        what the fitting did
    elimination   units of an axis taken away one after the other
    curves        how much of what reads an axis is left unexplained, by the units that it keeps
    moments       the weights of any cut, from what the original's inputs are like
    answers       curves in the currency of the model's answer
    in_order      each product in turn, on the inputs that the small model gives it
    repairing     repair: shrink a model, and fit what is left
"""

from prunus.refit.answers import in_answers
from prunus.refit.curves import Curve, Curves
from prunus.refit.fitted import Fitted
from prunus.refit.in_order import fit_in_order
from prunus.refit.moments import Moments
from prunus.refit.repairing import How, cut_and_fit, repair
from prunus.refit.sites import unread
from prunus.refit.systems import RIDGE

__all__ = [
    "RIDGE",
    "Curve",
    "Curves",
    "Fitted",
    "How",
    "Moments",
    "cut_and_fit",
    "fit_in_order",
    "in_answers",
    "repair",
    "unread",
]
