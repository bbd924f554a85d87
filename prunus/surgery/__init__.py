"""Surgery: a keep applied to a model, and proved.

Its files, in the order in which to read them:

    slicing            the part of a tensor that stays
    steps              modules that compute a weight, such as parametrisations
    copies             models that hold other tensors
    proof              prove, verify, and the axis to blame
    apply              mask, crop, shrink
    optimizer_state    momentum and averages carried over
    fresh              new random weights
"""

from prunus.surgery.apply import crop, mask, shrink
from prunus.surgery.copies import changed_attributes, checked_tensors, clone, effective, fill, resized
from prunus.surgery.fresh import draw_anew, fan_in, uniform
from prunus.surgery.optimizer_state import carry_over
from prunus.surgery.proof import TOLERANCES, Proof, prove, verify
from prunus.surgery.slicing import cut, differences, sliced
from prunus.surgery.steps import Held, found, lists_of

__all__ = [
    "TOLERANCES",
    "Held",
    "Proof",
    "carry_over",
    "changed_attributes",
    "checked_tensors",
    "clone",
    "crop",
    "cut",
    "differences",
    "draw_anew",
    "effective",
    "fan_in",
    "fill",
    "found",
    "lists_of",
    "mask",
    "prove",
    "resized",
    "shrink",
    "sliced",
    "uniform",
    "verify",
]
