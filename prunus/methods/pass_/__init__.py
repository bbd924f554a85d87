"""PASS: a visual prompt and a recurrent hypernetwork emit channel masks.

Its files, in the order in which to read them:

    config          the options
    statistics      what the mask network reads of the weights
    prompt          the visual prompt
    hypernetwork    the recurrent mask network
    search          PASS, usable in a loop of one's own
    charts          how the masks moved
    method          the paper, what departs from it, and prune
"""

from prunus.methods.pass_.config import Config
from prunus.methods.pass_.method import prune
from prunus.methods.pass_.search import PASS

__all__ = [
    "PASS",
    "Config",
    "prune",
]
