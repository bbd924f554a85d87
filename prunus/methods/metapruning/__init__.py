"""MetaPruning: a search for widths in which a hypernetwork may generate the weights.

Its files, in the order in which to read them:

    config         the options
    pruning_net    the hypernetwork that generates weights
    method         the paper, departures from it, and prune
"""

from prunus.methods.metapruning.config import Config
from prunus.methods.metapruning.method import prune

__all__ = [
    "Config",
    "prune",
]
