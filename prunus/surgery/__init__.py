"""Surgery: apply a keep to a model and prove the result.

Its files, in the order in which to read them:

    slicing            the part of a tensor that stays
    steps              modules that change a weight before it is used: masks, gates
    effective          the tensors that a model computes with
    stated             what a model says about its own sizes
    skipped            the module in the place of a block that is skipped
    structure          how the modules of a small model are called
    shortening         lists of modules without the skipped ones
    copies             models that hold other tensors
    sampling           random weights that let a signal through
    filling            the random weights that both models of a proof hold
    decoding           calls with a cache
    bypass             blocks of the original that are passed by
    vessel             a copy of a model that is given other tensors again and again
    attempts           the precisions in which two models are compared
    proof              prove, verify, and the axis to blame
    apply              mask, crop, shrink
    optimizer_state    momentum and averages carried over
    in_place           shrink a model that a training loop holds
    fresh              reinitialise a model
"""

from prunus.surgery.apply import crop, mask, shrink
from prunus.surgery.attempts import TOLERANCES
from prunus.surgery.copies import (
    changed_attributes,
    checked_tensors,
    clone,
    resize,
    with_structure,
    with_tensors,
)
from prunus.surgery.effective import effective_tensors
from prunus.surgery.fresh import fan_in, reinitialise, sample_uniform
from prunus.surgery.in_place import shrink_in_place
from prunus.surgery.optimizer_state import carry_over
from prunus.surgery.proof import Proof, prove, verify
from prunus.surgery.skipped import Skip, Skipped
from prunus.surgery.slicing import cut, shape_differences, slice_tensor
from prunus.surgery.steps import Held, find_steps, lists_of
from prunus.surgery.structure import Structure

__all__ = [
    "TOLERANCES",
    "Held",
    "Proof",
    "Skip",
    "Skipped",
    "Structure",
    "carry_over",
    "changed_attributes",
    "checked_tensors",
    "clone",
    "crop",
    "cut",
    "effective_tensors",
    "fan_in",
    "find_steps",
    "lists_of",
    "mask",
    "prove",
    "reinitialise",
    "resize",
    "sample_uniform",
    "shape_differences",
    "shrink",
    "shrink_in_place",
    "slice_tensor",
    "verify",
    "with_structure",
    "with_tensors",
]
