"""Training: one loop, on one device or under torchrun, that can be killed and resumed.

Its files, in the order in which to read them:

    contexts      modes, memory formats and random states that are restored afterwards
    recipe        the settings of a training
    along         the hooks by which a method takes part in a training
    checkpoint    the whole state of a training, in one file
    loop          fit, the training loop
"""

from prunus.train.along import Along, Beside, Search
from prunus.train.checkpoint import Training, named_tensors
from prunus.train.contexts import in_mode
from prunus.train.loop import Trainable, fit, share_buffers
from prunus.train.recipe import Recipe

__all__ = [
    "Along",
    "Beside",
    "Recipe",
    "Search",
    "Trainable",
    "Training",
    "fit",
    "in_mode",
    "named_tensors",
    "share_buffers",
]
