"""The methods: one file or folder each, under the method's name.

Its files, in the order in which to read them:

    _contract                               the options of a method, what it may use of a run, what it gives back
    _registry                               finding a method by its name, and filling its options
    magnitude taylor activation bn_scale    scores of units, a file each
    fpgm lamp random                        more of them
    structure                               the widths of an earlier run
    dhp/                                    widths learned by hypernetworks with latent vectors
    pass_/                                  masks emitted by a recurrent hypernetwork that reads a visual prompt
    metapruning/                            widths searched with generated weights
    lookahead/                              single weights, scored with their neighbouring layers
"""

from prunus.methods._contract import HALF, Options, Pruned, Run, Units, Weights, shown_batches
from prunus.methods._registry import Method, configure, find, names, option_types, type_in_words

__all__ = [
    "HALF",
    "Method",
    "Options",
    "Pruned",
    "Run",
    "Units",
    "Weights",
    "configure",
    "find",
    "names",
    "option_types",
    "shown_batches",
    "type_in_words",
]
