"""Weights fitted again by least squares, so that a small model answers as the original did; no labels, no training.

Its files, in the order in which to read them:

    batches       the batches of inputs to which weights are fitted, as a user gives them
    products      a product of an input and a weight, as a system of linear equations
    systems       the normal equations of a product: gathered, and solved
    sites         the products of a model that may be fitted again
    walk          forward passes that stop at each product
    fitted        what the fitting did
    moments       the weights of any cut, from what the original's inputs are like
    in_order      each product in turn, on the inputs that the small model gives it
    repairing     repair: shrink a model, and fit what is left
"""

from prunus.refit.fitted import Fitted
from prunus.refit.in_order import fit_in_order
from prunus.refit.moments import Moments
from prunus.refit.repairing import How, cut_and_fit, repair

__all__ = ["Fitted", "How", "Moments", "cut_and_fit", "fit_in_order", "repair"]
