"""Training: one loop, on one device or under torchrun, that can be killed and resumed.

Its files, in the order in which to read them:

    contexts      modes, memory formats and random states that are put back afterwards
    recipe        how a model is trained
    along         what a method does beside a training
    checkpoint    the whole state of a training in one file
    loop          fit
"""

from prunus.train.along import Along, Beside
from prunus.train.checkpoint import Training, distinct
from prunus.train.contexts import in_mode
from prunus.train.loop import Trainable, fit, share_buffers
from prunus.train.recipe import Recipe

__all__ = [
    "Along",
    "Beside",
    "Recipe",
    "Trainable",
    "Training",
    "distinct",
    "fit",
    "in_mode",
    "share_buffers",
]
