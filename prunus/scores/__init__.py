"""Scores: one number per unit; higher means keep.

Its files, in the order in which to read them:

    members        the weights that belong to a unit, combined and normalised
    weights        magnitude, lamp, bn_scale, fpgm, random
    blocks         influence, and what blocks do on data
    gradients      taylor, and a loss without labels
    activations    activation
"""

from prunus.scores.activations import activation
from prunus.scores.blocks import features, gradient_norms, influence
from prunus.scores.gradients import random_projection, taylor
from prunus.scores.members import Batches, Combine, Normalize, Scores
from prunus.scores.weights import bn_scale, fpgm, lamp, magnitude, random

__all__ = [
    "Batches",
    "Combine",
    "Normalize",
    "Scores",
    "activation",
    "bn_scale",
    "features",
    "fpgm",
    "gradient_norms",
    "influence",
    "lamp",
    "magnitude",
    "random",
    "random_projection",
    "taylor",
]
