"""Gates: one number per unit, multiplied into the weights that read it.

Its files, in the order in which to read them:

    product       weights times gates, differentiable
    at_once       all gated weights computed before the first layer runs
    exact         the axes on which a gate of zero is the same as removal
    gates         Gates, attach, take_off
    thresholds    the units above a threshold, and their cost
    compact       cut a model while it is trained
"""

from prunus.gates.compact import Compacted, can_be_cut
from prunus.gates.exact import inexact_axes
from prunus.gates.gates import Gate, Gates, attach, take_off
from prunus.gates.product import Place
from prunus.gates.thresholds import Thresholds, soft_threshold

__all__ = [
    "Compacted",
    "Gate",
    "Gates",
    "Place",
    "Thresholds",
    "attach",
    "can_be_cut",
    "inexact_axes",
    "soft_threshold",
    "take_off",
]
