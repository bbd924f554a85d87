"""The methods: one file or folder each, under the method's name.

Its files, in the order in which to read them:

    _contract                               what a method gives back: Pruned; what its options answer
    _registry                               finding a method by its name, and filling its options
    magnitude taylor activation bn_scale    scores of units, a file each
    fpgm lamp random                        more of them
    structure                               the widths of an earlier run
    dhp/                                    widths learned by hypernetworks with latent vectors
    pass_/                                  masks emitted by a recurrent hypernetwork that reads a visual prompt
    metapruning/                            widths searched with generated weights
    lookahead/                              single weights, scored with their neighbouring layers
"""

from prunus.methods._contract import Pruned, shown_batches
from prunus.methods._registry import Method, configure, find, names

__all__ = [
    "Method",
    "Pruned",
    "configure",
    "find",
    "names",
    "shown_batches",
]
