"""The methods: one file or folder for each, with the method's name.

Its files, in the order in which to read them:

    _contract                               the contract: a method's options, its use of a run, its result
    _registry                               finding a method by its name, and setting its options
    magnitude taylor activation bn_scale    methods that score units, a file for each
    fpgm lamp random submodular             more of them
    sglp                                    blocks that are skipped, a few of those that are alike
    structure                               the widths of an earlier run
    dhp/                                    widths learned by hypernetworks with latent vectors
    pass_/                                  masks from a recurrent hypernetwork that reads a visual prompt
    metapruning/                            widths searched with generated weights
    lookahead/                              single weights, scored with their neighbouring layers
"""

from prunus.methods._contract import (
    HALF,
    Options,
    Pruned,
    Run,
    Units,
    Weights,
    check_loss,
    epochs_left,
    half_of,
    shown_batches,
)
from prunus.methods._registry import Method, configure, find, names, option_types, type_in_words

__all__ = [
    "HALF",
    "Method",
    "Options",
    "Pruned",
    "Run",
    "Units",
    "Weights",
    "check_loss",
    "configure",
    "epochs_left",
    "find",
    "half_of",
    "names",
    "option_types",
    "shown_batches",
    "type_in_words",
]
